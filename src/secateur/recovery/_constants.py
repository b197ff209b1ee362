"""Which activations are exactly constant, whatever the input: zero rows, what norms and functions make of them.

As `Expectations`, but nothing is averaged: what varies is unknown, and a constant that is not 0 ends where zero padding
would change it at the border.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..graph.labels import compact
from ..graph.tape import Op, Ref
from ._analytic import Moments, laid
from ._expected import WEIGHTED, Expectations, Product

ATTENTION = frozenset(
    "_scaled_dot_product_flash_attention_for_cpu _scaled_dot_product_flash_attention "
    "_scaled_dot_product_efficient_attention _scaled_dot_product_cudnn_attention scaled_dot_product_attention "
    "_scaled_dot_product_attention_math".split()
)


class ExactConstants(Expectations):
    """Follows constants along a tape: `advance` by one operation after another, and ask in between."""

    def zeros(self, ref: Ref) -> Tensor | None:
        """Return where a tensor is surely 0, bool, in its shape with size 1 where that does not change."""
        found = self.get(ref)
        return None if found is None else compact(found.mean) == 0

    def _found(self, op: Op) -> list[Moments | None]:
        found = [None if moments is None else _constants_only(moments) for moments in super()._found(op)]
        if found and found[0] is not None:
            if op.name == "constant_pad_nd":
                found[0] = _unless_padded(found[0], op)
            return found
        zero = self._zero_product(op)
        if zero is None and op.name.startswith("avg_pool"):
            zero = self._zero_pool(op)
        return found if zero is None else [_zeros(zero, op.outs()[0].shape), *found[1:]]

    def _of_constants(self, op: Op) -> Moments | None:
        product = self.product(op)
        if product is None:
            return None
        found, size = self.get(product.source), product.source.shape[product.axis]
        level = found.along(product.axis)[0] if found is not None else torch.full((size,), torch.nan).double()
        is_known = level == 0 if reaches_beyond(op, product) else ~level.isnan()
        mean = product.contribution(level, is_known)
        if product.bias is not None:
            bias = self.get(product.bias)
            mean = mean + (bias.along(0)[0] if bias is not None else torch.nan)
        mean = mean.masked_fill(product.reads(~is_known), torch.nan)
        return None if mean.isnan().all() else laid(mean, mean * 0, product.axis, op.out.shape)

    def _zero_product(self, op: Op) -> Tensor | None:
        """Where a product of two activations is 0 because one of them is, along everything that is summed."""
        if op.name in ATTENTION:
            query, _, value = op.args[:3]
            zero = self.zeros(value) if query.shape[:2] == value.shape[:2] else None
            return None if zero is None else zero.all(dim=2, keepdim=True)
        if op.name not in ("mm", "bmm") or op.name not in WEIGHTED:
            return None
        one, other = (self.zeros(ref) for ref in op.args[:2])
        parts = [zero.all(dim=axis, keepdim=True) for zero, axis in ((one, -1), (other, -2)) if zero is not None]
        return None if not parts else parts[0] if len(parts) == 1 else parts[0] | parts[1]

    def _zero_pool(self, op: Op) -> Tensor | None:
        zero = self.zeros(op.args[0])
        if zero is None:
            return None
        for axis in range(2, zero.ndim):
            zero = zero.all(dim=axis, keepdim=True)
        return zero


def reaches_beyond(op: Op, product: Product) -> bool:
    """Whether a kernel reads zeros beside the map, or reaches only some outputs with some of its places."""
    padding = op.args[4] if op.name == "convolution" else ()
    is_transposed = op.name == "convolution" and bool(op.args[6])
    return any(padding) or (is_transposed and product.kernel.shape[-1] > 1)


def _constants_only(moments: Moments) -> Moments | None:
    varies = moments.std != 0
    if bool(compact(varies).all()):
        return None
    mean, std = (compact(t) for t in (moments.mean, moments.std))
    mean = torch.where(std == 0, mean, torch.nan)
    return Moments(mean, mean * 0).map(lambda t: t.expand(moments.mean.shape))


def _zeros(zero: Tensor, shape: tuple[int, ...]) -> Moments | None:
    if not bool(zero.any()):
        return None
    mean = torch.where(zero, 0.0, torch.nan).double()
    return Moments(mean, mean).map(lambda t: t.expand(shape))


def _unless_padded(moments: Moments, op: Op) -> Moments:
    """Forget constants beside which positions were filled with another value."""
    amounts: list[int] = list(op.args[1])
    value: Any = op.args[2] if len(op.args) > 2 else 0.0
    rank = len(op.out.shape)
    if not any(any(amounts[k : k + 2]) for k in range(0, len(amounts), 2) if rank - 1 - k // 2 > 1):
        return moments
    mean = compact(moments.mean)
    mean = torch.where(mean == float(value), mean, torch.nan)
    return Moments(mean, mean * 0).map(lambda t: t.expand(moments.mean.shape))
