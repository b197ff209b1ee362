"""From a score per channel to a plan that meets the budget; shared by every method that scores."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..budget import meet
from ..errors import BudgetError, MethodError, UnknownName
from ..graph.groups import ChannelGraph, ChannelGroup, Member
from ..graph.labels import axes, compact
from ..plan import Plan
from ._problem import Problem

Array = np.ndarray[Any, Any]
Allocation = str | Mapping[str, float]


def lowest(scores: Tensor, count: int) -> Tensor:
    """Indices of the `count` lowest scores; of equal scores the lower index goes first.

    >>> lowest(torch.ones(10), 3).tolist()
    [0, 1, 2]
    """
    return torch.argsort(scores, stable=True)[:count]


def per_channel(
    graph: ChannelGraph, group: ChannelGroup, member: Member, values: Tensor, *, absolute: bool = False
) -> Tensor:
    """Sum a tensor's elements over everything that belongs to one channel of a group.

    Args:
        graph: the channel graph.
        group: whose channels.
        member: the axis of the tensor that the group runs along.
        values: one number per element, in the shape of ``member.tensor``.
        absolute: sum absolute values.

    Returns:
        (width,) sums in float64, in the order of the group's channels.
    """
    if values.device.type == "meta":
        raise MethodError(
            f"parameter {member.tensor!r} is on the meta device and holds no data to score. Load it first."
        )
    position = np.full(int(graph.component.max(initial=0)) + 1, -1)
    position[group.channels] = np.arange(group.width)
    total = np.zeros(group.width)
    for layer in graph.labels.params[member.tensor][1]:
        varying = axes(layer)
        if max(varying, default=-1) != member.axis:
            continue
        rest = [d for d in range(values.ndim) if d not in varying]
        sums = _sums(values.detach(), rest, absolute)
        where = position[graph.component[compact(layer).numpy().reshape(sums.shape)]]
        total += np.bincount(where[where >= 0], weights=sums.cpu().numpy()[where >= 0], minlength=group.width)
    return torch.from_numpy(total)


def _sums(values: Tensor, over: list[int], absolute: bool) -> Tensor:
    """Sum over some axes, in float32 or better, without a temporary of the tensor's size."""
    dtype = torch.float32 if values.dtype in (torch.float16, torch.bfloat16) else None
    if absolute:
        found = torch.linalg.vector_norm(values, 1, dim=over, dtype=dtype) if over else values.abs()
    else:
        found = values.sum(dim=over, dtype=dtype) if over else values
    return found.double()


def producers(graph: ChannelGraph, group: ChannelGroup) -> list[Member]:
    """Members whose weight makes the group's channels: matrices and filters, by their output axis."""
    return [m for m in group.members if m.role == "out" and len(graph.shapes[m.tensor]) > 1] or [
        m for m in group.members if m.role not in ("in", "out") and len(graph.shapes[m.tensor]) > 1 and m.axis == 0
    ]


def counts_for(
    problem: Problem, names: list[str], allocation: Allocation, scores: Mapping[str, Tensor] | None = None
) -> dict[str, int]:
    """Decide how many channels each group keeps so that the budget is met exactly.

    Args:
        problem: model, graph, budget and limits.
        names: groups that may lose channels.
        allocation: "uniform" (the same fraction of every group), "global" (one ranking of all scores), "sensitivity"
            (every group loses as much as costs the same metric on the problem's data, cut on its own by these scores),
            or a mapping from module path or group name to a relative fraction: groups lose channels in these
            proportions until the budget is met; those not named stay whole.
        scores: group -> (width,), needed for "global"; "sensitivity" without scores goes by L1 norms.

    Raises:
        BudgetError: the budget is not reachable.
        MethodError: an unknown allocation.
    """
    if problem.budget.remove == 0:
        return {name: problem.graph.groups[name].width for name in names}
    every = list(problem.graph.groups)
    number = {name: k for k, name in enumerate(every)}
    widths = problem.graph.costs.widths
    keys = {name: np.sort(key, kind="stable") for name, key in _keys(problem, names, allocation, scores).items()}
    groups = [np.full(len(key), number[name]) for name, key in keys.items()]
    ranked = np.concatenate(groups)[np.argsort(np.concatenate(list(keys.values())), kind="stable")]
    measure: Callable[[Array], float] = lambda counts: problem.graph.costs.value(problem.budget.of, counts)  # noqa: E731
    try:
        kept = meet(problem.budget, ranked, widths, problem.limits, measure)
    except BudgetError as error:
        raise BudgetError(f"{error}{_left_whole(problem, keys)}") from None
    return {name: int(kept[number[name]]) for name in names}


def _left_whole(problem: Problem, chosen: Mapping[str, Any]) -> str:
    """Say which groups nobody protected and yet stay whole, as further sentences."""
    graph = problem.graph
    whole = [name for name in problem.free_groups() if name not in chosen]
    said = ""
    if whole:
        are_streams = all(graph.groups[name].is_residual for name in whole)
        hint = " (residual streams: see residual= of the method)" if are_streams else ""
        said += f" The method leaves whole: {', '.join(whole)}{hint}."
    return said + (f" The model's code cannot narrow: {', '.join(graph.rigid)}." if graph.rigid else "")


