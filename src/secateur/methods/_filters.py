"""The weights that make each channel of a group, as one vector per channel that gradients flow through."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..errors import MethodError
from ..graph.groups import ChannelGraph, ChannelGroup, Member
from ..graph.labels import axes, compact
from ._problem import Problem
from ._scores import producers, projection

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class JointFilters:
    """Where the filters of one group lie: several weights may make a channel, and then their filters are one vector.

    Attributes:
        group: name of the group.
        places: name of each producing weight -> (width, elements per channel) positions in the flattened weight.
    """

    group: str
    places: Mapping[str, Tensor]

    @classmethod
    def of(cls, graph: ChannelGraph, group: ChannelGroup) -> JointFilters:
        """Find them.

        Raises:
            MethodError: no weight makes these channels, or its filters differ in size.
        """
        places = {
            member.tensor: positions_in(graph, group, member.tensor, member.axis) for member in _once(graph, group)
        }
        if not places:
            raise MethodError(
                f"no weight makes the channels of {group.name!r}, so they have no filters: protect=[{group.name!r}]."
            )
        return cls(group.name, places)

    @property
    def width(self) -> int:
        """Number of filters."""
        return len(next(iter(self.places.values()), ()))

    @property
    def size(self) -> int:
        """Weights per filter."""
        return sum(index.shape[1] for index in self.places.values())

    def read(self, model: nn.Module) -> Tensor:
        """Return (width, elements) the filters as they are now, in float32 or better; gradients reach the weights."""
        parts = []
        for name, index in self.places.items():
            weight = model.get_parameter(name)
            parts.append(weight.reshape(-1)[index.to(weight.device)])
        joint = torch.cat([part.to(parts[0].device) for part in parts], dim=1)
        return joint.float() if joint.dtype in (torch.float16, torch.bfloat16) else joint


def _once(graph: ChannelGraph, group: ChannelGroup) -> list[Any]:
    return list({member.tensor: member for member in producers(graph, group)}.values())


def positions_in(graph: ChannelGraph, group: ChannelGroup, name: str, axis: int) -> Tensor:
    """Return (width, elements per channel) which places of the flattened tensor belong to each channel, in order."""
    rank = np.full(int(graph.component.max(initial=0)) + 1, -1)
    rank[group.channels] = np.arange(group.width)
    shape = graph.shapes[name]
    found: list[Array] = []
    for layer in graph.labels.params[name][1]:
        if max(axes(layer), default=-1) != axis:
            continue
        own = np.broadcast_to(rank[graph.component[compact(layer).numpy()]], shape).ravel()
        order = np.argsort(own, kind="stable")[int((own < 0).sum()) :]
        counts = np.bincount(own[own >= 0], minlength=group.width)
        if len(set(counts.tolist())) > 1:
            raise MethodError(
                f"the filters of {group.name!r} in {name!r} have {counts.min()} to {counts.max()} weights: "
                f"filters of different sizes cannot be compared. Protect them: protect=[{group.name!r}]."
            )
        found.append(order.reshape(group.width, -1))
    return torch.from_numpy(np.concatenate(found, axis=1))


def deciding(graph: ChannelGraph, group: ChannelGroup, residual: str) -> list[Member]:
    """Members whose weights decide over a group: its producers, or the projection into it alone.

    Args:
        graph: the channel graph.
        group: whose channels.
        residual: as in `secateur.methods._scores.eligible`; "projection" lets a 1x1 projection decide for the stream.
    """
    shortcut = projection(graph, group) if group.is_residual and residual == "projection" else None
    return producers(graph, group) if shortcut is None else [shortcut]


def filter_rows(problem: Problem, name: str, residual: str = "prune") -> Tensor:
    """Return the raw weights that make each channel of a group, flattened and laid side by side.

    Args:
        problem: model and graph.
        name: of the group.
        residual: which weights, as for `deciding`.

    Returns:
        (width, weights per channel) in float64 on the model's device; of several weights, one after another. No columns
        where no parameter makes the channels.

    >>> from secateur import Budget, trace
    >>> net = torch.nn.Sequential(torch.nn.Conv2d(1, 4, 3), torch.nn.Conv2d(4, 2, 1))
    >>> problem = Problem(net, trace(net, torch.zeros(1, 1, 5, 5)), Budget(remove=0.5))
    >>> filter_rows(problem, "0").shape
    torch.Size([4, 9])
    """
    graph, group = problem.graph, problem.graph.groups[name]
    parameters = dict(problem.model.named_parameters())
    rows = []
    for member in deciding(graph, group, residual):
        if member.tensor in parameters:
            index = positions_in(graph, group, member.tensor, member.axis)
            weight = parameters[member.tensor].detach()
            rows.append(weight.reshape(-1)[index.to(weight.device)].double())
    return torch.cat(rows, dim=1) if rows else torch.zeros(group.width, 0, dtype=torch.float64)
