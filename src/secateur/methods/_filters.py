"""The filters of a group: the weights that make its channels, as one row of numbers per channel."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from ..graph.groups import ChannelGraph, ChannelGroup, Member
from ..graph.labels import axes, compact
from ._problem import Problem
from ._scores import producers, projection


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
    rows = [
        part
        for member in deciding(graph, group, residual)
        if member.tensor in parameters
        for part in _rows(graph, group, member, parameters[member.tensor].detach())
    ]
    return torch.cat(rows, dim=1) if rows else torch.zeros(group.width, 0, dtype=torch.float64)


def _rows(graph: ChannelGraph, group: ChannelGroup, member: Member, weight: Tensor) -> list[Tensor]:
    """Gather a weight's elements per channel, (width, elements) for each layer of labels that the group runs along."""
    position = np.full(int(graph.component.max(initial=0)) + 1, -1)
    position[group.channels] = np.arange(group.width)
    found = []
    for layer in graph.labels.params[member.tensor][1]:
        varying = sorted(axes(layer))
        if max(varying, default=-1) != member.axis:
            continue
        places = position[graph.component[compact(layer).numpy()]].reshape(-1)
        order = np.argsort(places, kind="stable")[np.count_nonzero(places < 0) :]
        if len(order):
            flat = weight.movedim(varying, [*range(len(varying))]).reshape(len(places), -1)
            picked = flat[torch.from_numpy(order).to(weight.device)].double()
            found.append(picked.reshape(group.width, -1))
    return found