def _keys(
    problem: Problem, names: list[str], allocation: Allocation, scores: Mapping[str, Tensor] | None
) -> dict[str, Array]:
    """Key of the j-th channel to go in each group: the smallest key over all groups goes first."""
    graph = problem.graph
    if isinstance(allocation, str):
        if allocation == "uniform":
            return {n: (np.arange(graph.groups[n].width) + 0.5) / graph.groups[n].width for n in names}
        if allocation == "global" and scores is not None:
            return {n: scores[n].double().numpy() for n in names}
        if allocation == "sensitivity":
            from ._sensitivity_run import sensitivity_ranks  # which cuts by scores itself

            own = scores if scores is not None else {n: l1_norms(problem, n) for n in names}
            return {n: rank.numpy() for n, rank in sensitivity_ranks(problem, own).items()}
        raise MethodError(
            f"allocation={allocation!r}: expected 'uniform', 'global', 'sensitivity' or {{module path: fraction}}"
            f"{'; this method has no scores for global' if allocation == 'global' else ''}."
        )
    weights = {n: w for n, w in _weights(problem, allocation).items() if n in names and w > 0}
    if not weights:
        raise MethodError(f"allocation names no group that is free to go: {sorted(allocation)} against {names[:8]}.")
    return {n: (np.arange(graph.groups[n].width) + 0.5) / graph.groups[n].width / w for n, w in weights.items()}


def _weights(problem: Problem, allocation: Mapping[str, float]) -> dict[str, float]:
    weights: dict[str, float] = {}
    for path, fraction in allocation.items():
        if not 0 <= fraction <= 1:
            raise MethodError(f"allocation[{path!r}]={fraction!r}: expected a fraction in [0, 1].")
        found = {path} if path in problem.graph.groups else _made_by(problem.graph, path)
        if not found:
            raise UnknownName("layer with channels", path, problem.graph.groups)
        weights.update(dict.fromkeys(found, fraction))
    return weights


def _made_by(graph: ChannelGraph, path: str) -> set[str]:
    return {n for n, g in graph.groups.items() if any(m.module == path and m.role == "out" for m in g.members)}


def l1_norms(problem: Problem, name: str) -> Tensor:
    """Return (width,) the sum of absolute weights of what makes each channel of a group.

    Of a channel selection, which makes none, it is the sum over what reads the channel there.
    """
    graph, total = problem.graph, torch.zeros(problem.graph.groups[name].width, dtype=torch.float64)
    group = graph.groups[name]
    for member in [m for m in group.members if m.role == "in"] if name in graph.selecting else producers(graph, group):
        weight = problem.model.get_parameter(member.tensor)
        total += per_channel(graph, group, member, weight, absolute=True)
    return total


def plan_from_counts(problem: Problem, kept: Mapping[str, int], scores: Mapping[str, Tensor]) -> Plan:
    """Return the plan that removes the lowest scores of each group until this many are left."""
    groups = problem.graph.groups
    removed = {name: lowest(scores[name], groups[name].width - count).tolist() for name, count in kept.items()}
    return Plan.from_removed(removed, problem.graph.widths)


def plan_from_scores(problem: Problem, scores: Mapping[str, Tensor], allocation: Allocation = "uniform") -> Plan:
    """Return the plan that meets the budget by removing low scores; see `counts_for` for `allocation`."""
    kept = counts_for(problem, list(scores), allocation, scores)
    return plan_from_counts(problem, kept, scores)


RESIDUAL = ("projection", "skip", "prune")


def eligible(problem: Problem, residual: str) -> list[str]:
    """Groups that a filter method may cut, by how it treats residual streams.

    Args:
        problem: model, graph and limits.
        residual: "projection" cuts a residual stream only where a 1x1 projection makes it, "skip" leaves every residual
            stream whole, "prune" cuts all.

    Raises:
        NothingToPrune: none is left.
    """
    if residual not in RESIDUAL:
        raise MethodError(f"residual={residual!r}: expected one of {', '.join(RESIDUAL)}.")
    graph = problem.graph
    free = problem.free_groups()
    if residual == "prune":
        return free
    kept = [
        name
        for name in free
        if not graph.groups[name].is_residual
        or (residual == "projection" and projection(graph, graph.groups[name]) is not None)
    ]
    if not kept:
        from ..errors import NothingToPrune

        raise NothingToPrune(
            f"every group that is free to go is a residual stream ({', '.join(free[:4])} …) and residual={residual!r} "
            "leaves these whole: use residual='prune'."
        )
    return kept


def projection(graph: ChannelGraph, group: ChannelGroup) -> Member | None:
    """Return the 1x1 convolution that projects into a residual stream, if there is one.

    It is told from other 1x1 makers of the stream (a stem, the last layer of a bottleneck) by what it reads: the same
    tensor, pooled or not, that another convolution reads, the first of the branch beside it.
    """
    makers = [m for m in producers(graph, group) if len(graph.shapes[m.tensor]) > 2]
    points = [m for m in makers if all(k == 1 for k in graph.shapes[m.tensor][2:])]
    if not points or len(makers) < 2:
        return None
    source: dict[int, int] = {}  # pooled tensor -> what was pooled
    readers: dict[int, list[str]] = {}
    for op in graph.tape.ops:
        if "pool" in op.name:
            number = op.refs()[0].number
            source[op.outs()[0].number] = source.get(number, number)
        if op.name == "convolution":
            number = op.args[0].number
            readers.setdefault(source.get(number, number), []).append(graph.tape.state.get(op.args[1].number, ""))
    shared = {name for names in readers.values() if len(names) > 1 for name in names}
    return next((m for m in points if m.tensor in shared), None)
