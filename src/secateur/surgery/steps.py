"""What a replay of the smaller model must show: the traced operations, on the same tensors, with the plan's sizes.

Shapes alone would not tell a wrong attribute from a right one: an index into a list of features may happen to equal a
width. So a step also says what it read and with which numbers it was called.

How torch carries out an operation depends on memory layout (a reshape copies or not, a linear layer flattens or not)
and on axes of size 1, and both may differ after a cut. So copies are left out, views have one name, and a composite
call (a linear layer, a matrix product, an einsum) is one step.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..graph.groups import ChannelGraph
from ..graph.labels import axes, compact
from ..graph.tape import Op, Ref, Tape

Array = np.ndarray[Any, Any]
Shapes = list[tuple[int, ...] | None]
Source = tuple[str, Any]

COPIES = frozenset(("clone", "contiguous", "detach", "alias", "_to_copy", "lift_fresh", "lift_fresh_copy"))
VIEWS = frozenset(("_unsafe_view", "_reshape_alias", "reshape", "_reshape_copy"))
SIZED = frozenset(  # called with sizes, which follow the plan; what they make is compared by shape
    "view _unsafe_view reshape _reshape_alias _reshape_copy expand repeat tile split split_with_sizes unsafe_split "
    "unsafe_split_with_sizes split_copy split_with_sizes_copy unflatten unfold as_strided slice narrow zeros ones full "
    "empty new_zeros new_ones new_full new_empty empty_strided new_empty_strided arange linspace eye rand randn "
    "constant_pad_nd native_layer_norm rms_norm _fused_rms_norm affine_grid_generator repeat_interleave "
    "native_group_norm convolution channel_shuffle".split()
)
PARTLY_SIZED = {
    "full": slice(1, 2),
    "new_full": slice(2, 3),
    "native_group_norm": slice(6, None),
    "convolution": slice(3, 8),
}  # what of the arguments does not follow


@dataclass
class Step:
    """One operation of a replay, or a whole composite call.

    Attributes:
        name: the operation; "call" for a whole composite call.
        module: path of the running module.
        index: of its last operation on the tape.
        shapes: of its results; None = any (a constant, whose size what it meets decides).
        sources: where the tensors it read come from; in no order for a composite call.
        settings: what it was called with beside tensors and sizes.
        bounds: where a slice starts and ends.
        literals: numbers of Python that were made tensors for it.
        is_vague: nothing is said of it but that something runs.
    """

    name: str
    module: str
    index: int
    shapes: Shapes
    sources: tuple[Source, ...] | frozenset[Source] = ()
    settings: tuple[Any, ...] = ()
    bounds: tuple[int, int] | None = None
    literals: tuple[Any, ...] = ()
    is_vague: bool = False

    def differs(self, known: Step) -> str | None:
        """Say how this step is not the expected one; None if it is."""
        if known.is_vague:
            return None
        if self.name != known.name:
            return f"{self.name} ran where {known.name} was expected"
        if len(self.shapes) != len(known.shapes) or any(
            here != there for here, there in zip(self.shapes, known.shapes, strict=True) if there is not None
        ):
            return f"{self.name} gave {_text(self.shapes)}, expected {_text(known.shapes)}"
        if known.bounds is not None and self.bounds != known.bounds:
            return f"it took places {self.bounds} of an axis, expected {known.bounds}"
        if self.settings != known.settings:
            return f"it was called with {_listed(self.settings)} where {_listed(known.settings)} was expected"
        if self.literals != known.literals:
            return f"a tensor was made of {_numbers_from(self, known)} where {_numbers_from(known, self)} was expected"
        if self.sources != known.sources:
            return f"{self.name} read other tensors than in the original"
        return None


def _numbers_from(step: Step, other: Step) -> str:
    """The numbers of a step's literals from the first on that is not the other's; long tables are not listed."""
    own, its = step.literals, other.literals
    start = next((k for k, (a, b) in enumerate(zip(own, its, strict=False)) if a != b), min(len(own), len(its)))
    return _listed(own[start : start + 4])


def _listed(settings: tuple[Any, ...]) -> str:
    return ", ".join(map(str, settings)) or "nothing"


def _text(shapes: Shapes) -> str:
    return ", ".join("anything" if shape is None else str(list(shape)) for shape in shapes)


def is_inside(path: str, modules: Iterable[str]) -> bool:
    """Whether a module path is one of these, or below one."""
    return any(path == m or path.startswith(f"{m}.") for m in modules)


def results(op: Op) -> list[Ref]:
    """Tensors an operation returns for use: all parts of a split, but not the statistics beside a norm's result."""
    return op.outs()[:1] if isinstance(op.out, tuple) else op.outs()


