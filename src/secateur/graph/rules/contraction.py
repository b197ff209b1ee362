"""Matrix products: the contracted axes meet and disappear, the others pass."""

from __future__ import annotations

from typing import Any

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
    """``out[b, m, n] = sum_k one[b, m, k] * other[b, k, n]``."""
    out: Ref = op.out
    batch = len(out.shape) - 2
    passed_left, inner_left = _sorted(labels, one, contracted=batch + 1, free=batch)
    passed_right, inner_right = _sorted(labels, other, contracted=batch, free=batch + 1)
    left = _partnered(labels, inner_left, inner_right, batch)
    right = _partnered(labels, inner_right, inner_left, batch)
    size = (*out.shape[:batch], one.shape[batch + 1])
    inner = labels.meet(size, [Operand(size, left, True), Operand(size, right, True)])
    if inner and not labels.is_weight(one) and not labels.is_weight(other):
        labels.statistic(op)
        if op.is_scaled:
            whole = [
                labels.drop(layer, axes(layer) & {batch}, "the attention's scale depends on it") for layer in inner
            ]
            inner = [layer for layer in whole if layer is not None]
    heads = []
    for layer in inner:
        if axes(layer) - {batch}:
            collapsed = labels.collapse(layer, [batch])
            heads.append(place(collapsed.select(-1, 0), list(range(batch)), out.shape))
    operands = [Operand(out.shape, passed, True) for passed in (passed_left, passed_right, heads)]
    if isinstance(bias, Ref):
        operands.append(labels.operand(bias))
    labels.set(out, labels.meet(out.shape, operands))
    _count(labels, op, inner)


def _sorted(labels: Labels, ref: Ref, *, contracted: int, free: int) -> tuple[list[Tensor], list[Tensor]]:
    """Split a factor's layers into those that pass (laid out like the result) and those that are summed over (batch,
    k).
    """
    passed, inner = [], []
    for layer in labels.get(ref):
        varying = axes(layer)
        if contracted in varying and free in varying:
            layer = labels.collapse(layer, [contracted])
            varying = varying - {contracted}
        if contracted in varying:
            inner.append(layer.movedim(contracted, -1).select(-2, 0))
        else:
            passed.append(layer.narrow(contracted, 0, 1))
    return passed, inner


def _partnered(labels: Labels, here: list[Tensor], there: list[Tensor], axis: int) -> list[Tensor]:
    """Drop the summed axis of layers that find no labelled partner on the other side."""
    if any(axis in axes(layer) for layer in there):
        return here
    kept = [labels.drop(layer, [axis], "multiplied by something that pruning cannot narrow") for layer in here]
    return [layer for layer in kept if layer is not None]


def _count(labels: Labels, op: Op, inner: list[Tensor]) -> None:
    out: Ref = op.out
    factors, constant = factors_of(labels.get(out), out.shape)
    summed = op.args[-1].shape[-2] if op.name in ("mm", "bmm", "matmul") else op.args[2].shape[-2]
    k = len(out.shape) - 2
    lone = next((layer for layer in inner if axes(layer) == {k}), None)
    if lone is None:
        constant *= summed
    else:
        factors.append(compact(lone))
    labels.contractions.append(Contraction(op.index, constant, factors))


def factors_of(layers: list[Tensor], shape: tuple[int, ...]) -> tuple[list[Tensor], int]:
    """Split a tensor's size into layers, whose living slots count, and a constant for the axes that none covers."""
    covered: set[int] = set()
    factors = []
    for layer in layers:
        varying = axes(layer)
        if varying.isdisjoint(covered):
            covered |= varying
            factors.append(compact(layer))
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
    whole = [layer for layer in labels.get(weight) if axes(layer) in ({1}, {2})]
    for layer in labels.get(weight):
        if axes(layer) not in ({1}, {2}):
            labels.freeze(layer, "experts are picked by number")
    here = [compact(layer).expand(source.shape).select(0, 0) for layer in labels.get(source) if axes(layer) == {1}]
    for layer in labels.get(source):
        if axes(layer) != {1}:
            labels.freeze(layer)
    there = [layer.select(2, 0).select(0, 0) for layer in whole if axes(layer) == {1}]
    here, there = _partnered(labels, here, there, 0), _partnered(labels, there, here, 0)
    size = (source.shape[1],)
    inner = labels.meet(size, [Operand(size, here, True), Operand(size, there, True)])
    labels.set(out, [layer.narrow(1, 0, 1).select(0, 0).expand(out.shape) for layer in whole if axes(layer) == {2}])
    factors, constant = factors_of(labels.get(out), out.shape)
    factors += [compact(layer) for layer in inner[:1]]
    return labels.contractions.append(Contraction(op.index, constant * (1 if inner else size[0]), factors))


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
        labels.meet(refs[0].shape, [labels.operand(ref) for ref in refs])
        return labels.set(out, [])
    if op.name != "mv":
        for ref in refs:
            for layer in labels.get(ref):
                labels.freeze(layer)
        return labels.set(out, [])
    matrix, vector = refs
    labels.statistic(op)
    inner = labels.operand(vector)
    rows = []
    for layer in labels.get(matrix):
        varying = axes(layer)
        if 0 in varying:
            rows.append(labels.collapse(layer, varying - {0}).select(1, 0))
        else:
            labels.meet(vector.shape, [Operand(vector.shape, [layer.select(0, 0)]), inner])
    return labels.set(out, rows)
