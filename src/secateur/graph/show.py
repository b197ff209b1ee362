"""Print the groups of a graph, and say through which operations two layers came to share channels."""

from __future__ import annotations

from functools import cached_property
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.sparse import csr_matrix
from scipy.sparse.csgraph import breadth_first_order

from ..errors import UnknownName
from .labels import FROZEN, axes, compact

if TYPE_CHECKING:
    from .groups import ChannelGraph, ChannelGroup, Member

Array = np.ndarray[Any, Any]
LISTED = 6  # how many names a line of the table holds before it says how many more there are
PLAIN = {  # ATen's names that say less than these
    "_native_batch_norm_legit_no_training": "batch_norm",
    "_native_batch_norm_legit": "batch_norm",
    "native_batch_norm": "batch_norm",
    "native_layer_norm": "layer_norm",
    "native_group_norm": "group_norm",
    "_softmax": "softmax",
    "_log_softmax": "log_softmax",
    "addmm": "linear",
    "mm": "matmul",
    "bmm": "matmul",
    "_to_copy": "to",
    "_unsafe_view": "view",
}


def table(graph: ChannelGraph) -> str:
    """Return the groups as a text table: name, width, who shares the channels, and what cannot be cut and why."""
    rows = [("group", "channels", "runs along")]
    rows += [(g.name, str(g.width), _short([m.label for m in g.members])) for g in graph.groups.values()]
    left, middle = max(len(r[0]) for r in rows), max(len(r[1]) for r in rows)
    lines = [f"{a:<{left}}  {b:>{middle}}  {c}" for a, b, c in rows]
    whole = graph.costs()
    lines.append(
        f"{len(graph.groups)} groups, {graph.channel_count} channels, {whole.macs:,} MACs, {whole.params:,} parameters"
    )
    for why, labels in _Ties(graph).frozen_outs().items():
        lines.append(f"cannot be cut ({why}): {_short(labels)}")
    if graph.rigid:
        lines.append(f"cannot be cut (the model's code cannot narrow them): {_short(list(graph.rigid))}")
    if graph.unknown:
        names = ", ".join(sorted({f"{op} in {path or 'the model'}" for op, path in graph.unknown}))
        lines.append(f"frozen around operations without a rule: {names}")
    if idle := _idle(graph):
        lines.append(f"not run on this example, and left as they are: {_short(idle)}")
    return "\n".join(lines)


def _idle(graph: ChannelGraph) -> list[str]:
    """Return the paths of modules none of whose own parameters the pass used."""
    used, ran = set(graph.tape.state.values()), dict[str, bool]()
    for name in graph.shapes:
        known = graph.aliases.get(name, name)
        if graph.sizes_of_elements[known][0]:
            owner = name.rpartition(".")[0]
            ran[owner] = ran.get(owner, False) or known in used
    return [path for path, is_used in ran.items() if path and not is_used]


def _short(labels: list[str]) -> str:
    unique = list(dict.fromkeys(labels))
    return ", ".join(unique[:LISTED]) + (f", … {len(unique) - LISTED} more" if len(unique) > LISTED else "")


def explain(graph: ChannelGraph, one: str, other: str) -> str:
    """Return the chain of operations that ties the channels of two layers, or why they are not tied.

    Args:
        graph: a channel graph.
        one: a module path or the name of a parameter or buffer, optionally with ":in", ":out" or an axis (out is meant
            without), e.g. ``"layer1.0.conv2:in"``.
        other: the same.

    Raises:
        UnknownName: no such layer has channels, or it has no such axis.

    >>> import torch, secateur
    >>> net = torch.nn.Sequential(torch.nn.Conv2d(1, 4, 1), torch.nn.BatchNorm2d(4), torch.nn.Conv2d(4, 2, 1))
    >>> graph = secateur.trace(net, torch.zeros(1, 1, 4, 4))
    >>> print(explain(graph, "0", "2:in"))
    0:out and 2:in share channels (group '0', 4 channels):
      0:out
      - convolution in 2 -> 2:in
    >>> print(explain(graph, "0", "2"))
    2 cannot be cut: an output of the model.
    """
    ties = _Ties(graph)
    start, end = find(graph, one), find(graph, other)
    here, there = ties.slots(start), ties.slots(end)
    numbers = graph.component[here]
    shared = np.intersect1d(numbers[numbers != graph.component[FROZEN]], graph.component[there])
    group = ties.group_of(shared)
    if group is None:
        return _apart(ties, {one: start, other: end})
    width = np.isin(group.channels, shared).sum()
    count = f"{group.width} channels" if width == group.width else f"{width} of {group.width} channels"
    source = int(here[np.isin(numbers, shared)][0])
    targets = there[graph.component[there] == graph.component[source]]
    heading = f"{start[0].label} and {end[0].label} share channels (group {group.name!r}, {count}):"
    return "\n".join([heading, f"  {start[0].label}", *ties.hops(ties.path(source, targets))])


