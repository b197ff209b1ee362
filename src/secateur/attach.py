"""A method for a training loop of one's own."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, overload

from torch import nn

from .budget import Budget, Limits
from .catalogue import find
from .errors import BudgetError, MethodError
from .graph.groups import ChannelGraph, as_args, trace
from .methods._attached import Attached, TrainingMethod
from .methods._attached_weights import AttachedWeights, TrainingWeightMethod
from .methods._problem import Problem, prepared
from .methods._weights import Pattern
from .prune import rehearsed
from .sparsify import weight_problem
from .surgery.finalize import check_plain
from .train.task import Task


@overload
def attach(
    model: nn.Module,
    args: Any = (),
    *,
    method: TrainingMethod,
    budget: Budget,
    kwargs: Mapping[str, Any] | None = None,
    limits: Limits | None = None,
    data: Iterable[Any] | None = None,
    task: Task | None = None,
    graph: ChannelGraph | None = None,
    seed: int = 0,
) -> Attached: ...


@overload
def attach(
    model: nn.Module,
    args: Any = (),
    *,
    method: TrainingWeightMethod,
    budget: Budget | None = None,
    pattern: str | Pattern | None = None,
    protect: Sequence[str] = (),
    include: Sequence[str] = (),
    kwargs: Mapping[str, Any] | None = None,
    data: Iterable[Any] | None = None,
    task: Task | None = None,
    seed: int = 0,
) -> AttachedWeights: ...


@overload
def attach(
    model: nn.Module,
    args: Any = (),
    *,
    method: str,
    budget: Budget | None = None,
    pattern: str | Pattern | None = None,
    protect: Sequence[str] = (),
    include: Sequence[str] = (),
    kwargs: Mapping[str, Any] | None = None,
    limits: Limits | None = None,
    data: Iterable[Any] | None = None,
    task: Task | None = None,
    graph: ChannelGraph | None = None,
    seed: int = 0,
) -> Any: ...


def attach(
    model: nn.Module,
    args: Any = (),
    *,
    method: str | TrainingMethod | TrainingWeightMethod,
    budget: Budget | None = None,
    pattern: str | Pattern | None = None,
    protect: Sequence[str] = (),
    include: Sequence[str] = (),
    kwargs: Mapping[str, Any] | None = None,
    limits: Limits | None = None,
    data: Iterable[Any] | None = None,
    task: Task | None = None,
    graph: ChannelGraph | None = None,
    seed: int = 0,
) -> Attached | AttachedWeights:
    """Return a method as an attachment, for a training loop of your own.

    Call it at its four points (`extra_loss`, `after_backward`, `after_step`, `after_epoch`), or pass it to
    `secateur.train.fit`; then `finish()` gives the decision. `secateur.shrink` cuts by its plan of channels; after a
    method that removes single weights the model has its zeros already. Groups that the model's code cannot narrow are
    left whole, and named in the log.

    Args:
        model: what will be trained, in place.
        args: example input: a tensor, or a tuple of positional inputs. Methods that remove channels need it.
        method: a name from the catalogue, or a method with settings of your own.
        budget: how much goes; may be left out with a pattern.
        pattern: N:M, for methods that remove single weights, as the next two; see `secateur.sparsify`.
        protect: module paths and parameter names whose weights all stay.
        include: names of other parameters that can lose weights too.
        kwargs: keyword inputs of the example.
        limits: what every plan of channels has to respect.
        data: batches, for methods that look at some besides those that the loop trains on.
        task: how to read a batch; needed with `data`.
        graph: the model's graph of channels, if you have it.
        seed: makes random choices repeatable.

    Raises:
        BudgetError: nothing says how much goes, or it does not fit the method.
        MethodError: the method does not take part in training, or removes something else than what is described; or
            torch.nn.utils.prune masks the model.
        UnknownName: no method of that name.
        TraceError: the model rejects the example input.
    """
    check_plain(model)
    made = find(method).make() if isinstance(method, str) else method
    for_weights: dict[str, Any] = {"pattern": pattern, "protect": protect, "include": include}
    if not isinstance(made, type) and isinstance(made, TrainingWeightMethod):
        _refuse(method, {"limits": limits, "graph": graph}, "channels, and this method removes single weights")
        more: dict[str, Any] = {"kwargs": kwargs, "data": data, "task": task, "seed": seed}
        return made.attach(weight_problem(model, args, budget=budget, **for_weights, **more))
    if isinstance(made, type) or not isinstance(made, TrainingMethod):
        raise MethodError(
            f"method={method!r} takes no part in training loops: it decides, and trains where it has to, within one "
            "call of prune(..., method=...), or of sparsify(..., method=...) if it removes single weights."
        )
    _refuse(method, for_weights, "single weights, and this method removes channels (protect: limits=Limits(...))")
    if budget is None:
        raise BudgetError("nothing says how much goes: give budget=Budget(remove=0.3, of='macs').")
    example, named = as_args(args), dict(kwargs or {})
    graph = graph if graph is not None else trace(model, example, named)
    problem = Problem(model, graph, budget, limits or Limits(), example, named, data, task, seed)
    return made.attach(rehearsed(prepared(made, problem)))  # after the training it would be too late to find out


def _refuse(method: object, given: Mapping[str, object], about: str) -> None:
    if unused := [f"{name}=" for name, value in given.items() if value is not None and value != ()]:
        raise MethodError(f"method={method!r}: {', '.join(unused)} is about {about}; leave it out.")
