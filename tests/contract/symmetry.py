"""Permute the channels of every group of a model: another model that computes the same."""

from __future__ import annotations

import copy
from collections.abc import Mapping

import numpy as np
import torch
from torch import nn

from secateur import ChannelGraph


def permuted(model: nn.Module, graph: ChannelGraph, orders: Mapping[str, list[int]]) -> nn.Module:
    """Return a copy whose channel i of each group is the model's channel ``orders[group][i]``."""
    other = copy.deepcopy(model)
    with torch.no_grad():
        for name, tensor in [*other.named_parameters(), *other.named_buffers()]:
            for group, order in orders.items():
                for axis, sources in _moves(graph, name, graph.groups[group].channels, order):
                    tensor.copy_(tensor.index_select(axis, torch.from_numpy(sources)))
    return other


def _moves(graph: ChannelGraph, name: str, channels: np.ndarray, order: list[int]) -> list[tuple[int, np.ndarray]]:
    """(axis, which place each place takes its values from): the k-th place of a channel from the k-th of its source."""
    moves = []
    for _, numbers in graph.components_along(name):
        along = [d for d in range(numbers.ndim) if (numbers != numbers.take([0], axis=d)).any()]
        if not np.isin(numbers, channels).any():
            continue
        assert len(along) == 1, f"{name}: channels of one group lie along {along}"
        if any(axis == along[0] for axis, _ in moves):
            continue  # where a group of a convolution goes whole, its rows and its columns are the same channels
        line = np.moveaxis(numbers, along[0], 0).reshape(numbers.shape[along[0]], -1)[:, 0]
        sources = np.arange(len(line))
        for target, source in enumerate(order):
            sources[line == channels[target]] = np.flatnonzero(line == channels[source])
        moves.append((along[0], sources))
    return moves


def reversed_orders(graph: ChannelGraph) -> dict[str, list[int]]:
    """For each group an order that moves every channel but perhaps the middle one."""
    return {name: list(range(group.width))[::-1] for name, group in graph.groups.items()}
