"""Convolutions of any rank, grouped, depthwise and transposed, with weights that are parameters or computed.

Slots are kept as two grids: ``ins`` (groups, in-channels per group) and ``outs`` (groups, out-channels per group).
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ..labels import Contraction, Labels, along, axes, compact, place
from ..tape import Op, Ref
from ._table import rule


@rule(
    "convolution",
    "_convolution",
    "conv1d",
    "conv2d",
    "conv3d",
    "mkldnn_convolution",
    "_slow_conv2d_forward",
    "thnn_conv2d",
)
def convolution(labels: Labels, op: Op) -> None:
    """The input's channels meet the weight's; the result carries the weight's out-channels."""
    source, weight, bias = op.args[:3]
    out: Ref = op.out
    transposed, groups = bool(op.args[6]), int(op.args[8])
    inputs = _channels_of(labels, source)
    is_whole = labels.whole_groups and groups > 1 and not _is_repeated(inputs, groups)
    ins, outs = _weight_slots(labels, weight, transposed, groups, is_whole=is_whole)
    if ins is None and outs is not None and groups > 1 and inputs is not None and inputs.numel() == groups:
        ins = inputs.reshape(groups, 1)  # depthwise with a computed weight: its only column carries no label
    _meet_input(labels, inputs, ins)
    if ins is None and outs is not None and groups > 1 and outs.shape[1] == 1:
        labels.freeze(outs, "its group's input cannot be narrowed")
    if groups > 1:
        _keep_groups_equal(labels, ins, outs, is_whole=is_whole)
    if isinstance(bias, Ref):
        for layer in labels.get(bias):
            if outs is None:
                labels.freeze(layer)
            else:
                labels.tie(layer.reshape(outs.shape), outs)
    result = []
    if outs is not None and outs.numel() > 1:
        result.append(along(outs.reshape(-1), 1, out.shape))
    result += [compact(layer).expand(out.shape) for layer in labels.get(source) if axes(layer) == {0}]
    labels.set(out, result)
    _count(labels, op, ins, outs, is_whole=is_whole)


def _channels_of(labels: Labels, source: Ref) -> Tensor | None:
    """Return the slots of the input's channel axis, (channels,), or None if it is not labelled."""
    found = None
    for layer in labels.get(source):
        varying = axes(layer)
        if varying == {0}:
            continue
        left = labels.drop(layer, varying - {1}, "a convolution slides over it") if varying != {1} else layer
        if left is not None:
            slots = compact(left).reshape(-1)
            if found is not None:
                labels.tie(found, slots)
            found = slots
    return found


def _is_repeated(inputs: Tensor | None, groups: int) -> bool:
    """Whether all groups read the same channels: they are samples that were folded into the channel axis."""
    if inputs is None:
        return False
    blocks = inputs.reshape(groups, -1)
    return bool((blocks == blocks[:1]).all())


def _weight_slots(
    labels: Labels, weight: Ref, transposed: bool, groups: int, *, is_whole: bool
) -> tuple[Tensor | None, Tensor | None]:
    """Return the slots of a convolution weight as grids (ins, outs); None where nothing can be cut."""
    known = labels.conv_slots.get(weight.number)
    if known is not None and known[0].shape[0] == groups:
        return known
    name = labels.state.get(weight.number)
    if name is not None and weight.number not in labels.layers:
        ins, outs, layers = _fresh(labels, weight, transposed, groups)
        labels.params[name] = (weight.shape, layers)
        labels.layers[weight.number] = layers
        labels.conv_slots[weight.number] = (ins, outs)
        return ins, outs
    return _derived(labels, weight, transposed, groups, is_whole=is_whole)


def _fresh(labels: Labels, weight: Ref, transposed: bool, groups: int) -> tuple[Tensor, Tensor, list[Tensor]]:
    rows, columns = weight.shape[0] // groups, weight.shape[1]
    first = labels.new(groups, rows)  # axis 0 of the weight holds (group, row in group)
    second = labels.new(groups, columns)  # axis 1, a set of its own for every group
    layers = [along(first.reshape(-1), 0, weight.shape)] if first.numel() > 1 else []
    if columns > 1 and groups == 1:
        layers.append(along(second[0], 1, weight.shape))
    elif columns > 1:
        grid = second.unsqueeze(1).expand(groups, rows, columns).reshape(groups * rows, columns)
        layers.append(place(grid, [0, 1], weight.shape))
    return (first, second, layers) if transposed else (second, first, layers)


