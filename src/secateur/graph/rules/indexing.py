"""Reading and writing by index tensors: indexed axes cannot be cut, the others pass."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import Tensor

from ..labels import Labels, Operand, along, axes, compact, place
from ..tape import Op, Ref
from ._table import rule


def freeze_positions(labels: Labels, refs: Iterable[Any]) -> None:
    """Freeze tensors that hold positions: what they name is not renumbered."""
    for ref in refs:
        if isinstance(ref, Ref):
            for layer in labels.get(ref):
                labels.freeze(layer, "it holds positions")


@rule("index", "_unsafe_index")
def picked(labels: Labels, op: Op) -> None:
    """``x[i, :, j]``: the index tensors' axes replace the indexed ones (in place if neighbours, else in front)."""
    source: Ref = op.args[0]
    out: Ref = op.out
    indices: list[Any] = list(op.args[1])
    freeze_positions(labels, indices)
    indexed = [d for d, i in enumerate(indices) if isinstance(i, Ref)]
    rest = [d for d in range(len(source.shape)) if d not in indexed]
    fresh = len(out.shape) - len(rest)
    neighbours = indexed == list(range(indexed[0], indexed[0] + len(indexed)))
    start = indexed[0] if neighbours else 0
    targets = [k for k in range(len(out.shape)) if not start <= k < start + fresh]
    result = []
    for layer in labels.get(source):
        gone = axes(layer) & set(indexed)
        left = labels.drop(layer, gone, "picked by index") if gone else layer
        if left is not None and fresh >= 0:
            thin = left
            for d in sorted(indexed, reverse=True):
                thin = thin.select(d, 0)
            result.append(place(thin, targets, out.shape))
    labels.set(out, result)


@rule("index_select", "gather", "take_along_dim", "take")
def selected(labels: Labels, op: Op) -> None:
    """Look-up along one axis; the others pass (for gather the index may be narrower there only if unlabelled)."""
    source: Ref = op.args[0]
    out: Ref = op.out
    axis = (op.args[1] if isinstance(op.args[1], int) else 0) % max(len(source.shape), 1)
    if op.name == "index_select" and labels.state.get(op.args[2].number) in labels.selecting:
        labels.set(out, _chosen(labels, source, op.args[2], axis, out.shape))
        return
    freeze_positions(labels, op.refs()[1:])
    result = []
    for layer in labels.get(source):
        gone = axes(layer) & {axis}
        changed = {
            d for d in axes(layer) if len(out.shape) != layer.ndim or (d != axis and out.shape[d] != layer.shape[d])
        }
        blocked = gone | changed
        if op.name != "index_select":  # gather's index tensor has every axis, and it is not narrowed
            blocked |= axes(layer) & _sized_axes(op)
        left = labels.drop(layer, blocked, "picked by index") if blocked else layer
        if left is not None:
            result.append(compact(left).expand(out.shape))
    labels.set(out, result)


def _chosen(labels: Labels, source: Ref, index: Ref, axis: int, shape: tuple[int, ...]) -> list[Tensor]:
    """A `ChannelSelect`: what it reads stays whole, and what it passes on may go, place by place of its index."""
    result = []
    for layer in labels.get(source):
        if axis in axes(layer):
            labels.freeze(layer, "a channel selection reads it by number")
        else:
            result.append(compact(layer).expand(shape))
    return result + [along(compact(own), axis, shape) for own in labels.get(index)]


def _sized_axes(op: Op) -> frozenset[int]:
    index = next((ref for ref in op.refs()[1:]), None)
    return frozenset(d for d, size in enumerate(index.shape) if size > 1) if index is not None else frozenset()