def shapes_after(graph: ChannelGraph, alive: Array) -> list[list[tuple[int, ...]]]:
    """Return the shapes of each operation's results once the dead channels are gone."""
    known: dict[Any, dict[int, Array]] = {}

    def lines(layer: Tensor) -> dict[int, Array]:
        key = (compact(layer).data_ptr(), layer.shape, layer.stride())  # an empty layer has no place of its own
        if key not in known:
            known[key] = lines_of(graph, layer, alive)
        return known[key]

    after = []
    for op, layers in zip(graph.tape.ops, graph.op_layers, strict=True):
        shapes = []
        for ref, own in zip(results(op), layers, strict=False):
            left: dict[int, Array] = {}
            for layer in own:
                for axis, line in lines(layer).items():
                    left[axis] = left[axis] & line if axis in left else line
            shapes.append(tuple(int(left[d].sum()) if d in left else size for d, size in enumerate(ref.shape)))
        after.append(shapes)
    return after


def groups_after(graph: ChannelGraph, alive: Array) -> dict[int, tuple[int, int]]:
    """Return the position of each convolution that loses whole groups -> how many it had, and how many are left."""
    found = {}
    for op, layers in zip(graph.tape.ops, graph.op_layers, strict=True):
        before = int(op.args[8]) if op.name == "convolution" else 1
        if before > 1:
            line = living(graph, layers[0], 1, op.out.shape[1], alive)
            after = int(line.reshape(before, -1).any(axis=1).sum())
            if after < before:
                found[op.index] = before, after
    return found


def lines_of(graph: ChannelGraph, layer: Tensor, alive: Array) -> dict[int, Array]:
    """Return axis -> which of its places stay, (size,) bool, for every axis of a layer that may lose something."""
    places = alive[graph.component[compact(layer).numpy()]]
    if places.all():
        return {}
    return {axis: places.any(axis=tuple(d for d in range(places.ndim) if d != axis)) for axis in axes(layer)}


def expected_steps(
    graph: ChannelGraph,
    alive: Array,
    skipped: Sequence[str],
    after: list[list[tuple[int, ...]]],
    vague: Collection[int] = (),
) -> list[Step]:
    """Return what a replay must show after a cut.

    Args:
        graph: the channel graph.
        alive: which channels stay.
        skipped: modules that are left out.
        after: shapes of each operation's results after the cut.
        vague: operations of whose results nothing is said, since they lie in a branch that is taken out.
    """
    reader = _Reader(graph.tape, skipped)
    for op, own_shapes in zip(graph.tape.ops, after, strict=True):
        shapes: Shapes = [
            None if ref.number in graph.labels.uniform else shape
            for ref, shape in zip(results(op), own_shapes, strict=True)
        ]
        reader.read(op, shapes, None if op.index in vague else _bounds_after(graph, op, alive))
        if op.index in vague and reader.steps and reader.steps[-1].index == op.index:
            reader.steps[-1].is_vague = True
        if op.name == "native_group_norm" and op.args[4] == op.args[6] and shapes[0] is not None:
            own = reader.steps[-1]
            if own.index == op.index:  # one channel to a group: the groups follow the channels
                own.settings = (shapes[0][1], *own.settings[1:])
    return reader.steps


def found_steps(tape: Tape, skipped: Sequence[str]) -> list[Step]:
    """Return what a replay did."""
    reader = _Reader(tape, skipped)
    for op in tape.ops:
        reader.read(op, [r.shape for r in results(op)], _bounds(op))
    return reader.steps