def find(graph: ChannelGraph, text: str) -> list[Member]:
    """Return the places that a name means, e.g. ``"conv"``, ``"conv:in"`` or ``"table:1"``.

    Raises:
        UnknownName: there are none; says what is near.
    """
    path, _, role = text.partition(":")
    path = graph.aliases.get(path, path)
    found = [m for m in graph.places if path in (m.module, m.tensor)]
    if not found and path in graph.groups:
        return list(graph.groups[path].members)
    if not found:
        raise UnknownName("layer with channels", path, _known(graph), _hint(graph, path))
    if not role:
        return [m for m in found if m.role == "out"] or found
    if not (chosen := [m for m in found if role in (m.role, str(m.axis))]):
        raise UnknownName(f"axis of {path!r}", role, {m.role for m in found})
    return chosen


def _known(graph: ChannelGraph) -> set[str]:
    return {m.module or m.tensor for m in graph.places}


def _hint(graph: ChannelGraph, path: str) -> str:
    inside = sorted(name for name in _known(graph) if name.startswith(f"{path}."))
    if inside:
        return f"Inside {path!r}: {_short(inside)}."
    if any(name.startswith(f"{path}.") for name in graph.shapes) or path in graph.shapes:
        return f"The example input does not reach {path!r}."
    if path in graph.modules:
        return f"{path!r} has no weights of its own: name the layer before or after it."
    return ""


def _apart(ties: _Ties, places: dict[str, list[Member]]) -> str:
    states = {text: ties.stuck(text, members) for text, members in places.items()}
    if any(states.values()):
        return "\n".join(state for state in states.values() if state)
    texts = [f"{m[0].label} is in {ties.groups_text(m)}" for m in places.values()]
    return f"{' and '.join(places)} do not share channels: {', '.join(texts)}."


