"""Gradients of the loss, batch by batch, on a copy of the model in float32 or better."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, nullcontext
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from ..errors import MethodError, first_line
from ..graph.tape import map_tensors, plain_kernels, set_training, tensors
from ..graph.walk import modules_of
from ..surgery.shrink import cut_copy
from ..train.batches import batches_in, device_of, to_device
from ..train.progress import ProgressBar
from ..train.randomness import Stream, same_loader_after, same_randomness_after
from ..train.task import Task
from ._problem import Problem
from ._weights import WeightProblem

HALF = (torch.float16, torch.bfloat16)
Gradients = dict[str, tuple[Tensor, Tensor]]


def each_gradient(
    problem: Problem | WeightProblem,
    names: Iterable[str],
    see: Callable[[Gradients], None],
    *,
    method: str,
    batch_count: int,
    batch_statistics: bool = False,
) -> None:
    """Call a function with weights and gradients of each batch's mean loss.

    The gradients are taken on a copy in eval mode: no dropout. Half-precision models are run in float32. Nothing is
    added up over batches. The data are read once.

    Args:
        problem: model, data, task and seed.
        names: parameters or buffers to differentiate.
        see: called once for each batch with name -> (value, gradient); zeros where the loss does not depend on it.
        method: for messages.
        batch_count: how many batches to read; fewer if the data have fewer.
        batch_statistics: normalise by the batch, as in training, and not by running statistics.

    Raises:
        MethodError: no data or task, no batch, or a batch whose loss cannot be computed or is no finite number.
    """
    with differentiating(problem, method, batch_count) as found:
        runner, wanted = runner_of(problem.model, names, batch_statistics=batch_statistics)
        for count, (task, batch) in enumerate(found):
            gradients = _gradients(runner, wanted, task, batch, f"{method}, batch {count}")
            see({name: (wanted[name].detach(), gradient) for name, gradient in gradients.items()})


@contextmanager
def differentiating(
    problem: Problem | WeightProblem, method: str, batch_count: int
) -> Iterator[Iterator[tuple[Task, Any]]]:
    """Give (task, batch on the model's device) in a block that takes gradients.

    Random numbers inside follow from the problem's seed; they and the loader are as before after the block.

    Raises:
        MethodError: no data or task, or no batch.
    """
    if problem.data is None or problem.task is None:
        raise MethodError(f"{method} takes gradients of the loss: give data= (labelled batches) and task=.")
    data, device = problem.data, device_of(problem.model)
    length = batches_in(data)
    total = batch_count if length is None else min(batch_count, length)
    is_recurrent = any(isinstance(module, nn.RNNBase) for module in modules_of(problem.model).values())
    with ExitStack() as stack:
        stack.enter_context(same_randomness_after(device))
        stack.enter_context(same_loader_after(data))
        stack.enter_context(Stream(problem.seed))
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        stack.enter_context(torch.autocast(device.type, enabled=False))
        # the packed recurrent kernels of a GPU have no gradients in eval mode
        stack.enter_context(plain_kernels() if is_recurrent else nullcontext())
        bar = stack.enter_context(ProgressBar(f"gradients for {method}", total))
        yield _batches(data, problem.task, device, method, batch_count, bar)


def _batches(
    data: Iterable[Any], task: Task, device: torch.device, method: str, batch_count: int, bar: ProgressBar
) -> Iterator[tuple[Task, Any]]:
    count = 0
    for batch in islice(data, batch_count):
        yield task, to_device(batch, device)
        count += 1
        bar.advance()
    if not count:
        raise MethodError(f"{method}: data= gave no batch; pass a list or a loader that starts anew each time.")


def runner_of(
    model: nn.Module, names: Iterable[str], *, batch_statistics: bool = False
) -> tuple[nn.Module, dict[str, Tensor]]:
    """Copy the model to differentiate it, in eval mode; also return the copy's tensors of these names.

    Args:
        model: as it was given; nothing of it changes.
        names: parameters or buffers to differentiate; no other takes gradients.
        batch_statistics: normalise by the batch.
    """
    runner = cut_copy(model, {})
    halves = {t.dtype for t in runner.parameters()} & set(HALF)
    if halves:
        runner = runner.float()
    set_training(runner, False)
    if batch_statistics:
        for module in modules_of(runner).values():
            module.__dict__["training"] = isinstance(module, _NormBase)
    runner.requires_grad_(False)
    own = {**dict(runner.named_parameters()), **dict(runner.named_buffers())}
    return runner, {name: own[name].requires_grad_(True) for name in names}


def loss_of(runner: nn.Module, task: Task, batch: Any, where: str) -> Tensor:
    """Return the finite mean loss of a batch, of one element, that gradients flow through.

    Raises:
        MethodError: there is no such loss.
    """
    args, kwargs = _in_precision_of(runner, task.to_inputs(batch))
    with explained(where):
        loss = task.loss(runner(*args, **kwargs), batch)
    if not isinstance(loss, Tensor) or loss.numel() != 1 or not loss.requires_grad:
        raise MethodError(f"{where}: task.loss gave {_shown(loss)}; expected one number that gradients flow through.")
    if not bool(loss.isfinite()):
        raise MethodError(f"{where}: the loss is {loss.item()}; {_first_not_finite(runner, args, kwargs)}.")
    return loss.sum()


@contextmanager
def explained(where: str) -> Iterator[None]:
    """Turn what a model, a task or autograd raises into a `MethodError` that says where."""
    try:
        yield
    except MethodError:
        raise
    except Exception as error:
        raise MethodError(
            f"{where}: the loss or its gradient cannot be computed, {type(error).__name__}: {first_line(error)}. The "
            "batches of data= have to be what task= expects, with labels."
        ) from error


def check_gradients(gradients: Mapping[str, Tensor], where: str) -> None:
    """Raise `MethodError` if one holds NaN or infinite values."""
    for name, gradient in gradients.items():
        if not bool(gradient.isfinite().all()):
            raise MethodError(
                f"{where}: the gradient of {name!r} holds NaN or infinite values, though the loss is finite: look for "
                "a root, a logarithm or a division at 0 behind it."
            )


def _gradients(runner: nn.Module, wanted: dict[str, Tensor], task: Task, batch: Any, where: str) -> dict[str, Tensor]:
    loss = loss_of(runner, task, batch, where)
    with explained(where):
        found = torch.autograd.grad(loss, list(wanted.values()), materialize_grads=True)
    gradients = dict(zip(wanted, found, strict=True))
    check_gradients(gradients, where)
    return gradients


def _in_precision_of(runner: nn.Module, inputs: Any) -> Any:
    """Give half-precision inputs the precision of a model that was widened."""
    dtypes = {t.dtype for t in runner.parameters() if t.is_floating_point()}
    if dtypes & set(HALF) or torch.float32 not in dtypes:
        return inputs
    return map_tensors(lambda t: t.float() if t.dtype in HALF else t, inputs)


def _shown(loss: Any) -> str:
    if not isinstance(loss, Tensor):
        return type(loss).__name__
    return f"a tensor {list(loss.shape)}{'' if loss.requires_grad else ' that depends on no weight'}"


def _first_not_finite(runner: nn.Module, args: Any, kwargs: Any) -> str:
    """Say which module is the first to give NaN or infinite values."""
    if not all(_is_finite(t) for t in tensors((args, kwargs))):
        return "the batch itself holds NaN or infinite values"
    names = {module: path for path, module in runner.named_modules()}
    found: list[str] = []

    def look(module: nn.Module, _: Any, out: Any) -> None:
        if not found and not all(_is_finite(t) for t in tensors(out)):
            found.append(names[module] or type(module).__name__)

    for module in names:
        module.register_forward_hook(look)
    with torch.no_grad():
        runner(*args, **kwargs)
    return f"module {found[0]!r} is the first to give NaN or infinite values" if found else "every activation is finite"


def _is_finite(tensor: Tensor) -> bool:
    return not tensor.is_floating_point() or bool(tensor.isfinite().all())
