"""The modules of a residual branch: which of them hand its result out, and how sizes change on the way."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from torch import Tensor

from .labels import axes
from .tape import Op, Ref

if TYPE_CHECKING:
    from .groups import ChannelGraph

Version = tuple[int, int]
Window = tuple[int, int, int, int]  # kernel, stride, padding, dilation along one axis
POOLS = frozenset(("max_pool1d max_pool2d_with_indices max_pool2d max_pool3d_with_indices avg_pool1d avg_pool2d "
                   "avg_pool3d").split())  # fmt: skip


@dataclass(frozen=True)
class Part:
    """One module of a branch.

    Attributes:
        module: its path.
        axis: where channels lie in what it is given, counted from the end (-3 for images).
        result: the operation and the tensor number of the result that leaves the branch's modules; None = none does.
        steps: windows that change the sizes behind the channel axis from the branch's input to this result, in order,
            one window for each axis.
    """

    module: str
    axis: int
    result: Version | None = None
    steps: tuple[tuple[Window, ...], ...] = ()


class Known(Protocol):
    """What `secateur.graph.branches.Versions` knows."""

    reads: list[list[Version]]

    def read(self, op: Op, number: int) -> Version:
        """Return which version of a tensor an operation read."""


def parts_of(
    graph: ChannelGraph, uses: Known, ops: frozenset[int], owners: Mapping[int, str], result: Version
) -> tuple[tuple[Part, ...], frozenset[int]]:
    """Return the modules of a branch, and the operations that other code runs between their results and the addition.

    Args:
        graph: the channel graph.
        uses: who read what.
        ops: the branch's operations.
        owners: operation -> the branch's module that runs it; others are run by code around these modules.
        result: what the branch computes.
    """
    exits: dict[str, Version] = {}
    tail: set[int] = set()
    waiting = [result]
    while waiting:
        version = waiting.pop()
        index = version[0]
        if index not in ops or index in tail:
            continue
        if index in owners:
            exits.setdefault(owners[index], version)
        else:
            tail.add(index)
            waiting += uses.reads[index]
    found: list[Part] = []
    inside = {k: k in owners for k in ops}
    for module in dict.fromkeys(owners[k] for k in sorted(owners)):
        given = _given(graph, uses, owners, module)
        axis = _carried(graph, uses, inside, given, {part.module: part.axis for part in found}, owners)
        axis = axis if axis is not None else _axis(graph, ops, given)
        leaving = exits.get(module)
        steps = _steps(graph, uses, inside, leaving, -1 - axis) if leaving is not None else ()
        found.append(Part(module, axis, leaving, steps))
    return tuple(found), frozenset(tail)


def _given(graph: ChannelGraph, uses: Known, owners: Mapping[int, str], module: str) -> Version:
    """The first activation that a module's operations read from outside of it."""
    own = [k for k in sorted(owners) if owners[k] == module]
    read = [version for k in own for version in uses.reads[k] if version[1] not in graph.labels.static]
    return next((version for version in read if owners.get(version[0]) != module), read[0])


def _carried(
    graph: ChannelGraph,
    uses: Known,
    ops: Mapping[int, bool],
    given: Version,
    known: Mapping[str, int],
    owners: Mapping[int, str],
) -> int | None:
    """Where the code between two modules puts the channels of the first; None if that cannot be followed."""
    index = given[0]
    if index not in ops:
        return None
    if index in owners:
        return known.get(owners[index])
    op = graph.tape.ops[index]
    source = next((v for v in uses.reads[index] if v[1] not in graph.labels.static), None)
    if source is None:
        return None
    before = _carried(graph, uses, ops, source, known, owners)
    rank = len(op.outs()[0].shape)
    if before is None or any(len(ref.shape) != rank for ref in op.refs() if ref.number == source[1]):
        return None
    if op.name == "permute":
        return [d % rank for d in op.args[1]].index(before + rank) - rank
    if op.name in ("transpose", "t"):
        pair = [d % rank - rank for d in (op.args[1:3] or (0, 1))]
        return pair[1 - pair.index(before)] if before in pair else before
    return before


def _axis(graph: ChannelGraph, ops: Iterable[int], version: Version) -> int:
    """Where the channels of a tensor lie, counted from the end: by its labels, else as its operations have it."""
    index, number = version
    layers: list[Tensor] = []
    rank = 0
    for op in graph.tape.ops[index : index + 1] if index >= 0 else ():
        for ref, own in zip(op.outs(), graph.op_layers[index], strict=False):
            if ref.number == number:
                layers, rank = own, len(ref.shape)
    labelled = {axis for layer in layers for axis in axes(layer)}
    if len(labelled) == 1:
        return labelled.pop() - rank
    images = [graph.tape.ops[k] for k in ops if graph.tape.ops[k].name == "convolution"]
    return 1 - len(images[0].args[0].shape) if images else -1


def _steps(
    graph: ChannelGraph, uses: Known, ops: Mapping[int, bool], result: Version, count: int
) -> tuple[tuple[Window, ...], ...]:
    """Windows on the way from the branch's input to a result, that change one of the `count` last sizes.

    `ops` are the branch's operations, and whether a module of the branch runs each: others will run as they did.
    """
    steps: list[tuple[Window, ...]] = []
    version: Version | None = result
    while version is not None and version[0] in ops:
        op = graph.tape.ops[version[0]]
        windows = _windows(op, count) if ops[op.index] else ()
        if any(stride != 1 or (kernel - 1) * spread != 2 * pad for kernel, stride, pad, spread in windows):
            steps.append(windows)
        version = next((v for v in uses.reads[op.index] if v[0] >= 0 and v[1] not in graph.labels.static), None)
    return tuple(reversed(steps))


def _windows(op: Op, count: int) -> tuple[Window, ...]:
    if op.name == "convolution" and not op.args[6]:
        weight: Ref = op.args[1]
        kernel, (stride, pad, spread) = weight.shape[2:], op.args[3:6]
    elif op.name in POOLS:
        kernel, stride, pad, spread = _pooling(op)
    else:
        return ()
    if len(kernel) != count:
        return ()
    each: list[Any] = [kernel, _wide(stride, count), _wide(pad, count), _wide(spread, count)]
    return tuple((int(k), int(s), int(p), int(d)) for k, s, p, d in zip(*each, strict=True))


def _pooling(op: Op) -> tuple[Any, Any, Any, Any]:
    args = [*op.args[1:], *[None] * 4]
    spread = args[3] if op.name.startswith("max") and args[3] else [1]
    return args[0], args[1] or args[0], args[2] or [0], spread


def _wide(values: Any, count: int) -> list[int]:
    return [values] * count if isinstance(values, int) else list(values) if len(values) == count else [*values] * count


def sizes_after(sizes: Iterable[int], steps: Iterable[tuple[Window, ...]]) -> list[int]:
    """Return sizes after some windows have passed over them.

    >>> sizes_after([8, 7], [((3, 2, 1, 1), (3, 2, 1, 1))])
    [4, 4]
    """
    found = list(sizes)
    for windows in steps:
        pairs = zip(found, windows, strict=True)
        found = [
            (size + 2 * pad - spread * (kernel - 1) - 1) // stride + 1 for size, (kernel, stride, pad, spread) in pairs
        ]
    return found
