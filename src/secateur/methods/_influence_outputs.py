"""Filters that make up for each other: scores and new weights by output channel, through batch normalisation."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..graph.groups import ChannelGraph
from ..graph.products import Product, weight_view
from ..graph.rules import RULES
from ..graph.rules.normalisation import batch_norm
from ..graph.tape import Op, Ref
from ..graph.walk import state_of
from ..train.watching import kernel_of, write_kernel_
from ._group_obs import block_scores, filter_obs_update
from ._influence_layers import Layer, blocks_along, out_lines, solved

Array = np.ndarray[Any, Any]


@dataclass(frozen=True, eq=False)
class Norm:
    """The batch normalisation that a product's outputs run into, and where they lie in it.

    Attributes:
        weight: name of its scale; None = it has none.
        bias: name of its shift.
        mean: name of its running mean.
        variance: name of its running variance.
        epsilon: added to the variance.
        places: which of its channels the product's outputs are.
    """

    weight: str | None
    bias: str | None
    mean: str
    variance: str
    epsilon: float
    places: slice

    def scale_and_shift(self, state: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Return a and b of ``a y + b``, which it does to these outputs; (outputs,) each, float64."""
        mean, variance = (state[name].detach()[self.places].double().cpu() for name in (self.mean, self.variance))
        own = [None if n is None else state[n].detach()[self.places].double().cpu() for n in (self.weight, self.bias)]
        scale = (torch.ones_like(mean) if own[0] is None else own[0]) / (variance + self.epsilon).sqrt()
        return scale, (0.0 if own[1] is None else own[1]) - scale * mean


def norm_after(graph: ChannelGraph, product: Product) -> Norm | None:
    """Return the batch normalisation with running statistics that alone reads a product's outputs, also after a concat.

    None if there is none: then a filter is gone when its own outputs are 0.
    """
    readers: dict[int, list[Op]] = {}
    for op in graph.tape.ops:
        for ref in op.refs():
            readers.setdefault(ref.number, []).append(op)
    ref, offset, size = product.op.out, 0, product.op.out.shape[1] if len(product.op.out.shape) > 1 else 0
    while len(readers.get(ref.number, [])) == 1:
        op = readers[ref.number][0]
        if op.name == "cat" and (op.args[1] if len(op.args) > 1 else op.kwargs.get("dim", 0)) == 1:
            before = op.args[0][: [part.number for part in op.args[0]].index(ref.number)]
            offset, ref = offset + sum(part.shape[1] for part in before), op.out
            continue
        return _norm(graph, op, slice(offset, offset + size)) if RULES.get(op.name) is batch_norm else None
    return None


def _norm(graph: ChannelGraph, op: Op, places: slice) -> Norm | None:
    names = [graph.tape.state.get(ref.number) if isinstance(ref, Ref) else None for ref in op.args[1:5]]
    if names[2] is None or names[3] is None:
        return None
    return Norm(names[0], names[1], names[2], names[3], float(op.args[-1]), places)


