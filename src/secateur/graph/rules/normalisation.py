"""Normalisations: parameters meet channels, and some take statistics across channels."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ..labels import Labels, Operand, axes
from ..tape import Op, Ref
from ._table import rule


def _channelwise(labels: Labels, ref: Any, rank: int) -> Operand | None:
    """Return a (channels,) parameter as an operand aligned to axis 1."""
    if not isinstance(ref, Ref):
        return None
    shape = (1, -1) + (1,) * (rank - 2)
    size = (1, ref.shape[0]) + (1,) * (rank - 2)
    return Operand(size, [layer.reshape(shape) for layer in labels.get(ref)], labels.is_uniform(ref))


@rule(
    "native_batch_norm",
    "_native_batch_norm_legit_no_training",
    "_native_batch_norm_legit",
    "cudnn_batch_norm",
    "batch_norm",
    "_batch_norm_no_update",
    "_batch_norm_with_update",
    "_native_batch_norm_legit_functional",
    "miopen_batch_norm",
)
def batch_norm(labels: Labels, op: Op) -> None:
    """Per-channel scale, shift and running statistics meet axis 1; batch statistics run over the other axes."""
    source: Ref = op.args[0]
    out: Ref = op.outs()[0]
    rank = len(source.shape)
    operands = [labels.operand(source)]
    operands += [o for ref in op.args[1:5] if (o := _channelwise(labels, ref, rank)) is not None]
    if _takes_batch_statistics(op):
        for layer in labels.get(source):
            if axes(layer) - {1}:  # standardised weights: the batch axes are labelled
                labels.statistic(op)
                break
    layers = labels.meet(out.shape, operands)
    labels.set(out, layers)
    for ref in op.outs()[1:]:  # mean and inverse deviation of each channel
        if ref.shape == (source.shape[1],):
            labels.set(
                ref, [layer.select(0, 0).reshape(ref.shape[0], -1)[:, 0] for layer in layers if axes(layer) == {1}]
            )


def _takes_batch_statistics(op: Op) -> bool:
    return "no_training" not in op.name and any(a is True for a in op.args[3:7])


@rule("native_layer_norm", "_fused_rms_norm", "rms_norm", "layer_norm")
def layer_norm(labels: Labels, op: Op) -> None:
    """Statistics over the last axes; scale and shift meet them. Within a head the head dimensions go whole."""
    source: Ref = op.args[0]
    out: Ref = op.outs()[0]
    rank = len(source.shape)
    over = frozenset(range(rank - len(op.args[1]), rank))
    layers = []
    for layer in labels.get(source):
        inside = axes(layer) & over
        if inside and axes(layer) - over:
            left = labels.drop(layer, inside, "normalised within each head")
            if left is None:
                continue
            layer = left
        layers.append(layer)
    if any(axes(layer) & over for layer in layers):
        labels.statistic(op)
    operands = [Operand(source.shape, layers)]
    operands += [labels.operand(ref) for ref in op.args[2:4] if isinstance(ref, Ref)]
    labels.set(out, labels.meet(out.shape, operands))
    _rest(labels, op, labels.get(out), over)


def _rest(labels: Labels, op: Op, layers: list[Tensor], over: frozenset[int]) -> None:
    """Mean and scale that the operation also returns: without the normalised axes."""
    for ref in op.outs()[1:]:
        kept = [layer for layer in layers if not axes(layer) & over]
        labels.set(ref, [layer.as_strided(ref.shape, layer.stride()[: len(ref.shape)]) for layer in kept])


@rule("native_group_norm", "group_norm")
def group_norm(labels: Labels, op: Op) -> None:
    """Statistics over groups of neighbouring channels: every group keeps the same number."""
    source: Ref = op.args[0]
    out: Ref = op.outs()[0]
    rank = len(source.shape)
    channel_count, group_count = (
        (op.args[4], op.args[6]) if op.name == "native_group_norm" else (source.shape[1], op.args[1])
    )
    affine = op.args[1:3] if op.name == "native_group_norm" else op.args[2:4]
    layers = []
    for layer in labels.get(source):
        left = labels.drop(layer, axes(layer) - {1}) if axes(layer) - {1} else layer
        if left is not None:
            layers.append(left)
    operands = [Operand(source.shape, layers)]
    operands += [o for ref in affine if (o := _channelwise(labels, ref, rank)) is not None]
    result = labels.meet(out.shape, operands)
    if result and group_count < channel_count:
        labels.statistic(op)
        if group_count > 1:
            for layer in result:
                block = layer.unflatten(1, (group_count, channel_count // group_count))
                labels.tie(block.narrow(1, 0, 1).expand(block.shape), block)
    labels.set(out, result)


@rule("_softmax", "_log_softmax", "_safe_softmax", "softmax", "log_softmax", "glu_softmax")
def softmax(labels: Labels, op: Op) -> None:
    """A share among the elements of one axis: a statistic where that axis is labelled."""
    source: Ref = op.args[0]
    over = {op.args[1] % max(len(source.shape), 1)}
    result = []
    for layer in labels.get(source):
        if over <= axes(layer) and axes(layer) - over:
            left = labels.drop(layer, over, "shares within each head")
            if left is not None:
                result.append(left)
        else:
            result.append(layer)
    if any(axes(layer) & over for layer in result):
        labels.statistic(op)
    labels.set(op.outs()[0], result)


@rule("_weight_norm_interface")
def weight_norm(labels: Labels, op: Op) -> None:
    """Weight norm ``g * v / |v|``: the norm runs over every axis but one, on which g lives."""
    direction, length = op.args[0], op.args[1]
    axis = (op.args[2] if len(op.args) > 2 else 0) % len(direction.shape)
    out = op.outs()[0]
    if any(axes(layer) - {axis} for layer in labels.get(direction)):
        labels.statistic(op)
    labels.set(out, labels.meet(out.shape, [labels.operand(direction), labels.operand(length)]))
    for ref in op.outs()[1:]:
        labels.set(ref, labels.get(length) if ref.shape == length.shape else [])
    # a convolution that takes this weight treats it as its own: kernel axes carry no labels
    if direction.number in labels.conv_slots:
        labels.conv_slots[out.number] = labels.conv_slots[direction.number]


@rule("renorm", "linalg_matrix_norm")
def opaque(labels: Labels, op: Op) -> None:
    """Norms over whole matrices: what they touch cannot be cut."""
    for ref in op.refs():
        for layer in labels.get(ref):
            labels.freeze(layer)
