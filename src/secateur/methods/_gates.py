"""A gate on every channel: how the loss changes when all that a channel carries is multiplied by a number near 1.

With z = 1 on the output y = w x + b of a layer, dL/dz is the sum of w dL/dw + b dL/db over the weights that make the
channel, and also the sum of w dL/dw over the weights that read it, where nothing but scaling lies between. So gates
need no change of the model: values and gradients of parameters are enough.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from ..graph.groups import ChannelGraph, ChannelGroup
from ..graph.norms import Flow
from ..graph.products import Product, as_used, readers, weight_view
from ..train.watching import kernel_of
from ._gradients import Gradients
from ._scores import per_channel


@dataclass(frozen=True)
class Gate:
    """Where the gates of a group stand.

    Attributes:
        group: whose channels.
        scales: parameters whose channels' elements multiply or add to what is gated: gains and shifts, or rows of
            weights and biases.
        columns: products that read what is gated, each part of a weight once; empty where there are scales.
    """

    group: ChannelGroup
    scales: tuple[str, ...]
    columns: tuple[Product, ...] = ()

    @property
    def names(self) -> set[str]:
        """Parameters whose gradients are needed."""
        return {*self.scales, *(product.site.weight for product in self.columns)}

    def gradient(self, graph: ChannelGraph, gradients: Gradients) -> Tensor:
        """Return (width,) dL/dz of each channel at z = 1, in float64."""
        total = torch.zeros(self.group.width, dtype=torch.float64)
        for name in self.scales:
            value, gradient = gradients[name]
            member = next(m for m in self.group.members if m.tensor == name and m.role != "in")
            total += per_channel(graph, self.group, member, value.double() * gradient.double())
        for product in self.columns:
            value, gradient = gradients[product.site.weight]
            total += _column_sums(graph, self.group, product, value.double() * gradient.double())
        return total


def gate_of(model: nn.Module, graph: ChannelGraph, flow: Flow, group: ChannelGroup) -> Gate | None:
    """Place the gates of a group; None if nothing that reads its channels can be differentiated.

    They stand behind the last normalisations before the readers, if there is one on every way; else at what the readers
    read; else, where the readers' weights are computed, behind the layers that make the channels.
    """
    reading = readers(graph, group, flow.products)
    behind = {k for product in reading for k in flow.behind(group, product.source, product.op.index)}
    norms = {norm.op: norm for norm in flow.norms_on(group)}
    if behind and behind <= norms.keys():
        found = [norms[k] for k in sorted(behind)]
        return _gate(group, [name for norm in found for name in (norm.gain, norm.shift) if name is not None])
    parts: dict[object, Product] = {}
    for product in reading:
        part = weight_view(model, graph, product)
        if part is None:
            return _makers(flow, group, behind)
        parts.setdefault((product.site.weight, part.storage_offset(), part.shape, part.stride()), product)
    return Gate(group, (), tuple(parts.values())) if parts else None


def _makers(flow: Flow, group: ChannelGroup, behind: set[int]) -> Gate | None:
    makers = [product for product in flow.products if product.op.index in behind]
    norms = [norm for norm in flow.norms if norm.op in behind]
    if len(makers) + len(norms) < len(behind):
        return None
    named = {product.site.weight for product in makers} | {norm.gain for norm in norms}
    named |= {name for name in (*(p.bias for p in makers), *(n.shift for n in norms)) if name is not None}
    modules = {product.module for product in makers}
    named |= {m.tensor for m in group.members if m.module in modules and m.role == "out"}
    return _gate(group, named)


def _gate(group: ChannelGroup, names: Iterable[str]) -> Gate | None:
    own = [m.tensor for m in group.members if m.role != "in"]
    scales = tuple(sorted({name for name in names if name in own}))
    return Gate(group, scales) if scales else None


def _column_sums(graph: ChannelGraph, group: ChannelGroup, product: Product, values: Tensor) -> Tensor:
    """Sum a tensor like a product's parameter over everything that reads each channel of a group."""
    used = as_used(graph, product, values)
    assert used is not None
    kernel = kernel_of(
        used,
        product.groups,
        transposed=product.is_convolution and bool(product.op.args[6]),
        is_convolution=product.is_convolution,
        is_weight_first=product.is_weight_first,
    )
    where = product.channels_of(graph, group)
    sums = kernel.sum(dim=1).reshape(*where.shape, -1).sum(dim=2).cpu().numpy()
    inside = where >= 0
    return torch.from_numpy(np.bincount(where[inside], weights=sums[inside], minlength=group.width))
