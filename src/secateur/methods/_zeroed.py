"""Filters at zero: put there while training goes on, and taken out for good with what they still put out.

A filter whose weights are all zero still adds something: its bias, or what a batch normalisation makes of a channel of
zeros, beta - gamma mean / sqrt(variance + epsilon). That is a constant, which the layers that read it can take over.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from ..graph.groups import ChannelGraph, ChannelGroup
from ..graph.labels import axes, compact
from ..graph.walk import parameters_of, state_of
from ..plan import Plan
from ..recovery.fold import fold_constants
from ._scores import per_channel, producers
from ._training import HeldAtZero

DIRECTIONS = ("parametrizations.weight.original1", "weight_v")  # of weight norm, whose lengths are beside them


@dataclass(frozen=True, eq=False)
class MadeBy:
    """The weights that make the channels of some groups, biases left out.

    Attributes:
        graph: the channel graph.
        weights: group -> names of the parameters that make it.
    """

    graph: ChannelGraph
    weights: Mapping[str, tuple[str, ...]]

    @classmethod
    def of(cls, model: nn.Module, graph: ChannelGraph, names: Sequence[str]) -> MadeBy:
        """Find them; of a weight that is kept as length and direction, the length."""
        known = parameters_of(model, shared=True)
        found = {name: dict.fromkeys(m.tensor for m in producers(graph, graph.groups[name])) for name in names}
        return cls(graph, {n: tuple(w for w in own if w in known and is_size(w)) for n, own in found.items()})

    def norms(self, model: nn.Module) -> dict[str, Tensor]:
        """Return group -> (width,) Euclidean norm of what makes each channel, in float64."""
        found = {}
        for name, weights in self.weights.items():
            group = self.graph.groups[name]
            squares = torch.zeros(group.width, dtype=torch.float64)
            for member in producers(self.graph, group):
                if member.tensor in weights:
                    weight = model.get_parameter(member.tensor).detach()
                    squares += per_channel(self.graph, group, member, weight.double().square())
            found[name] = squares.sqrt()
        return found

    def zero_(self, model: nn.Module, removed: Mapping[str, Sequence[int]]) -> None:
        """Zero the weights that make these channels, in place; they stay free to move."""
        with torch.no_grad():
            for name, gone in removed.items():
                group = self.graph.groups[name]
                for weight in self.weights[name] if len(gone) else ():
                    tensor = model.get_parameter(weight)
                    tensor.masked_fill_(self._mask(group, weight, gone).to(tensor.device), 0.0)

    def _mask(self, group: ChannelGroup, weight: str, gone: Sequence[int]) -> Tensor:
        """Return a bool mask over a weight: True = makes one of these channels."""
        goes = np.zeros(int(self.graph.component.max(initial=0)) + 1, dtype=bool)
        goes[group.channels[list(gone)]] = True
        made_along = {m.axis for m in producers(self.graph, group) if m.tensor == weight}
        mask = torch.zeros(self.graph.shapes[weight], dtype=torch.bool)
        for layer in self.graph.labels.params[weight][1]:
            if max(axes(layer), default=-1) in made_along:
                mask |= torch.from_numpy(goes[self.graph.component[compact(layer).numpy()]])
        return mask


def is_size(name: str) -> bool:
    """Whether a parameter says how large weights are; a direction of weight norm does not, and must not be zero.

    >>> is_size("conv.weight"), is_size("conv.weight_v")
    (True, False)
    """
    return not name.endswith(DIRECTIONS)


def take_out_(model: nn.Module, graph: ChannelGraph, plan: Plan) -> None:
    """Zero all that a plan removes, in place, after the layers that read it took over what it put out on average.

    What filters at zero put out is a constant, so then the model computes what it did, but at the border where a
    convolution pads with zeros. A second call changes nothing.
    """
    if not plan.removed_count:
        return
    folded, own = state_of(fold_constants(model, graph, plan)), state_of(model)
    with torch.no_grad():
        for name, tensor in own.items():
            if not torch.equal(tensor, folded[name]):
                tensor.copy_(folded[name])
    HeldAtZero(model, graph, plan).apply_()
