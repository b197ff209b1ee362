"""What a replay of the smaller model must show: the traced operations, with every size as the plan makes it.

How torch carries out an operation depends on memory layout (a reshape copies or not, a linear layer flattens or not)
and on axes of size 1, and both may differ after a cut. So copies are left out, views have one name, and a composite
call (a linear layer, a matrix product, an einsum) is one step.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..graph.groups import ChannelGraph
from ..graph.labels import axes, compact
from ..graph.tape import Op, Ref, Tape

Array = np.ndarray[Any, Any]
COPIES = frozenset(("clone", "contiguous", "detach", "alias", "_to_copy", "lift_fresh", "lift_fresh_copy"))
VIEWS = frozenset(("_unsafe_view", "_reshape_alias", "reshape", "_reshape_copy"))
Shapes = list[tuple[int, ...] | None]


@dataclass
class Step:
    """One operation of a replay, or a whole composite call.

    Attributes:
        name: the operation; "call" for a whole composite call.
        module: path of the running module.
        index: of its last operation on the tape.
        shapes: of its results; None = any (a constant, whose size what it meets decides).
        bounds: where a slice starts and ends.
        scalars: numbers in element-wise arithmetic.
    """

    name: str
    module: str
    index: int
    shapes: Shapes
    bounds: tuple[int, int] | None = None
    scalars: list[Any] = field(default_factory=list)

    def differs(self, known: Step) -> str | None:
        """Say how this step is not the expected one; None if it is."""
        if self.name != known.name:
            return f"{self.name} ran where {known.name} was expected"
        if len(self.shapes) != len(known.shapes) or any(
            here != there for here, there in zip(self.shapes, known.shapes, strict=True) if there is not None
        ):
            return f"{self.name} gave {_text(self.shapes)}, expected {_text(known.shapes)}"
        if known.bounds is not None and self.bounds != known.bounds:
            return f"it took places {self.bounds} of an axis, expected {known.bounds}"
        if self.scalars != known.scalars:
            return f"it computed with the numbers {self.scalars}, expected {known.scalars}: they follow a width"
        return None


def _text(shapes: Shapes) -> str:
    return ", ".join("anything" if shape is None else str(list(shape)) for shape in shapes)


def is_inside(path: str, modules: Iterable[str]) -> bool:
    """Whether a module path is one of these, or below one."""
    return any(path == m or path.startswith(f"{m}.") for m in modules)


def results(op: Op) -> list[Ref]:
    """Tensors an operation returns for use: all parts of a split, but not the statistics beside a norm's result."""
    return op.outs()[:1] if isinstance(op.out, tuple) else op.outs()


def expected_steps(graph: ChannelGraph, alive: Array, skipped: Sequence[str]) -> list[Step]:
    """Return what a replay must show after a cut; modules in `skipped` are left out."""
    made: list[tuple[Op, Step]] = []
    for op, layers in zip(graph.tape.ops, graph.op_layers, strict=True):
        if is_inside(op.module, skipped):
            continue
        shapes: Shapes = [
            None if r.number in graph.labels.uniform else graph.shape_after(own, r.shape, alive) if own else r.shape
            for r, own in zip(results(op), layers, strict=False)
        ]
        made.append((op, Step(op.name, op.module, op.index, shapes, _bounds_after(graph, op, alive), _scalars(op))))
    return list(_canonical(made))


def found_steps(tape: Tape, skipped: Sequence[str]) -> list[Step]:
    """Return what a replay did."""
    made = [
        (op, Step(op.name, op.module, op.index, [r.shape for r in results(op)], _bounds(op), _scalars(op)))
        for op in tape.ops
        if not is_inside(op.module, skipped)
    ]
    return list(_canonical(made))


def _canonical(made: list[tuple[Op, Step]]) -> Iterator[Step]:
    pending: tuple[int, Step] | None = None
    for op, step in made:
        if pending is not None and op.call != pending[0]:
            yield pending[1]
            pending = None
        if op.call:
            pending = op.call, Step("call", step.module, step.index, step.shapes)
        elif step.name not in COPIES:
            step.name = "view" if step.name in VIEWS else step.name
            yield step
    if pending is not None:
        yield pending[1]


def _scalars(op: Op) -> list[Any]:
    if torch.Tag.pointwise not in op.func.tags:
        return []
    return [a for a in (*op.args, *op.kwargs.values()) if type(a) in (int, float, complex)]


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
        if axis in axes(layer):
            places = alive[graph.component[compact(layer).numpy()]]
            line &= places.any(axis=tuple(d for d in range(places.ndim) if d != axis))
    return line
