"""Fused attention kernels, when a model calls one directly (composite calls arrive as matrix products and softmax)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from ..labels import Contraction, Labels, Operand, axes
from ..tape import Op, Ref
from ._table import rule


@rule(
    "_scaled_dot_product_flash_attention_for_cpu",
    "_scaled_dot_product_flash_attention",
    "_scaled_dot_product_efficient_attention",
    "_scaled_dot_product_cudnn_attention",
    "scaled_dot_product_attention",
    "_scaled_dot_product_attention_math",
)
def fused(labels: Labels, op: Op) -> None:
    """Query, key and value heads meet (keys and values repeated for grouped queries); value dimensions pass.

    Shapes: (batch, heads, positions, width).
    """
    query, key, value = op.args[:3]
    out: Ref = op.outs()[0]
    thin = (query.shape[0], query.shape[1], 1, 1)
    operands = [Operand(thin, _heads(labels, ref, query.shape[1]), True) for ref in (query, key, value)]
    passed: list[Tensor] = []
    for layer in labels.get(value):
        if axes(layer) == {3}:
            passed.append(layer.narrow(2, 0, 1).expand(out.shape))
    result = [layer.expand(out.shape) for layer in labels.meet(thin, operands)]
    labels.set(out, result + passed)
    heads = result[0].narrow(2, 0, 1).narrow(3, 0, 1) if result else None
    positions = query.shape[2] * key.shape[2] * query.shape[0]
    for width in (query.shape[3], value.shape[3]):
        factors = [heads[0, :, 0, 0]] if heads is not None else []
        constant = positions * width * (1 if factors else query.shape[1])
        labels.contractions.append(Contraction(op.index, constant, factors))


def _heads(labels: Labels, ref: Ref, head_count: int) -> list[Tensor]:
    result = []
    for layer in labels.get(ref):
        varying = axes(layer)
        if 1 in varying:
            whole = labels.collapse(layer, varying - {1})[:, :, :1, :1]
            if whole.shape[1] != head_count:
                whole = whole[:1].repeat_interleave(head_count // whole.shape[1], 1)
            result.append(whole[:1].expand(ref.shape[0], -1, -1, -1))
        elif varying == {3} and ref.shape[1] == 1:
            labels.freeze(layer, "the attention's scale depends on it")
        elif varying:
            labels.freeze(layer)
    return result


def keep_heads_whole(labels: Labels, modules: Mapping[str, Any]) -> None:
    """An ``nn.MultiheadAttention`` loses whole heads or none: its scale follows from the width of a head."""
    for path, module in modules.items():
        if not all(hasattr(module, name) for name in ("in_proj_weight", "out_proj", "num_heads", "head_dim")):
            continue
        prefix = f"{path}." if path else ""
        for leaf, axis in (("out_proj.weight", 1), *((f"{kind}_proj_weight", 0) for kind in ("in", "q", "k", "v"))):
            for layer in labels.params.get(prefix + leaf, ((), []))[1]:
                if axes(layer) != {axis}:
                    continue
                heads = layer.select(1 - axis, 0).unflatten(0, (-1, module.head_dim))
                if labels.heads:
                    labels.collapse(heads, [1])
                else:
                    labels.freeze(heads, "attention's scale follows from the width of its heads")
