"""Matrix products: the contracted axes meet and disappear, the others pass."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from ..labels import Contraction, Labels, Operand, axes, compact, place
from ..tape import Op, Ref
from ._table import rule


@rule("addmm", "_addmm_activation", "addbmm")
def addmm(labels: Labels, op: Op) -> None:
    """Product plus bias."""
    product(labels, op, op.args[1], op.args[2], op.args[0])


@rule("mm", "bmm", "matmul")
def mm(labels: Labels, op: Op) -> None:
    """Product of matrices, or of two stacks of them."""
    product(labels, op, op.args[0], op.args[1], None)


@rule("baddbmm")
def baddbmm(labels: Labels, op: Op) -> None:
    """Product of two stacks of matrices plus something."""
    product(labels, op, op.args[1], op.args[2], op.args[0])


def product(labels: Labels, op: Op, one: Ref, other: Ref, bias: Any) -> None:
    """``out[b, m, n] = sum_k one[b, m, k] * other[b, k, n]``: both factors meet over (b, m, n, k)."""
    out: Ref = op.out
    batch = len(out.shape) - 2
    rows, columns, summed = batch, batch + 1, batch + 2
    shape = (*out.shape, one.shape[batch + 1])
    left = _laid(labels, one, [*range(batch), rows, summed], shape)
    right = _laid(labels, other, [*range(batch), summed, columns], shape)
    layers = labels.meet(shape, [left, right])
    inner, passed = _apart(labels, layers, summed)
    if inner and not labels.is_weight(one) and not labels.is_weight(other):
        labels.statistic(op)
        if op.is_scaled:
            for layer in inner:
                labels.freeze(layer, "the attention's scale depends on it")
            inner = []
    operands = [Operand(out.shape, [layer.select(-1, 0) for layer in passed], True)]
    if isinstance(bias, Ref):
        operands.append(labels.operand(bias))
    labels.set(out, labels.meet(out.shape, operands))
    _count(labels, op, [layer.as_strided(layer.shape[-1:], layer.stride()[-1:]) for layer in inner])


def _laid(labels: Labels, ref: Ref, places: list[int], shape: tuple[int, ...]) -> Operand:
    """Lay a factor out over (batch, rows, columns, summed); of a grid of free and summed places the free ones stay."""
    summed = len(shape) - 1
    size = tuple(ref.shape[places.index(d)] if d in places else 1 for d in range(len(shape)))
    layers = []
    for layer in labels.get(ref):
        wide = place(layer, places, shape)
        if summed in axes(wide) and axes(wide) & {summed - 1, summed - 2}:
            wide = labels.collapse(wide, [summed])
        layers.append(wide)
    return Operand(size, layers, labels.is_uniform(ref))


def _apart(labels: Labels, layers: list[Tensor], summed: int) -> tuple[list[Tensor], list[Tensor]]:
    """Split layers into those on the summed axis alone, which disappear, and those that pass.

    A layer on the summed and the batch axes is a grid of heads and their dimensions; `Labels.heads` says which is cut.
    """
    inner, passed = [], []
    for layer in layers:
        across = axes(layer) - {summed}
        if across == axes(layer):
            passed.append(layer)
        elif across and labels.heads:
            passed.append(labels.collapse(layer, [summed]))
        else:
            inner.append(labels.collapse(layer, across))
    return inner, passed


def _count(labels: Labels, op: Op, inner: list[Tensor]) -> None:
    out: Ref = op.out
    factors, constant = factors_of(labels.get(out), out.shape)
    summed = op.args[-1].shape[-2] if op.name in ("mm", "bmm", "matmul") else op.args[2].shape[-2]
    lone, whole = factors_of(inner, (summed,))
    labels.contractions.append(Contraction(op.index, constant * whole, factors + lone))


def factors_of(layers: list[Tensor], shape: tuple[int, ...]) -> tuple[list[Tensor], int]:
    """Split a tensor's size into layers, whose living slots count, and a constant for the axes that none covers."""
    covered: set[int] = set()
    factors = []
    for layer in layers:
        varying = axes(layer)
        if varying.isdisjoint(covered):
            covered |= varying
            factors += _crossed([compact(other) for other in layers if axes(other) == varying])
    constant = 1
    for d, size in enumerate(shape):
        if d not in covered:
            constant *= size
    return factors, constant