@dataclass(frozen=True, eq=False)
class Gate:
    """A product's outputs after their batch normalisation, ``a y + b``: where a filter that is 0 is gone.

    Attributes:
        layer: the product, with its moments.
        norm: the normalisation; None = none, a = 1 and b = 0.
        scale: a, (groups, outputs).
        shift: b, (groups, outputs).
    """

    layer: Layer
    norm: Norm | None
    scale: Tensor
    shift: Tensor

    @classmethod
    def of(cls, layer: Layer, graph: ChannelGraph, model: nn.Module) -> Gate:
        """Find the normalisation and read it from the model."""
        norm, shape = norm_after(graph, layer.product), layer.kernel.shape[:2]
        if norm is None:
            return cls(layer, None, torch.ones(shape, dtype=torch.float64), torch.zeros(shape, dtype=torch.float64))
        scale, shift = norm.scale_and_shift(dict(state_of(model, shared=True)))
        return cls(layer, norm, scale.view(shape), shift.view(shape))

    def pulls(self, g: int) -> Tensor:
        """Return S, the second moment of gradients behind the normalisation.

        A filter with a scale of 0 is a constant there, which folding can move: it gets no gradient and costs nothing.
        """
        inverse = self._inverse(g)
        return self.layer.pulls.mean()[g] * inverse[:, None] * inverse

    def scores_(self, total: Array, graph: ChannelGraph, wanted: Array, *, damping: float, first_order: bool) -> None:
        """Add to `total`, in place, what it costs when a filter is gone and the others make up."""
        for g in range(len(self.scale)):
            turn = torch.cat([self.scale[g].diag(), self.shift[g][:, None]], dim=1)
            energy, pulls = turn @ self.layer.gives.mean()[g] @ turn.mT, self.pulls(g)
            slope = None
            if first_order:
                meets = self._inverse(g)[:, None] * self.layer.meets.mean()[g] @ turn.mT
                slope = solved(pulls, meets, damping)
            for channels, index in self._rows(graph, g, wanted):
                pick = index[:, :, None], index[:, None, :]
                tilt = None if slope is None else slope[pick]
                np.add.at(
                    total, channels, block_scores(pulls, energy[pick], index, damping=damping, slope=tilt).numpy()
                )

    def _rows(self, graph: ChannelGraph, g: int, wanted: Array) -> Iterator[tuple[Array, Tensor]]:
        for line in out_lines(graph, self.layer.product):
            yield from blocks_along(line[g], wanted)

    def _inverse(self, g: int) -> Tensor:
        return self._inverses()[g]

    def _inverses(self) -> Tensor:
        return torch.where(self.scale == 0, 0.0, 1 / self.scale)

    def update_(self, model: nn.Module, graph: ChannelGraph, alive: Array, *, damping: float) -> bool:
        """Move the filters that stay, IN PLACE, so that they make up for those that go; False if they cannot move.

        The running statistics follow in closed form, and scale and shift undo it: the function is the wanted one, and
        re-estimating the statistics on the same data does not change it.
        """
        product, norm = self.layer.product, self.norm
        view = weight_view(model, graph, product)
        if view is None or (norm is not None and (norm.weight is None or norm.bias is None)):
            return False
        layout = product.layout
        kernel = kernel_of(view, product.groups, **layout).double().cpu()
        mixing = torch.stack([self._mixing(graph, g, alive, damping) for g in range(len(kernel))])
        write_kernel_(view, (mixing @ kernel).to(view), **layout)
        if product.bias is not None:
            bias = model.get_parameter(product.bias).data
            bias.copy_((mixing @ bias.double().cpu().view(*kernel.shape[:2], 1)).flatten())
        if norm is not None:
            self._follow_(norm, dict(state_of(model, shared=True)), mixing)
        return True

    def _mixing(self, graph: ChannelGraph, g: int, alive: Array, damping: float) -> Tensor:
        """Return (outputs, outputs): what each filter becomes, as a sum of the old ones."""
        is_dead = np.zeros(self.scale.shape[1], dtype=bool)
        for line in out_lines(graph, self.layer.product):
            is_dead |= ~alive[line[g]]
        removed = torch.from_numpy(np.flatnonzero(is_dead))
        identity = torch.eye(len(is_dead), dtype=torch.float64)
        if not len(removed) or len(removed) == len(is_dead):
            return identity
        behind = filter_obs_update(identity, self.pulls(g), removed, damping=damping)
        # y' = C y behind the normalisation is diag(1/a) C diag(a) before it; rows with a = 0 cannot move.
        mixing = self._inverse(g)[:, None] * behind * self.scale[g]
        stuck = self.scale[g] == 0
        mixing[stuck] = identity[stuck]
        mixing[removed] = identity[removed]  # cut away in any case
        return mixing

    def _follow_(self, norm: Norm, state: Mapping[str, Tensor], mixing: Tensor) -> None:
        assert norm.weight is not None
        assert norm.bias is not None
        gives = self.layer.gives.mean()
        rows = gives[:, -1, -1].view(-1, 1)  # positions per sample
        mean, second = gives[:, :-1, -1] / rows, gives[:, :-1, :-1] / rows[..., None]
        spread = second - mean[:, :, None] * mean[:, None, :]
        new_mean = (mixing @ mean[..., None])[..., 0]
        variances = [m.diagonal(dim1=1, dim2=2).flatten() for m in (spread, mixing @ spread @ mixing.mT)]
        scale, shift = self.scale.flatten(), self.shift.flatten()
        behind = self.scale[..., None] * mixing * self._inverses()[:, None, :]
        wanted = (behind @ self.shift[..., None]).flatten()
        wanted = torch.where(scale == 0, shift, wanted)
        names = (norm.weight, norm.bias, norm.mean, norm.variance)
        weight, bias, running_mean, running_variance = (state[name].detach()[norm.places] for name in names)
        old = running_variance.double().cpu() + norm.epsilon
        grown = torch.where(variances[0] > 0, variances[1] / variances[0], 1.0).clamp(min=1e-6)
        changed_mean = running_mean.double().cpu() + (new_mean - mean).flatten()
        changed_variance = (old * grown - norm.epsilon).clamp(min=0)
        running_variance.copy_(changed_variance)
        running_mean.copy_(changed_mean)
        weight.copy_(scale * (changed_variance + norm.epsilon).sqrt())
        bias.copy_(wanted + scale * changed_mean)