def _derived(
    labels: Labels, weight: Ref, transposed: bool, groups: int, *, is_whole: bool
) -> tuple[Tensor | None, Tensor | None]:
    """Slots of a weight that was computed (standardised, normalised, shared): read off its layers.

    Its axis 1 has one set of slots for all groups, so where groups go whole it stays, and they have slots of their own.
    """
    first: Tensor | None = None
    second: Tensor | None = None
    rows, columns = weight.shape[0] // groups, weight.shape[1]
    for layer in labels.get(weight):
        varying = axes(layer)
        small = compact(layer)
        if varying == {0} and first is None:
            first = small.reshape(groups, rows)
        elif varying == {1} and second is None and is_whole:
            labels.freeze(small, "the groups of its convolution go whole")
            second = labels.new(groups, columns)
        elif varying == {1} and second is None:
            second = small.reshape(1, columns).expand(groups, columns)
        elif varying == {0, 1} and second is None:
            second = small.reshape(groups, rows, columns)[:, 0]
        else:
            labels.drop(layer, varying, "part of a computed weight")
    return (first, second) if transposed else (second, first)


def _meet_input(labels: Labels, inputs: Tensor | None, ins: Tensor | None) -> None:
    if inputs is None:
        if ins is not None:
            labels.freeze(ins, "the input cannot be narrowed")
    elif ins is None:
        labels.freeze(inputs, "the weight cannot be narrowed")
    else:
        labels.tie(inputs.reshape(ins.shape), ins)


def _keep_groups_equal(labels: Labels, ins: Tensor | None, outs: Tensor | None, *, is_whole: bool) -> None:
    """Depthwise: a group goes whole. Otherwise too if asked, or the j-th channels of all groups go together."""
    if is_whole and (ins is None or outs is None):
        for grid in (ins, outs):
            if grid is not None:
                labels.freeze(grid, "the other side of its group cannot go")
        return
    if ins is not None and outs is not None and min(ins.shape[1], outs.shape[1]) == 1:
        wide = max(ins.shape[1], outs.shape[1])
        if wide == ins.shape[1]:
            labels.tie(outs.expand(outs.shape[0], wide), ins)
        else:
            labels.tie(ins.expand(ins.shape[0], wide), outs)
        return
    if is_whole and ins is not None and outs is not None:
        labels.tie(ins[:, :1].expand(ins.shape), ins)
        labels.tie(outs[:, :1].expand(outs.shape), outs)
        labels.tie(ins[:, 0], outs[:, 0])
        return
    for grid in (ins, outs):
        if grid is not None and grid.shape[0] > 1 and grid.shape[1] > 1:
            labels.tie(grid[:1].expand(grid.shape), grid)


def _count(labels: Labels, op: Op, ins: Tensor | None, outs: Tensor | None, *, is_whole: bool) -> None:
    source, weight = op.args[0], op.args[1]
    out: Ref = op.out
    transposed, groups = bool(op.args[6]), int(op.args[8])
    positions = source.shape if transposed else out.shape
    constant = out.shape[0]
    for size in (*positions[2:], *weight.shape[2:]):
        constant *= size
    factors = []
    in_count, out_count = (
        (weight.shape[0], weight.shape[1] * groups) if transposed else (weight.shape[1] * groups, weight.shape[0])
    )
    per_group = in_count // groups
    if outs is None or outs.numel() == 1:
        constant *= out_count
    else:
        factors.append(outs.reshape(-1))
    if per_group == 1 and groups > 1:
        pass  # depthwise: one input channel for each output channel, whatever is cut
    elif groups > 1 and outs is not None and (is_whole or outs.shape[1] == 1):
        constant *= per_group
    elif ins is None or per_group == 1:
        constant *= per_group
    else:
        factors.append(ins[0])
    labels.contractions.append(Contraction(op.index, constant, factors))


def kernel_axes(modules: dict[str, Any], state: dict[int, str], shapes: dict[str, int]) -> dict[str, int]:
    """For each convolution weight: the first spatial axis. Kernel positions are never channels.

    Args:
        modules: path -> module.
        state: tensor number -> name, for parameters and buffers.
        shapes: name -> number of axes.
    """
    from torch import nn

    result = {}
    for name in set(state.values()):
        path = name.rpartition(".")[0]
        path = path.partition(".parametrizations.")[0] if ".parametrizations." in f".{path}." else path
        module = modules.get(path.removesuffix(".parametrizations"))
        if isinstance(module, nn.modules.conv._ConvNd) and shapes.get(name, 0) > 2:
            result[name] = 2
    return result