@rule("index_put", "_unsafe_index_put", "_index_put_impl")
def put(labels: Labels, op: Op) -> None:
    """``x[i] = v``: as reading, with the values meeting what is not indexed."""
    source: Ref = op.args[0]
    out: Ref = op.outs()[0]
    indices = list(op.args[1])
    values: Ref = op.args[2]
    freeze_positions(labels, indices)
    indexed = {d for d, i in enumerate(indices) if isinstance(i, Ref)}
    leading = indexed == set(range(len(indexed)))
    rest = len(source.shape) - len(indexed)
    kept, fit = [], []
    for layer in labels.get(source):
        gone = axes(layer) & indexed
        left = labels.drop(layer, gone, "written by index") if gone else layer
        if left is not None:
            kept.append(left)
    for layer in labels.get(values):
        offset = len(values.shape) - rest
        trailing = frozenset(range(offset, len(values.shape)))
        left = layer if leading and axes(layer) <= trailing else labels.drop(layer, axes(layer), "written by index")
        if left is not None:
            thin = left
            for _ in range(offset):
                thin = thin.select(0, 0)
            fit.append(place(thin, list(range(len(source.shape) - rest, len(source.shape))), source.shape))
    _meet_into(labels, out, source, kept, values, fit, tuple(range(len(source.shape) - rest, len(source.shape))))


def _meet_into(
    labels: Labels, out: Ref, source: Ref, kept: list[Tensor], values: Ref, fit: list[Tensor], shared: tuple[int, ...]
) -> None:
    offset = len(values.shape) - len(shared)
    size = [1] * len(source.shape)
    for k, axis in enumerate(shared):
        size[axis] = values.shape[offset + k] if offset + k >= 0 else 1
    operands = [
        Operand(source.shape, kept, labels.is_uniform(source)),
        Operand(tuple(size), fit, labels.is_uniform(values)),
    ]
    labels.uniform.discard(out.number)
    labels.set(out, labels.meet(source.shape, operands))


@rule(
    "index_add",
    "index_copy",
    "scatter",
    "scatter_add",
    "scatter_reduce",
    "index_fill",
    "index_reduce",
    "slice_scatter",
    "select_scatter",
)
def scattered(labels: Labels, op: Op) -> None:
    """Written along one axis by index; along the others source and target meet."""
    source: Ref = op.args[0]
    out: Ref = op.outs()[0]
    axis_arg = op.args[2] if op.name in ("slice_scatter", "select_scatter") else op.args[1]
    axis = (axis_arg if isinstance(axis_arg, int) else 0) % max(len(source.shape), 1)
    others = [ref for ref in op.refs()[1:] if len(ref.shape) == len(source.shape) and ref.dtype == source.dtype]
    freeze_positions(labels, [ref for ref in op.refs()[1:] if ref not in others])
    operands = []
    for ref in [source, *others]:
        kept = []
        for layer in labels.get(ref):
            gone = axes(layer) & {axis} | {d for d in axes(layer) if layer.shape[d] != source.shape[d]}
            left = labels.drop(layer, gone, "written by index") if gone else layer
            if left is not None:
                kept.append(compact(left).expand(source.shape))
        size = tuple(1 if d == axis else s for d, s in enumerate(ref.shape))
        operands.append(Operand(size, kept, labels.is_uniform(ref)))
    if op.name.startswith("scatter"):
        index = op.args[2]
        if isinstance(index, Ref) and not others:
            operands.append(Operand(tuple(1 if d == axis else s for d, s in enumerate(index.shape)), []))
    labels.uniform.discard(out.number)
    labels.set(out, labels.meet(out.shape, operands))


@rule(
    "nonzero",
    "one_hot",
    "bincount",
    "unique",
    "_unique2",
    "unique_consecutive",
    "histc",
    "searchsorted",
    "bucketize",
    "masked_select",
)
def listed(labels: Labels, op: Op) -> None:
    """Results whose size depends on values: what they read cannot be cut."""
    for ref in op.refs():
        for layer in labels.get(ref):
            labels.freeze(layer, "read by value")


@rule("tril", "triu")
def triangular(labels: Labels, op: Op) -> None:
    """Order matters along the last two axes."""
    source: Ref = op.args[0]
    result = []
    last = {len(source.shape) - 1, len(source.shape) - 2}
    for layer in labels.get(source):
        gone = axes(layer) & last
        left = labels.drop(layer, gone, "its order is used") if gone else layer
        if left is not None:
            result.append(left)
    if labels.is_uniform(source) and source.number in labels.uniform:
        labels.uniform.discard(op.outs()[0].number)
    labels.set(op.outs()[0], result)
