"""A method for a training loop of one's own."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from torch import nn

from .budget import Budget, Limits
from .catalogue import find
from .errors import MethodError
from .graph.groups import ChannelGraph, as_args, trace
from .methods._attached import Attached, TrainingMethod
from .methods._problem import Problem, prepared
from .train.task import Task


def attach(
    model: nn.Module,
    args: Any,
    *,
    method: str | TrainingMethod,
    budget: Budget,
    kwargs: Mapping[str, Any] | None = None,
    limits: Limits | None = None,
    data: Iterable[Any] | None = None,
    task: Task | None = None,
    graph: ChannelGraph | None = None,
    seed: int = 0,
) -> Attached:
    """Return a method as an attachment, for a training loop of your own.

    Call it at its four points (`extra_loss`, `after_backward`, `after_step`, `after_epoch`), or pass it to
    `secateur.train.fit`; then `finish()` gives the decision, and `secateur.shrink` cuts by its plan.

    Args:
        model: what will be trained, in place.
        args: example input: a tensor, or a tuple of positional inputs.
        method: a name from the catalogue, or a method with settings of your own.
        budget: how much goes.
        kwargs: keyword inputs of the example.
        limits: what every plan has to respect.
        data: batches, for methods that look at some besides those that the loop trains on.
        task: how to read a batch; needed with `data`.
        graph: the model's graph, if you have it.
        seed: makes random choices repeatable.

    Raises:
        MethodError: the method does not take part in training.
        UnknownName: no method of that name.
        TraceError: the model rejects the example input.
    """
    made = find(method).make() if isinstance(method, str) else method
    if not isinstance(made, TrainingMethod):
        raise MethodError(f"method={method!r} takes no part in training: call prune(..., method=...) instead.")
    example, named = as_args(args), dict(kwargs or {})
    graph = graph if graph is not None else trace(model, example, named)
    problem = Problem(model, graph, budget, limits or Limits(), example, named, data, task, seed)
    return made.attach(prepared(made, problem))
