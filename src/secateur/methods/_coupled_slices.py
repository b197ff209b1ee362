"""All that belongs to one channel, in every layer of its group: what is made, scaled and read, and how large it is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from ..errors import MethodError
from ..graph.groups import ChannelGraph, Member
from ..graph.labels import axes, compact
from ..graph.norms import Flow
from ..graph.walk import parameters_of
from ._scores import per_channel, producers
from ._zeroed import is_size


@dataclass(frozen=True, eq=False)
class CoupledSlices:
    """The slices of weights that go together: rows that make a channel, gains that scale it, columns that read it.

    Biases, shifts and directions of weight norm are left out.

    Attributes:
        graph: the channel graph.
        members: group -> its axes of weights and gains, each once.
    """

    graph: ChannelGraph
    members: Mapping[str, tuple[Member, ...]]

    @classmethod
    def of(cls, model: nn.Module, graph: ChannelGraph, names: Sequence[str]) -> CoupledSlices:
        """Find them.

        Raises:
            MethodError: no parameter makes, scales or reads the channels of a group.
        """
        flow, known = Flow(graph), parameters_of(model, shared=True)
        counted = {product.site.weight for product in flow.products} | {norm.gain for norm in flow.norms}
        found = {}
        for name in names:
            group = graph.groups[name]
            makers = {member.tensor for member in producers(graph, group)}
            own = {
                (m.tensor, m.axis): m
                for m in group.members
                if m.tensor in counted | makers and m.tensor in known and is_size(m.tensor)
            }
            if not own:
                raise MethodError(f"no parameter holds the channels of {name!r}, so they have no size: protect it.")
            found[name] = tuple(own.values())
        return cls(graph, found)

    @property
    def tensors(self) -> list[str]:
        """Names of the parameters, each once."""
        return list(dict.fromkeys(m.tensor for own in self.members.values() for m in own))

    def mean_powers(self, model: nn.Module, power: float) -> dict[str, Tensor]:
        """Return group -> (width,) sum of |w|^power over each slice, averaged over the slices of a channel."""
        found = {}
        for name, members in self.members.items():
            group = self.graph.groups[name]
            total = torch.zeros(group.width, dtype=torch.float64)
            for member in members:
                weight = model.get_parameter(member.tensor).detach()
                total += per_channel(self.graph, group, member, weight.double().abs() ** power)
            found[name] = total / len(members)
        return found

    def laid_out(self, model: nn.Module, numbers: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Give every weight the number of the channel that it belongs to; the sum where it belongs to two.

        Args:
            model: whose parameters.
            numbers: group -> (width,).

        Returns:
            Name -> a tensor like the parameter, 0 where no channel is.
        """
        found: dict[str, Tensor] = {}
        for name, members in self.members.items():
            each = np.zeros(int(self.graph.component.max(initial=0)) + 1)
            each[self.graph.groups[name].channels] = numbers[name].double().numpy()
            for member in members:
                weight = model.get_parameter(member.tensor).detach()
                laid = found.setdefault(member.tensor, torch.zeros_like(weight))
                for layer in self.graph.labels.params[member.tensor][1]:
                    if max(axes(layer), default=-1) == member.axis:
                        laid += torch.from_numpy(each[self.graph.component[compact(layer).numpy()]]).to(laid)
        return found