class _Reader:
    """Turns operations into steps, and knows which step made each tensor."""

    def __init__(self, tape: Tape, skipped: Sequence[str]) -> None:
        self.state, self.skipped = tape.state, skipped
        self.steps: list[Step] = []
        self.maker: dict[int, Source] = {}
        self.outside = 0
        self.call = 0
        self.literals: tuple[Any, ...] = ()

    def read(self, op: Op, shapes: Shapes, bounds: tuple[int, int] | None) -> None:
        if is_inside(op.module, self.skipped):
            self._made(op, ("module", next(m for m in self.skipped if is_inside(op.module, [m]))))
            return
        self.literals += op.literals
        if op.name in COPIES and not op.call:
            self._made(op, self._source(op.refs()[0]) if op.refs() else ("made", len(self.steps)))
        elif op.call and op.call == self.call:
            self._go_on(op, shapes)
        else:
            self.call = op.call
            name = "call" if op.call else "view" if op.name in VIEWS else op.name
            settings = _numbers(op) if op.call else _settings(op)
            step = Step(name, op.module, op.index, shapes, (), settings, None if op.call else bounds, self.literals)
            self.literals = ()
            self.steps.append(step)
            step.sources = (frozenset if op.call else tuple)(self._source(ref) for ref in op.refs())
            self._made(op, ("step", len(self.steps)))

    def _go_on(self, op: Op, shapes: Shapes) -> None:
        """Another operation of the composite call that is the latest step."""
        step, own = self.steps[-1], ("step", len(self.steps))
        step.sources = frozenset(step.sources).union(self._source(ref) for ref in op.refs()) - {own}
        if more := _numbers(op):
            step.settings = tuple(sorted({*step.settings, *more}))
        step.index, step.shapes = op.index, shapes
        self._made(op, own)

    def _made(self, op: Op, source: Source) -> None:
        for ref in op.outs():
            self.maker[ref.number] = source

    def _source(self, ref: Ref) -> Source:
        found = self.maker.get(ref.number)
        if found is None:
            name = self.state.get(ref.number)
            if name is None:
                self.outside += 1
            found = self.maker[ref.number] = ("state", name) if name is not None else ("outside", self.outside)
        return found


def _numbers(op: Op) -> tuple[Any, ...]:
    """Numbers in element-wise arithmetic."""
    if torch.Tag.pointwise not in op.func.tags:
        return ()
    return tuple(a for a in (*op.args, *op.kwargs.values()) if type(a) is float)


def _settings(op: Op) -> tuple[Any, ...]:
    args = op.args
    if op.name in SIZED:
        args = op.args[PARTLY_SIZED[op.name]] if op.name in PARTLY_SIZED else ()
    values = (*args, *(value for key, value in op.kwargs.items() if op.name not in SIZED or key == "value"))
    return tuple(plain for value in values if (plain := _plain(value)) is not None)


def _plain(value: Any) -> Any:
    """Return a value without tensors, dtypes and devices; None if nothing is left."""
    if type(value) in (int, float, complex, bool, str):
        return value
    if isinstance(value, (list, tuple)):
        inner = tuple(plain for item in value if (plain := _plain(item)) is not None)
        return inner or None
    return None


def _bounds(op: Op) -> tuple[int, int] | None:
    """Normalised start and end of a slice; None for other operations."""
    if op.name != "slice" or not op.args:
        return None
    source: Ref = op.args[0]
    axis = (op.args[1] if len(op.args) > 1 else 0) % len(source.shape)
    start, end = (op.args[k] if len(op.args) > k else None for k in (2, 3))
    begin, stop, _ = slice(start, end).indices(source.shape[axis])
    return begin, max(begin, stop)


def _bounds_after(graph: ChannelGraph, op: Op, alive: Array) -> tuple[int, int] | None:
    bounds = _bounds(op)
    if bounds is None:
        return None
    source: Ref = op.args[0]
    axis = (op.args[1] if len(op.args) > 1 else 0) % len(source.shape)
    line = living(graph, graph.labels.layers.get(source.number, []), axis, source.shape[axis], alive)
    return int(line[: bounds[0]].sum()), int(line[: bounds[1]].sum())


def living(graph: ChannelGraph, layers: list[Tensor], axis: int, size: int, alive: Array) -> Array:
    """Return (size,) bool: which places of an axis stay."""
    line = np.ones(size, dtype=bool)
    for layer in layers:
        line &= lines_of(graph, layer, alive).get(axis, True)
    return line
