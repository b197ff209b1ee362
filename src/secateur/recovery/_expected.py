"""Walk along a tape with what is known of every activation: weights by value, activations by their moments.

What a product with weights makes of constants is a constant again; of anything else it is unknown, until a
normalisation says.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..graph.groups import ChannelGraph
from ..graph.tape import Op, Ref
from ..graph.walk import state_of
from ._analytic import Moments, constant, draws, expected, filled, laid, unknown, vector


@dataclass(frozen=True)
class Product:
    """A convolution or a product with a weight that does not depend on the input.

    Attributes:
        source: the activation.
        axis: its axis of channels.
        kernel: (groups, out-channels per group, in-channels per group, positions).
        bias: what is added to it, if it is part of the operation.
        share: which part of the kernel's positions reaches an output (below 1 for a transposed convolution with stride,
            on average over its outputs).
    """

    source: Ref
    axis: int
    kernel: Tensor
    bias: Ref | None
    share: float = 1.0

    def contribution(self, value: Tensor, mask: Tensor) -> Tensor:
        """Return (out-channels,) what the masked input channels add to each output where their value is this."""
        groups, outs, ins, _ = self.kernel.shape
        value = torch.where(mask, value, 0.0).view(groups, ins)
        columns = mask.view(groups, ins).any(dim=0).nonzero().flatten()
        taps = self.kernel[:, :, columns.to(self.kernel.device)].double().sum(dim=-1).cpu() * self.share
        return torch.einsum("goi,gi->go", taps, value[:, columns]).reshape(groups * outs)

    def reads(self, mask: Tensor) -> Tensor:
        """Return (out-channels,) whether a weight other than 0 takes each output to one of the masked inputs."""
        groups, outs, ins, _ = self.kernel.shape
        of = mask.view(groups, 1, ins, 1)
        columns = of.any(dim=0).flatten().nonzero().flatten()
        read = (self.kernel[:, :, columns.to(self.kernel.device)] != 0).any(dim=-1).cpu() & of[:, :, columns, 0]
        return read.any(dim=-1).reshape(groups * outs)


class Expectations:
    """Follows moments along a tape: `advance` by one operation after another, and ask in between."""

    def __init__(self, model: nn.Module, graph: ChannelGraph) -> None:
        tensors = state_of(model, shared=True)
        self.graph = graph
        self.values = {number: tensors[name].detach() for number, name in graph.tape.state.items()}
        self.known: dict[int, Moments] = {}
        self.base: dict[int, int] = {}  # view -> tensor whose memory it shares

    def get(self, ref: Ref) -> Moments | None:
        """Return what is known of a tensor at this point of the tape; None = nothing."""
        if ref.number in self.values:
            return constant(self.values[ref.number])
        return self.known.get(ref.number)

    def advance(self, op: Op) -> None:
        """Take one operation into account."""
        outs = op.outs()
        values = self._values(op)
        found: list[Moments | None] = [None] * len(outs)
        if values is None:
            found = self._found(op)
        self._forget_overwritten(op)
        for ref in outs:
            self.known.pop(ref.number, None)
            self.values.pop(ref.number, None)
        self.values.update((ref.number, value) for ref, value in zip(outs, values or (), strict=False))
        self.known.update((ref.number, m) for ref, m in zip(outs, found, strict=True) if m is not None)
        if any(r.alias_info is not None and not r.alias_info.is_write for r in op.func._schema.returns):
            self.base.update((ref.number, self._base(op.refs()[0])) for ref in outs)

    def _found(self, op: Op) -> list[Moments | None]:
        """Return what is known of each result of an operation on activations."""
        return [self._of_constants(op)] if op.name in WEIGHTED else expected(self.get, op)

    def _base(self, ref: Ref) -> int:
        return self.base.get(ref.number, ref.number)

    def _values(self, op: Op) -> list[Tensor] | None:
        """Run an operation on weights alone; None if it depends on the input, or on nothing."""
        refs = op.refs()
        if not refs or any(ref.number not in self.values for ref in refs) or draws(op):
            return None
        own = {ref.number: self.values[ref.number] for ref in refs}
        if op.func._schema.is_mutable:
            own = {number: value.clone() for number, value in own.items()}
        kwargs = {key: value for key, value in op.kwargs.items() if key != "device"}
        out = op.func(*filled(op.args, own), **filled(kwargs, own))
        return list(out) if isinstance(out, (tuple, list)) else [out]

    def _forget_overwritten(self, op: Op) -> None:
        """Views of memory that an operation writes into no longer hold what they did."""
        if not op.func._schema.is_mutable:
            return
        for argument, value in zip(op.func._schema.arguments, op.args, strict=False):
            if argument.alias_info is not None and argument.alias_info.is_write and isinstance(value, Ref):
                base = self._base(value)
                for number in [n for n in (*self.known, *self.values) if self.base.get(n, n) == base]:
                    self.known.pop(number, None)
                    self.values.pop(number, None)

    def _of_constants(self, op: Op) -> Moments | None:
        """An output whose every input is a constant, or has weight 0, is one too; the others are unknown."""
        product = self.product(op)
        if product is None or product.share < 1:
            return None
        found = self.get(product.source)
        size = product.source.shape[product.axis]
        level, spread = found.along(product.axis) if found is not None else unknown(size)
        is_constant = spread == 0
        mean = product.contribution(level, is_constant)
        if product.bias is not None:
            mean = mean + vector(self.get, product.bias)[0]
        mean = mean.masked_fill(product.reads(~is_constant), torch.nan)
        if mean.isnan().all():
            return None
        return laid(mean, torch.where(mean.isnan(), torch.nan, 0.0), product.axis, op.out.shape)

    def product(self, op: Op) -> Product | None:
        """Read an operation as a product of an activation with weights; None if it is none."""
        if op.name in CONVOLUTIONS:
            return self._convolution(op)
        if op.name not in PRODUCTS or any(op.kwargs.get(k, 1) != 1 for k in ("beta", "alpha")):
            return None
        source, weight = op.args[-2:]
        value = self.values.get(weight.number)
        if value is None or source.number in self.values:
            return None
        if value.ndim == 3:
            if value.shape[0] > 1 and value.stride(0):
                return None
            value = value[0]
        bias = op.args[0] if op.name == "addmm" else None
        if bias is not None and len(bias.shape) != 1:
            return None
        return Product(source, len(source.shape) - 1, value.t()[None, :, :, None], bias)

    def _convolution(self, op: Op) -> Product | None:
        source, weight, bias, stride = op.args[:4]
        transposed, groups = bool(op.args[6]), int(op.args[8])
        value = self.values.get(weight.number)
        if value is None or source.number in self.values or len(source.shape) != value.ndim:
            return None
        kernel = value.unflatten(0, (groups, -1))
        share = 1.0
        if transposed:
            kernel = kernel.transpose(1, 2)
            for step in [*stride] * ((value.ndim - 2) // len(stride)):
                share /= step
        return Product(source, 1, kernel.flatten(start_dim=3), bias if isinstance(bias, Ref) else None, share)


CONVOLUTIONS = ("convolution", "_convolution", "mkldnn_convolution")
PRODUCTS = ("addmm", "mm", "bmm")
WEIGHTED = frozenset((*CONVOLUTIONS, *PRODUCTS))
