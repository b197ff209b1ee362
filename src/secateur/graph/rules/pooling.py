"""Pooling, resampling and padding: channels pass, positions do not."""

from __future__ import annotations

import torch
from torch import Tensor

from ..labels import Labels, along, axes, compact, place
from ..tape import Op, Ref
from ._table import rule


@rule(
    "max_pool1d",
    "max_pool2d",
    "max_pool3d",
    "max_pool2d_with_indices",
    "max_pool3d_with_indices",
    "avg_pool1d",
    "avg_pool2d",
    "avg_pool3d",
    "_adaptive_avg_pool2d",
    "_adaptive_avg_pool3d",
    "adaptive_avg_pool1d",
    "adaptive_avg_pool2d",
    "adaptive_avg_pool3d",
    "adaptive_max_pool1d",
    "adaptive_max_pool2d",
    "adaptive_max_pool3d",
    "upsample_nearest1d",
    "upsample_nearest2d",
    "upsample_nearest3d",
    "_upsample_nearest_exact2d",
    "_upsample_nearest_exact1d",
    "upsample_bilinear2d",
    "upsample_linear1d",
    "upsample_bicubic2d",
    "upsample_trilinear3d",
    "_upsample_bilinear2d_aa",
    "_upsample_bicubic2d_aa",
    "reflection_pad1d",
    "reflection_pad2d",
    "replication_pad1d",
    "replication_pad2d",
    "reflection_pad3d",
    "replication_pad3d",
    "fractional_max_pool2d",
)
def spatial(labels: Labels, op: Op) -> None:
    """Positions are mixed; labels on the axes before them pass. Labelled positions are frozen."""
    source: Ref = op.args[0]
    positions = frozenset(range(len(source.shape) - _spatial_rank(op.name), len(source.shape)))
    if labels.is_uniform(source):
        labels.uniform.add(op.outs()[0].number)
    kept = []
    for layer in labels.get(source):
        gone = axes(layer) & positions
        left = labels.drop(layer, gone, "positions are mixed") if gone else layer
        if left is not None:
            kept.append(left)
    for ref in op.outs():
        labels.set(ref, [compact(layer).expand(ref.shape) for layer in kept])


def _spatial_rank(name: str) -> int:
    return int(next(c for c in name if c.isdigit()))


@rule("constant_pad_nd", "pad")
def padded(labels: Labels, op: Op) -> None:
    """Constants around. On a labelled axis they are channels of their own; equal amounts on both sides stay equal."""
    source: Ref = op.args[0]
    out: Ref = op.out
    amounts = list(op.args[1])
    rank = len(source.shape)
    ends = {rank - 1 - k // 2: (amounts[k], amounts[k + 1]) for k in range(0, len(amounts), 2)}
    result = []
    for layer in labels.get(source):
        here: Tensor | None = layer
        for axis, (low, high) in ends.items():
            if here is not None and axis in axes(here) and (low or high):
                here = _widened(labels, here, axis, low, high)
        if here is not None:
            result.append(compact(here).expand(out.shape) if axes(here) else here)
    labels.set(out, [layer for layer in result if axes(layer)])


def _widened(labels: Labels, layer: Tensor, axis: int, low: int, high: int) -> Tensor | None:
    if low < 0 or high < 0 or len(axes(layer)) > 1:
        return labels.drop(layer, axes(layer), "cropped by a fixed number")
    slots = compact(layer).reshape(-1)
    before, after = labels.new(low), labels.new(high)
    if low == high:
        labels.tie(before, after)
    shape = list(compact(layer).shape)
    shape[axis] = layer.shape[axis] + low + high
    full = [shape[d] if d == axis else size for d, size in enumerate(layer.shape)]
    return along(torch.cat([before, slots, after]), axis, full)


@rule("im2col")
def unfolded(labels: Labels, op: Op) -> None:
    """Patches: channel c becomes kernel_h * kernel_w neighbouring rows."""
    source: Ref = op.args[0]
    out: Ref = op.out
    result = []
    for layer in labels.get(source):
        left = labels.drop(layer, axes(layer) - {1}) if axes(layer) - {1} else layer
        if left is not None:
            rows = left.select(0, 0)[:, 0, 0].repeat_interleave(out.shape[1] // source.shape[1])
            result.append(along(rows, 1, out.shape))
    labels.set(out, result)


@rule("col2im")
def folded(labels: Labels, op: Op) -> None:
    """Patches summed back: kernel_h * kernel_w neighbouring rows are one channel."""
    source: Ref = op.args[0]
    out: Ref = op.out
    result = []
    for layer in labels.get(source):
        left = labels.drop(layer, axes(layer) - {1}) if axes(layer) - {1} else layer
        if left is not None:
            grid = left.select(0, 0)[:, 0].unflatten(0, (out.shape[1], -1))
            result.append(place(labels.collapse(grid, [1])[:, 0], [1], out.shape))
    labels.set(out, result)


@rule("grid_sampler_2d", "grid_sampler_3d", "affine_grid_generator")
def sampled(labels: Labels, op: Op) -> None:
    """Positions are looked up: channels pass, the lookup itself is not labelled."""
    source, *others = op.refs()
    out: Ref = op.out
    for ref in others:
        for layer in labels.get(ref):
            labels.freeze(layer, "used as positions")
    kept = []
    for layer in labels.get(source):
        left = labels.drop(layer, axes(layer) - {1}) if axes(layer) - {1} else layer
        if left is not None:
            kept.append(compact(left).expand(out.shape))
    labels.set(out, kept)


@rule("glu")
def glu(labels: Labels, op: Op) -> None:
    """Gated linear unit: the two halves of one axis meet."""
    source: Ref = op.args[0]
    axis = (op.args[1] if len(op.args) > 1 else -1) % len(source.shape)
    half = source.shape[axis] // 2
    result = []
    for layer in labels.get(source):
        first, second = layer.narrow(axis, 0, half), layer.narrow(axis, half, half)
        if axis in axes(layer):
            labels.tie(first, second)
        result.append(first)
    labels.set(op.out, result)
