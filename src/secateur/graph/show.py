"""Print the groups of a graph, and say through which operations two layers came to share channels."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.sparse import csr_matrix
from scipy.sparse.csgraph import breadth_first_order

from ..errors import UnknownName
from .labels import axes, compact

if TYPE_CHECKING:
    from .groups import ChannelGraph, Member


def table(graph: ChannelGraph) -> str:
    """Return the groups as a text table: name, width, and who shares the channels."""
    rows = [("group", "channels", "runs along")]
    rows += [(g.name, str(g.width), _short([m.label for m in g.members])) for g in graph.groups.values()]
    left, middle = max(len(r[0]) for r in rows), max(len(r[1]) for r in rows)
    lines = [f"{a:<{left}}  {b:>{middle}}  {c}" for a, b, c in rows]
    whole = graph.costs()
    lines.append(
        f"{len(graph.groups)} groups, {graph.channel_count} channels, {whole.macs:,} MACs, {whole.params:,} parameters"
    )
    if graph.unknown:
        names = ", ".join(sorted({f"{op} in {path or 'the model'}" for op, path in graph.unknown}))
        lines.append(f"frozen around operations without a rule: {names}")
    return "\n".join(lines)


def _short(labels: list[str], limit: int = 6) -> str:
    unique = list(dict.fromkeys(labels))
    return ", ".join(unique[:limit]) + (f", … {len(unique) - limit} more" if len(unique) > limit else "")


def explain(graph: ChannelGraph, one: str, other: str) -> str:
    """Return the chain of operations that ties the channels of two layers, or why they are not tied.

    Args:
        graph: a channel graph.
        one: module path, optionally with ":in" or ":out" (out is meant without), e.g. ``"layer1.0.conv2"``.
        other: the same.

    Raises:
        UnknownName: no such module has channels.

    >>> import torch, secateur
    >>> net = torch.nn.Sequential(torch.nn.Conv2d(1, 4, 1), torch.nn.BatchNorm2d(4), torch.nn.Conv2d(4, 2, 1))
    >>> print(secateur.trace(net, torch.zeros(1, 1, 4, 4)).explain("0", "2:in"))
    0:out and 2:in share channels (group '0', 4 channels):
      0:out
      - _native_batch_norm_legit_no_training in 1 -> 1:out
      - convolution in 2 -> 2:in
    """
    start, end = _find(graph, one), _find(graph, other)
    size = graph.labels.slot_count
    first = np.concatenate([a for a, _ in graph.labels.ties])
    second = np.concatenate([b for _, b in graph.labels.ties])
    ops = np.repeat(graph.labels.tie_ops, [len(a) for a, _ in graph.labels.ties])
    tied = _shared(graph, start, end)
    if tied is None:
        return _apart(graph, one, other, start, end)
    source, targets = tied
    keep = (first != 0) & (second != 0)
    first, second, ops = first[keep], second[keep], ops[keep]
    links = csr_matrix((np.ones(len(first), dtype=np.int8), (first, second)), shape=(size, size))
    order, before = breadth_first_order(links, source, directed=False)
    del order
    goal = next((int(t) for t in targets if t == source or before[t] >= 0), None)
    if goal is None:  # the chain runs only through what is frozen
        return _apart(graph, one, other, start, end)
    path = [goal]
    while path[-1] != source:
        path.append(int(before[path[-1]]))
    path.reverse()
    by_pair = {(int(a), int(b)): int(o) for a, b, o in zip(first, second, ops, strict=True)}
    names = _slot_names(graph)
    return "\n".join(
        [_heading(graph, start, end, source), f"  {_label(start[0])}", *_hops(graph, path, by_pair, names)]
    )


def _hops(
    graph: ChannelGraph, path: list[int], by_pair: dict[tuple[int, int], int], names: dict[int, str]
) -> list[str]:
    lines = []
    for a, b in pairwise(path):
        index = by_pair.get((a, b), by_pair.get((b, a), -1))
        op = graph.tape.ops[index] if index >= 0 else None
        where = (
            f"{op.name} in {op.module or 'the model'}" if op is not None else "one width for all layers of the module"
        )
        lines.append(f"  - {where} -> {names.get(b, 'an intermediate result')}")
    return lines


def _find(graph: ChannelGraph, text: str) -> list[Member]:
    path, _, role = text.partition(":")
    role = role or "out"
    every = [m for group in graph.groups.values() for m in group.members]
    found = [m for m in every if m.module == path and m.role == role] or [m for m in every if m.tensor == path]
    if not found:
        frozen = [m for m in _all_members(graph) if m.module == path]
        if frozen:
            return frozen
        raise UnknownName("layer with channels", text, {m.module for m in every})
    return found


def _all_members(graph: ChannelGraph) -> list[Member]:
    from .groups import Member

    found = []
    for name, (_, layers) in graph.labels.params.items():
        for layer in layers:
            axis = max(axes(layer), default=0)
            found.append(Member(name, axis, 1, name.rpartition(".")[0], {0: "out", 1: "in"}.get(axis, str(axis))))
    return found


def _slots(graph: ChannelGraph, member: Member) -> np.ndarray[Any, Any]:
    layers = graph.labels.params[member.tensor][1]
    return np.concatenate([compact(k).numpy().ravel() for k in layers if max(axes(k), default=0) == member.axis])


def _shared(graph: ChannelGraph, start: list[Member], end: list[Member]) -> tuple[int, list[int]] | None:
    here, there = _slots(graph, start[0]), np.concatenate([_slots(graph, m) for m in end])
    numbers = graph.component[there]
    for slot in here:
        if graph.component[slot] != graph.component[0] and (numbers == graph.component[slot]).any():
            return int(slot), [int(t) for t in there[numbers == graph.component[slot]]]
    return None


def _apart(graph: ChannelGraph, one: str, other: str, start: list[Member], end: list[Member]) -> str:
    for text, members in ((one, start), (other, end)):
        slots = _slots(graph, members[0])
        if (graph.component[slots] == graph.component[0]).all():
            why = next(
                (w for s, w in graph.labels.frozen_why if graph.component[s[0]] == graph.component[slots[0]]), ""
            )
            mine = next((w for s, w in graph.labels.frozen_why if np.isin(slots, s).any()), why)
            return f"{text} cannot be cut: {mine}."
    return f"{one} and {other} do not share channels."


def _heading(graph: ChannelGraph, start: list[Member], end: list[Member], slot: int) -> str:
    number = graph.component[slot]
    group = next(g for g in graph.groups.values() if number in g.channels)
    return f"{_label(start[0])} and {_label(end[0])} share channels (group {group.name!r}, {group.width} channels):"


def _label(member: Member) -> str:
    return member.label


def _slot_names(graph: ChannelGraph) -> dict[int, str]:
    names: dict[int, str] = {}
    for group in graph.groups.values():
        for member in group.members:
            for slot in _slots(graph, member):
                names.setdefault(int(slot), member.label)
    return names