class _Ties:
    """Who is tied to whom, as a graph over slots."""

    def __init__(self, graph: ChannelGraph) -> None:
        self.graph = graph
        pairs = graph.labels.ties
        empty = np.zeros(0, dtype=np.int64)
        self.first = np.concatenate([a for a, _ in pairs]) if pairs else empty
        self.second = np.concatenate([b for _, b in pairs]) if pairs else empty
        lengths = [len(a) for a, _ in pairs]
        self.ops = np.repeat(np.array(graph.labels.tie_ops, dtype=np.int64), lengths) if pairs else empty

    def slots(self, members: list[Member]) -> Array:
        """Slots of some places, in order."""
        found = []
        for member in members:
            layers = self.graph.labels.params[member.tensor][1]
            found += [compact(k).numpy().ravel() for k in layers if max(axes(k), default=0) == member.axis]
        return np.concatenate(found)

    def group_of(self, numbers: Array) -> ChannelGroup | None:
        """The first group that holds any of these channels."""
        return next((g for g in self.graph.groups.values() if np.isin(g.channels, numbers).any()), None)

    def groups_text(self, members: list[Member]) -> str:
        numbers = self.graph.component[self.slots(members)]
        inside = [g for g in self.graph.groups.values() if np.isin(g.channels, numbers).any()]
        return " and ".join(f"group {g.name!r} ({g.width} channels)" for g in inside) or "no group"

    # -- why something cannot be cut -----------------------------------------------------------------------------

    @cached_property
    def reasons(self) -> dict[int, tuple[int, str]]:
        """Slot -> (position on the tape, reason), for slots that something froze directly."""
        found: dict[int, tuple[int, str]] = {}
        for slots, op, why in self.graph.labels.frozen_why:
            for slot in slots.tolist():
                if slot not in found or (not found[slot][1] and why):
                    found[slot] = op, why
        for a, b, op in zip(self.first.tolist(), self.second.tolist(), self.ops.tolist(), strict=True):
            if FROZEN in (a, b):
                found.setdefault(a or b, (op, "it meets places that cannot be cut"))
        found.pop(FROZEN, None)
        return found

    @cached_property
    def before(self) -> Array:
        """Slot -> the next slot on the way to the nearest reason; the slot count itself stands for "is one"."""
        count = self.graph.labels.slot_count
        keep = (self.first != FROZEN) & (self.second != FROZEN)
        direct = np.fromiter(self.reasons, dtype=np.int64, count=len(self.reasons))
        one = np.concatenate([self.first[keep], direct])
        other = np.concatenate([self.second[keep], np.full(len(direct), count)])
        links = csr_matrix((np.ones(len(one), dtype=np.int8), (one, other)), shape=(count + 1, count + 1))
        return np.asarray(breadth_first_order(links, count, directed=False)[1])

    def way_to_reason(self, slot: int) -> tuple[list[int], str]:
        """Slots from this one to the nearest that was frozen directly, and why that was."""
        if self.before[slot] < 0:
            return [slot], "it is tied to what cannot be cut"
        path = [slot]
        while self.before[path[-1]] != self.graph.labels.slot_count:
            path.append(int(self.before[path[-1]]))
        op, why = self.reasons[path[-1]]
        where = self.op_text(op) if op >= 0 else ""
        return path, f"{where}: {why}" if where and why else where or why

    def stuck(self, text: str, members: list[Member]) -> str | None:
        """Why none of these places can be cut; None if some can."""
        slots = self.slots(members)
        numbers = self.graph.component[slots]
        if (numbers == self.graph.component[FROZEN]).all():
            path, why = min((self.way_to_reason(int(slot)) for slot in slots), key=lambda found: len(found[0]))
            hops = self.hops(path)
            chain = ["", f"  {members[0].label}", *hops] if hops else []
            return f"{text} cannot be cut: {why}." + "\n".join(chain)
        if self.group_of(numbers) is not None:
            return None
        for name, why in self.graph.rigid.items():
            if any(m.module == name.partition("#")[0] for m in self.holding(numbers)):
                return f"{text} cannot be cut: {why}"
        free = np.unique(numbers[numbers != self.graph.component[FROZEN]])
        if len(free) == 1:
            return f"{text} cannot be cut: all its channels are tied into one."
        return f"{text} cannot be cut: nothing else runs along its channels."

    def holding(self, numbers: Array) -> list[Member]:
        """Places that hold any of these channels."""
        return [m for m in self.graph.places if np.isin(self.graph.component[self.slots([m])], numbers).any()]

    def frozen_outs(self) -> dict[str, list[str]]:
        """Reason -> labels of the layers whose outputs cannot be cut at all for it."""
        found: dict[str, list[str]] = {}
        for member in self.graph.places:
            slots = self.slots([member])
            is_frozen = (self.graph.component[slots] == self.graph.component[FROZEN]).all()
            if member.role == "out" and is_frozen and self.graph.sizes_of_elements.get(member.tensor, (False, 0))[0]:
                _, why = min((self.way_to_reason(int(slot)) for slot in slots), key=lambda way: len(way[0]))
                if member.label not in (label for labels in found.values() for label in labels):
                    found.setdefault(why, []).append(member.label)
        return found

    # -- chains --------------------------------------------------------------------------------------------------

    def path(self, source: int, targets: Array) -> list[int]:
        """Slots on a shortest way from one to any of the targets."""
        size = self.graph.labels.slot_count
        keep = (self.first != FROZEN) & (self.second != FROZEN)
        ones = np.ones(int(keep.sum()), dtype=np.int8)
        links = csr_matrix((ones, (self.first[keep], self.second[keep])), shape=(size, size))
        order, before = breadth_first_order(links, source, directed=False)
        goal = order[np.isin(order, targets)][0]
        path = [int(goal)]
        while path[-1] != source:
            path.append(int(before[path[-1]]))
        return path[::-1]

    def hops(self, path: list[int]) -> list[str]:
        """One line for each tie on a way: the operation, and what it led to."""
        names = self.names if len(path) > 1 else {}
        lines = []
        for a, b in pairwise(path):
            here = np.flatnonzero(((self.first == a) & (self.second == b)) | ((self.first == b) & (self.second == a)))
            op = int(self.ops[here[0]])
            lines.append(f"  - {self.op_text(op)} -> {names.get(b, 'an intermediate result')}")
        return lines

    @cached_property
    def names(self) -> dict[int, str]:
        """Slot -> label of the first place that holds it."""
        names: dict[int, str] = {}
        for member in self.graph.places:
            for slot in self.slots([member]).tolist():
                names.setdefault(slot, member.label)
        return names

    def op_text(self, index: int) -> str:
        """An operation and the module that ran it."""
        if index < 0:
            return "one width for all layers of the module"
        op = self.graph.tape.ops[index]
        return f"{PLAIN.get(op.name, op.name)} in {op.module or 'the model'}"
