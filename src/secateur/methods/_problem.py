"""What a method is given, and what it returns."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, runtime_checkable

import torch
from torch import nn

from ..budget import MEASURES, WEIGHTS, Budget, Limits
from ..errors import BudgetError, MethodError, NothingToPrune
from ..graph.groups import ChannelGraph
from ..graph.walk import buffers_of, parameters_of
from ..plan import Plan
from ..train.task import Task, check_task
from ..train.tracking import Tracking
from ._history import History


@dataclass(frozen=True)
class Problem:
    """A model to prune and how far.

    Attributes:
        model: the trained model. A method reads it and never changes it.
        graph: its channel graph.
        budget: how much goes.
        limits: what every plan has to respect.
        args: positional inputs of one example batch.
        kwargs: keyword inputs.
        data: batches for methods that need data; re-iterable.
        task: how to read a batch; needed with `data`.
        seed: makes everything random repeatable.
        tracking: where a method that takes part in training shows how it goes.
        checkpoint_dir: where it keeps checkpoints, to go on from.

    Raises:
        BudgetError: the budget is no `Budget`, or counts single weights; or the limits are no `Limits`.
        MethodError: the task is a class.
    """

    model: nn.Module
    graph: ChannelGraph
    budget: Budget
    limits: Limits = field(default_factory=Limits)
    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    data: Iterable[Any] | None = None
    task: Task | None = None
    seed: int = 0
    tracking: Tracking | None = None
    checkpoint_dir: str | os.PathLike[str] | None = None

    def __post_init__(self) -> None:
        check_task(self.task)
        if not isinstance(self.limits, Limits):
            raise BudgetError(f"limits={self.limits!r}: expected Limits(protect=..., min_keep=..., round_to=...).")
        if not isinstance(self.budget, Budget):
            raise BudgetError(f"budget={self.budget!r}: expected Budget(remove=0.5, of='macs') or the like.")
        if self.budget.of == WEIGHTS:
            raise BudgetError(
                f"{self.budget}: channels go here, and no single weights: expected of= one of {', '.join(MEASURES)}. "
                "For single weights call secateur.sparsify."
            )

    def free_groups(self) -> list[str]:
        """Names of the groups that may lose channels: not protected, wide enough for the limits.

        Raises:
            NothingToPrune: there is none.
            UnknownName: a protected module does not exist.
        """
        protected = self.graph.touching(self.limits.protect)
        least = max(self.limits.min_keep + 1, self.limits.round_to)
        if self.graph.selections is None:  # selections that a model has are for methods that ask for them
            protected |= self.graph.selecting.keys()
        names = [n for n, g in self.graph.groups.items() if n not in protected and g.width >= least]
        if not names:
            rigid = f" Its code cannot narrow: {', '.join(self.graph.rigid)}." if self.graph.rigid else ""
            raise NothingToPrune(
                f"the model has {len(self.graph.groups)} groups of channels, {len(protected)} of them protected "
                f"and none left with at least {least} channels: protect less, or lower min_keep and round_to.{rigid}"
            )
        return names

    def check_weights(self, names: Iterable[str]) -> None:
        """Raise `MethodError` if a parameter or statistic of these groups is not made of finite real numbers."""
        parameters, buffers = parameters_of(self.model), buffers_of(self.model)
        tensors: dict[str, torch.Tensor] = {**parameters, **buffers}
        owners = {member.tensor: group for group in names for member in self.graph.groups[group].members}
        for name, group in owners.items():
            tensor = tensors.get(name)
            if name in parameters and tensor is not None and not tensor.is_floating_point():
                raise MethodError(
                    f"parameter {name!r} is {tensor.dtype}: only real floating-point weights can be pruned. "
                    f"Convert it, or protect its channels: protect=[{group!r}]."
                )
            if (
                tensor is not None
                and tensor.device.type != "meta"
                and tensor.numel()
                and not all(bool(end.isfinite()) for end in torch.aminmax(tensor.detach()))
            ):
                raise MethodError(
                    f"{'buffer' if name in buffers else 'parameter'} {name!r} holds NaN or infinite values: "
                    "nothing can be scored. Repair it first."
                )


@dataclass(frozen=True)
class Decision:
    """What a method decided.

    Attributes:
        plan: which channels stay.
        model: a full-width copy with new weights if the method trained or re-fitted any; None = the model as it was.
        scores: group -> (width,) score per channel, higher = keep, where the method has scores.
        repair: what `prune` does next where it has data and is not told otherwise: "refit"; "batchnorm" after training
            with the method, which moves the weights but may leave running statistics behind; "none" after a re-fit of
            the method's own.
        history: where channels stood after each epoch, of a method that took part in training.
    """

    plan: Plan
    model: nn.Module | None = None
    scores: Mapping[str, torch.Tensor] = field(default_factory=dict)
    repair: Literal["refit", "batchnorm", "none"] = "refit"
    history: History | None = None


@runtime_checkable
class Preparing(Protocol):
    """A method that wants the problem posed in another way, such as on a graph with channel selections."""

    def prepare(self, problem: Problem) -> Problem:
        """Return the problem that the method's plans are for; a prepared one as it is."""
        ...


def prepared(method: object, problem: Problem) -> Problem:
    """Return a problem as a method wants it."""
    return method.prepare(problem) if isinstance(method, Preparing) else problem


@runtime_checkable
class Method(Protocol):
    """One paper: a frozen dataclass of hyper-parameters with the paper's defaults."""

    def decide(self, problem: Problem) -> Decision:
        """Decide which channels stay."""
        ...
