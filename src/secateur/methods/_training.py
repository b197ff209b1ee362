"""What methods that train share: data that are checked, a copy to train, channels held at zero, errors with a place."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import MethodError, SecateurError, TrainingError
from ..graph.groups import ChannelGraph
from ..plan import Plan
from ..surgery.mask import dead_places, neutral
from ..surgery.shrink import clone
from ..train.attachment import Attachment, Moment
from ..train.batches import device_of, to_device
from ..train.loop import fit
from ..train.randomness import same_loader_after, same_randomness_after
from ..train.schedules import Recipe
from ..train.task import Task
from ..train.tracking import Tracking
from ._problem import Problem
from ._weights import WeightProblem

AnyProblem = Problem | WeightProblem


def training_data(problem: AnyProblem, method: str) -> tuple[Iterable[Any], Task]:
    """Return data and task, which `method` reads several times.

    Raises:
        MethodError: one is missing, or the data can be read once only.
    """
    missing = [name for name in ("data", "task") if getattr(problem, name) is None]
    if problem.data is None or problem.task is None:
        raise MethodError(
            f"{method} trains on labelled batches and was given no {' and no '.join(f'{name}=' for name in missing)}: "
            "pass batches that can be read again, and e.g. task=ClassificationTask()."
        )
    if isinstance(problem.data, Iterator):
        raise MethodError(
            f"{method} reads data= several times, and a {type(problem.data).__name__} can be read once only: "
            "pass a list or a loader that starts anew each time."
        )
    return problem.data, problem.task


def train_(
    method: str,
    model: nn.Module,
    problem: AnyProblem,
    recipe: Recipe,
    attachments: Sequence[Attachment] = (),
    *,
    tracking: Tracking | None = None,
    checkpoint_dir: Path | None = None,
) -> None:
    """Train a working copy IN PLACE by the package's own loop; where there are checkpoints of the run, go on from them.

    Raises:
        MethodError: the model does not run on the data, or something is not finite; names the layer where it can.
    """
    data, task = training_data(problem, method)
    with blamed(method, problem):
        fit(
            model,
            data,
            task,
            recipe,
            attachments=attachments,
            progress=False,
            tracking=tracking,
            checkpoint_dir=checkpoint_dir,
        )


@contextmanager
def blamed(method: str, problem: AnyProblem) -> Iterator[None]:
    """Turn what goes wrong in training into a `MethodError` that names the method and, where it can, the layer."""
    try:
        yield
    except TrainingError as error:
        if error.__cause__ is not None:  # a batch cannot be run, so none is looked through for values
            raise MethodError(f"{method} could not train on data=: {error}") from error
        raise MethodError(f"{method}: {error}{_first_bad_layer(problem)}") from error
    except SecateurError:
        raise
    except (RuntimeError, ValueError, IndexError, TypeError) as error:
        raise MethodError(
            f"{method} could not train on data=: {error}. Every batch has to fit the model, like the example input."
        ) from error


def _first_bad_layer(problem: AnyProblem) -> str:
    """Say in which module of the model as given the first value that is not finite appears; empty if nowhere."""
    model, found = clone(problem.model).eval(), list[str]()

    def look(path: str) -> Any:
        def hook(_: nn.Module, __: Any, output: Any) -> None:
            if isinstance(output, Tensor) and not bool(torch.isfinite(output).all()):
                found.append(path)

        return hook

    for path, module in model.named_modules():
        module.register_forward_hook(look(path))
    device = device_of(model)
    with same_randomness_after(device), same_loader_after(problem.data), torch.no_grad():
        for batch in problem.data or ():
            args, kwargs = problem.task.to_inputs(to_device(batch, device)) if problem.task else ((), {})
            model(*args, **kwargs)
            if found:
                return f" The first activation that is not finite is the output of {found[0] or 'the model'!r}."
    return ""


class HeldAtZero(Attachment):
    """Keeps removed channels at zero while the rest trains, as if they were cut."""

    def __init__(self, model: nn.Module, graph: ChannelGraph, plan: Plan) -> None:
        tensors: dict[str, Tensor] = dict(model.named_parameters(remove_duplicate=False))
        tensors.update(model.named_buffers(remove_duplicate=False))
        self._dead = [
            (tensors[name], gone.to(tensors[name].device), neutral(name)) for name, gone in dead_places(graph, plan)
        ]

    def apply_(self) -> None:
        """Zero everything that the plan removes, in place."""
        with torch.no_grad():
            for tensor, gone, value in self._dead:
                tensor.masked_fill_(gone, value)

    def after_step(self, moment: Moment) -> None:
        """Undo what the step did to removed channels."""
        self.apply_()
