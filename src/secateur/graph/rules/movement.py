"""Operations that only move elements: run the very same operation on the labels."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..labels import Labels, along, axes, compact, reshaped
from ..tape import Op, Ref
from ._table import rule


def _uniform_follows(labels: Labels, op: Op) -> None:
    if op.args[0].number in labels.uniform:
        labels.uniform.update(ref.number for ref in op.outs())


def _replayed(op: Op, layer: Tensor) -> Any:
    return op.func(layer, *op.args[1:], **op.kwargs)


@rule(
    "permute",
    "transpose",
    "t",
    "unsqueeze",
    "squeeze",
    "swapaxes",
    "movedim",
    "numpy_T",
)
def strided(labels: Labels, op: Op) -> None:
    """Views that torch makes by strides alone: cheap to run on layers, and stride 0 survives."""
    out: Ref = op.out
    _alias(labels, op)
    result = []
    for layer in labels.get(op.args[0]):
        moved = _replayed(op, layer)
        if axes(moved):
            result.append(moved)
        else:
            labels.freeze(layer)
    labels.set(out, result)


@rule("expand", "broadcast_to")
def expanded(labels: Labels, op: Op) -> None:
    """One value repeated along an axis: channels of their own, as many as what they will meet."""
    strided(labels, op)
    source, out = op.args[0], op.outs()[0]
    if labels.is_uniform(source):
        return
    labels.set(out, [*labels.get(out), *_spread(labels, source, out)])


def _spread(labels: Labels, source: Ref, out: Ref) -> list[Tensor]:
    """Fresh layers for the axes along which one value is repeated."""
    lead = len(out.shape) - len(source.shape)
    made = [d for d, size in enumerate(out.shape) if size > 1 and (d < lead or source.shape[d - lead] == 1)]
    return [along(labels.new(out.shape[d]), d, out.shape) for d in made]


@rule("diagonal", "unfold")
def windowed(labels: Labels, op: Op) -> None:
    """Views that overlap or cross axes: the axes they use cannot be cut, others pass."""
    source: Ref = op.args[0]
    rank = len(source.shape)
    used = {d % rank for d in op.args[1:2] if op.name == "unfold"} or set(range(rank))
    _alias(labels, op)
    result = []
    for layer in labels.get(source):
        gone = axes(layer) & used
        left = labels.drop(layer, gone, "windows slide over it") if gone else layer
        if left is not None:
            result.append(_replayed(op, left))
    labels.set(op.out, result)


@rule("slice", "select", "narrow")
def part(labels: Labels, op: Op) -> None:
    """Part of an axis. Halves (thirds …) of a labelled axis must stay equal, as ``x[:, : c // 2]`` assumes."""
    source: Ref = op.args[0]
    out: Ref = op.out
    _alias(labels, op)
    axis = (op.args[1] if len(op.args) > 1 else op.kwargs.get("dim", 0)) % len(source.shape)
    is_weight = labels.is_weight(source)
    result = []
    for layer in labels.get(source):
        if op.name != "select" and not out.shape[axis] and axis in axes(layer):
            continue  # past the end there is nothing, cut or not
        moved = _replayed(op, layer)
        if is_weight and axis in axes(layer):
            labels.unread.append(compact(layer).reshape(-1).numpy())
        if not axes(moved):
            labels.freeze(_counted(op, layer, axis), "one channel is picked by number")
            continue
        if axis in axes(layer) and op.name == "slice" and len(op.args) > 4 and op.args[4] != 1:
            labels.freeze(layer, "every n-th channel is picked")
            continue
        if op.name != "select" and axis in axes(layer) and 1 < out.shape[axis] < source.shape[axis]:
            _equal_parts(labels, layer, axis, out.shape[axis])
            labels.parts.append(compact(moved))
        result.append(moved)
    labels.set(out, result)


def _counted(op: Op, layer: Tensor, axis: int) -> Tensor:
    """The places of an axis up to the one that is picked by its number (from the end, if that is negative)."""
    width, number = layer.shape[axis], op.args[2] if len(op.args) > 2 else 0
    number = number or 0
    return layer.narrow(axis, width + number, -number) if number < 0 else layer.narrow(axis, 0, number + 1)


def _equal_parts(labels: Labels, layer: Tensor, axis: int, size: int) -> None:
    whole = layer.shape[axis]
    if whole % size == 0:
        parts = layer.split(size, axis)
        for other in parts[1:]:
            labels.tie(parts[0], other)


@rule(
    "split",
    "split_with_sizes",
    "unbind",
    "unsafe_split",
    "unsafe_split_with_sizes",
    "split_copy",
    "split_with_sizes_copy",
)
def parts(labels: Labels, op: Op) -> None:
    """Parts of an axis. Equal parts of a labelled axis keep the same number of channels; unequal ones are
    independent.
    """
    source: Ref = op.args[0]
    outs: list[Ref] = list(op.out)
    for ref in outs:
        labels.view_of[ref.number] = source.number
    _uniform_follows(labels, op)
    position = 1 if op.name == "unbind" else 2
    axis = (op.args[position] if len(op.args) > position else op.kwargs.get("dim", 0)) % len(source.shape)
    results: list[list[Tensor]] = [[] for _ in outs]
    for layer in labels.get(source):
        pieces = _replayed(op, layer)
        if axis in axes(layer) and op.name != "unbind":
            _keep_splittable(labels, op, pieces, axis)
            labels.parts += [compact(piece) for piece in pieces]
        for result, piece in zip(results, pieces, strict=True):
            if axes(piece):
                result.append(piece)
            else:
                labels.freeze(piece, "one channel is picked by number")
    for ref, result in zip(outs, results, strict=True):
        labels.set(ref, result)


def _keep_splittable(labels: Labels, op: Op, pieces: Any, axis: int) -> None:
    sizes = {piece.shape[axis] for piece in pieces}
    if len(sizes) == 1:
        for piece in pieces[1:]:
            labels.tie(pieces[0], piece)
    elif "with_sizes" not in op.name:
        for piece in pieces:
            labels.freeze(piece, "split into unequal parts by one size")


@rule("view", "_unsafe_view", "reshape", "_reshape_alias", "flatten", "unflatten", "view_as", "_reshape_copy", "ravel")
def view(labels: Labels, op: Op) -> None:
    """Regroup axes. A split labelled axis becomes a grid, whose equal blocks are settled at the end."""
    source: Ref = op.args[0]
    out: Ref = op.out
    _alias(labels, op)
    if op.name == "view" and op.args[1:] and isinstance(op.args[1], torch.dtype):
        return labels.set(out, labels.get(source) if out.shape == source.shape else _all_frozen(labels, source))
    result = []
    for layer in labels.get(source):
        if layer.shape == out.shape:
            result.append(layer)
            continue
        moved = reshaped(layer, out.shape)
        if len(axes(moved)) > 1:
            labels.grids.append((compact(moved), op.index))
        if axes(moved):
            result.append(moved)
        else:
            labels.freeze(layer)
    return labels.set(out, result)


def _all_frozen(labels: Labels, ref: Ref) -> list[Tensor]:
    for layer in labels.get(ref):
        labels.freeze(layer)
    return []


@rule(
    "clone",
    "detach",
    "alias",
    "_to_copy",
    "contiguous",
    "lift_fresh",
    "lift_fresh_copy",
    "lift",
    "dropout",
    "view_as_real_copy",
    "native_dropout",
    "feature_dropout",
    "alpha_dropout",
    "_conj",
    "resolve_conj",
    "resolve_neg",
    "to",
    "requires_grad",
    "positive",
    "bernoulli",
    "rrelu_with_noise_functional",
    "_pin_memory",
    "detach_copy",
    "alias_copy",
)
def same(labels: Labels, op: Op) -> None:
    """Same elements in the same places."""
    _alias(labels, op)
    for ref in op.outs():
        labels.set(ref, labels.get(op.args[0]) if ref.shape == op.args[0].shape else [])


@rule("as_strided", "as_strided_copy")
def restrided(labels: Labels, op: Op) -> None:
    """The same places in the same order (a memory format for axes of size 1), or nothing that labels can follow."""
    source, out = op.args[0], op.outs()[0]
    _alias(labels, op)
    strides, step = list(op.args[2]), 1
    is_same = source.shape == out.shape and not (len(op.args) > 3 and op.args[3])
    for size, stride in reversed(list(zip(out.shape, strides, strict=True))):
        is_same = is_same and (size == 1 or stride == step)
        step *= size
    labels.set(out, labels.get(source) if is_same else _all_frozen(labels, source))


@rule("roll", "flip", "fliplr", "flipud")
def rearranged(labels: Labels, op: Op) -> None:
    """Elements change places along some axes; layers that do not vary there stay as they are."""
    dims = op.args[2] if op.name == "roll" and len(op.args) > 2 else op.args[1]
    source: Ref = op.args[0]
    moved = {d % len(source.shape) for d in ([dims] if isinstance(dims, int) else dims)}
    flat = op.name == "roll" and len(op.args) < 3
    _uniform_follows(labels, op)
    result = []
    for layer in labels.get(source):
        varying = axes(layer)
        if varying.isdisjoint(moved) and not flat:
            result.append(layer)
        elif op.name == "roll":  # fewer channels would wrap round at another place
            left = labels.drop(layer, varying if flat else varying & moved, "channels are rolled")
            result += [] if left is None else [left]
        else:
            result.append(_restride(_replayed(op, layer), varying))
    labels.set(op.out, result)


def _restride(layer: Tensor, varying: frozenset[int]) -> Tensor:
    """Give stride 0 back to the axes along which a copied layer is known not to vary."""
    for axis in range(layer.ndim):
        if axis not in varying and layer.shape[axis] > 1:
            layer = layer.narrow(axis, 0, 1).expand(layer.shape)
    return layer


@rule("repeat", "tile")
def repeated(labels: Labels, op: Op) -> None:
    """Tile the whole tensor."""
    out: Ref = op.out
    _uniform_follows(labels, op)
    result = []
    for layer in labels.get(op.args[0]):
        counts = list(op.args[1])
        lead = len(counts) - layer.ndim
        small = compact(layer)
        wide = [1] * lead + list(small.shape)
        result.append(
            small.repeat([c if lead <= d and wide[d] > 1 else 1 for d, c in enumerate(counts)]).expand(out.shape)
        )
    if not labels.is_uniform(op.args[0]):
        result += _spread(labels, op.args[0], out)
    labels.set(out, result)


@rule("repeat_interleave")
def interleaved(labels: Labels, op: Op) -> None:
    """Repeat each element along an axis (grouped-query attention's keys and values)."""
    source: Ref = op.args[0]
    out: Ref = op.out
    repeats = op.args[1] if len(op.args) > 1 else op.kwargs.get("repeats")
    axis = op.args[2] if len(op.args) > 2 else op.kwargs.get("dim")
    result: list[Tensor] = []
    if not isinstance(repeats, int) or axis is None:
        _all_frozen(labels, source)
        return labels.set(out, [])
    for layer in labels.get(source):
        small = compact(layer)
        if small.shape[axis] > 1:
            small = small.repeat_interleave(repeats, axis)
        result.append(small.expand(out.shape))
    return labels.set(out, result)


@rule("cat", "concatenate", "hstack", "vstack")
def concatenated(labels: Labels, op: Op) -> None:
    """Side by side along one axis; along every other axis the parts meet."""
    out: Ref = op.out
    sources: list[Ref] = [ref for ref in op.args[0] if len(ref.shape) == len(out.shape)]
    axis = (op.args[1] if len(op.args) > 1 else op.kwargs.get("dim", 0)) % len(out.shape)
    _join(labels, op, axis, [(ref, ref.shape, labels.get(ref)) for ref in sources])


@rule("stack")
def stacked(labels: Labels, op: Op) -> None:
    """Side by side along a new axis."""
    out: Ref = op.out
    axis = (op.args[1] if len(op.args) > 1 else op.kwargs.get("dim", 0)) % len(out.shape)
    sources = []
    for ref in op.args[0]:
        shape = (*ref.shape[:axis], 1, *ref.shape[axis:])
        sources.append((ref, shape, [layer.unsqueeze(axis) for layer in labels.get(ref)]))
    _join(labels, op, axis, sources)


def _join(labels: Labels, op: Op, axis: int, sources: list[tuple[Ref, tuple[int, ...], list[Tensor]]]) -> None:
    from ..labels import Operand

    out: Ref = op.out
    if out.shape[axis]:  # an empty part (what a rotation over all dimensions leaves over) says nothing
        sources = [source for source in sources if source[1][axis]]
    if all(labels.is_uniform(ref) and not layers for ref, _, layers in sources):
        if len(sources) == 1:
            labels.uniform.add(out.number)
        return labels.set(out, [])
    thin = tuple(1 if d == axis else s for d, s in enumerate(out.shape))
    lengthwise = [[layer for layer in layers if axis in axes(layer)] for _, _, layers in sources]
    operands = []
    for (ref, shape, layers), own in zip(sources, lengthwise, strict=True):
        across = [layer.narrow(axis, 0, 1) for layer in layers if axis not in axes(layer)]
        # a part whose own axis-wise layer also spans other axes is labelled there: it does not block them
        spanned = frozenset().union(*map(axes, own)) - {axis}
        size = tuple(1 if d == axis or d in spanned else s for d, s in enumerate(shape))
        operands.append(Operand(size, across, labels.is_uniform(ref)))
    result = [layer.expand(out.shape) for layer in labels.meet(thin, operands)]
    if any(lengthwise):
        result += _lengthwise(axis, [s for _, s, _ in sources], lengthwise, out.shape)
    return labels.set(out, result)


def _lengthwise(
    axis: int, shapes: list[tuple[int, ...]], layers: list[list[Tensor]], shape: tuple[int, ...]
) -> list[Tensor]:
    """Lay layers that vary along the joined axis end to end; parts without one are frozen there (slot 0)."""
    span = frozenset({axis}).union(*(axes(layer) for own in layers for layer in own))
    pieces = []
    for size, own in zip(shapes, layers, strict=True):
        small = [s if d in span else 1 for d, s in enumerate(size)]
        if own:
            strides = [t if d in span else 0 for d, t in enumerate(own[0].stride())]
            pieces.append(own[0].as_strided(small, strides))
        else:
            pieces.append(torch.zeros(1, dtype=torch.long).expand(small))
    return [torch.cat(pieces, axis).expand(shape)]


@rule("pixel_shuffle", "pixel_unshuffle", "channel_shuffle", "native_channel_shuffle")
def shuffled(labels: Labels, op: Op) -> None:
    """Channels to space and back: run it on a layer cut to what varies."""
    out: Ref = op.out
    result = []
    for layer in labels.get(op.args[0]):
        varying = axes(layer)
        if not varying <= {layer.ndim - 3}:
            layer_or_none = labels.drop(layer, varying - {layer.ndim - 3})
            if layer_or_none is None:
                continue
            layer = layer_or_none
        if "channel_shuffle" in op.name:
            block = layer.unflatten(1, (op.args[1], -1))
            labels.tie(block.narrow(1, 0, 1).expand(block.shape), block)
        moved = _replayed(op, layer)
        if op.name == "pixel_shuffle":
            moved = labels.collapse(moved, [moved.ndim - 1, moved.ndim - 2])
        result.append(_restride(moved, frozenset({moved.ndim - 3})))
    labels.set(out, result)


def _alias(labels: Labels, op: Op) -> None:
    if op.outs()[0].number != op.args[0].number:  # an in-place view would be a view of itself
        labels.view_of[op.outs()[0].number] = op.args[0].number
    _uniform_follows(labels, op)