@rule("_grouped_mm")
def grouped(labels: Labels, op: Op) -> None:
    """Runs of rows times one matrix each, (rows, in) x (experts, in, out): no expert can go, the widths can."""
    source, weight = op.args[:2]
    out: Ref = op.out
    if len(source.shape) != 2 or len(weight.shape) != 3:
        for ref in op.refs():
            for layer in labels.get(ref):
                labels.freeze(layer)
        return labels.set(out, [])
    shape = (source.shape[0], weight.shape[2], weight.shape[1])
    by_row = _laid(labels, source, [0, 2], shape)
    by_expert = [
        place(whole.select(0, 0), [2, 1], shape)
        for layer in labels.get(weight)
        if (whole := labels.drop(layer, axes(layer) & {0}, "experts are picked by number")) is not None
    ]
    inner, passed = _apart(labels, labels.meet(shape, [by_row, Operand((1, *shape[1:]), by_expert)]), 2)
    labels.set(out, [layer.select(-1, 0) for layer in passed])
    factors, constant = factors_of(labels.get(out), out.shape)
    lone, summed = factors_of([layer[0, 0] for layer in inner], shape[2:])
    return labels.contractions.append(Contraction(op.index, constant * summed, factors + lone))


def _crossed(layers: list[Tensor]) -> list[Tensor]:
    """Of layers on one axis: each one's own slots where they cross like rows and columns, else the first."""
    if len(layers) > 1:
        own = [torch.unique(layer) for layer in layers]
        if math.prod(len(slots) for slots in own) == layers[0].numel():
            return own
    return layers[:1]


@rule("mv", "dot", "vdot", "addmv", "ger", "outer", "addr", "linalg_vecdot")
def vectors(labels: Labels, op: Op) -> None:
    """Matrix times vector, inner and outer product (power iteration of spectral norm)."""
    refs = op.refs()
    out: Ref = op.out
    if op.name in ("ger", "outer"):
        one, other = refs
        layers = [place(layer, [d], out.shape) for d, ref in enumerate((one, other)) for layer in labels.get(ref)]
        return labels.set(out, layers)
    if op.name in ("dot", "vdot"):
        labels.statistic(op)
        factors, constant = factors_of(labels.meet(refs[0].shape, [labels.operand(ref) for ref in refs]), refs[0].shape)
        labels.contractions.append(Contraction(op.index, constant, factors))
        return labels.set(out, [])
    if op.name != "mv":
        for ref in refs:
            for layer in labels.get(ref):
                labels.freeze(layer)
        return labels.set(out, [])
    matrix, vector = refs
    labels.statistic(op)
    factors, constant = factors_of(labels.get(matrix), matrix.shape)
    labels.contractions.append(Contraction(op.index, constant, factors))
    inner = labels.operand(vector)
    rows = []
    for layer in labels.get(matrix):
        varying = axes(layer)
        if 0 in varying:
            rows.append(labels.collapse(layer, varying - {0}).select(1, 0))
        else:
            labels.meet(vector.shape, [Operand(vector.shape, [layer.select(0, 0)]), inner])
    return labels.set(out, rows)


@rule("_trilinear")
def trilinear(labels: Labels, op: Op) -> None:
    """Three factors, each without some axes, meet; axes that are summed over disappear (``nn.Bilinear``)."""
    factors, lacking = op.args[:3], op.args[3:6]
    summed = sorted(op.args[6])
    rank = len(factors[0].shape) + len(lacking[0])
    size = [1] * rank
    operands = []
    for ref, absent in zip(factors, lacking, strict=True):
        own = [d for d in range(rank) if d not in absent]
        for d, extent in zip(own, ref.shape, strict=True):
            size[d] = max(size[d], extent)
        operands.append((ref, own))
    laid = [
        Operand(
            tuple(ref.shape[own.index(d)] if d in own else 1 for d in range(rank)),
            [place(layer, own, size) for layer in labels.get(ref)],
        )
        for ref, own in operands
    ]
    layers = labels.meet(size, laid)
    out: Ref = op.out
    kept = [d for d in range(rank) if d not in summed]
    labels.set(out, [_only(layer, kept) for layer in layers if axes(layer).isdisjoint(summed)])
    factor_layers, constant = factors_of(layers, tuple(size))
    labels.contractions.append(Contraction(op.index, constant, factor_layers))


def _only(layer: Tensor, kept: list[int]) -> Tensor:
    for axis in sorted(set(range(layer.ndim)) - set(kept), reverse=True):
        layer = layer.select(axis, 0)
    return layer
