"""What each channel of a network costs in memory: weights that make it, weights that read it, its feature map."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..graph.groups import ChannelGraph
from ..graph.products import products
from ..recovery.moments import taps_of

Array = np.ndarray[Any, Any]


def memory_costs(graph: ChannelGraph, alive: Array | None = None) -> dict[str, Tensor]:
    """Return the numbers that every channel takes, in numbers per pixel of the input.

    Source: Ye et al. 2018, arXiv:1802.00124 (lambda of a layer): a channel's own filter over the channels that
    are left, the kernels of the filters left that read it, and its feature map, for one image.

    Args:
        graph: the channel graph; its example says how large maps are.
        alive: as of `ChannelGraph.alive`, which channels count as left; None = all.

    Returns:
        Group -> (width,) float64, >= 0. Biases and what normalisations hold are not counted.

    >>> from torch import nn
    >>> from secateur.graph import trace
    >>> net = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 5, 3))
    >>> memory_costs(trace(net, torch.zeros(1, 3, 8, 8)))["0"].tolist()  # (3 * 9 + 5 * 9 + 64) / 64
    [2.125, 2.125, 2.125, 2.125]
    """
    alive = np.ones(int(graph.component.max(initial=0)) + 1, dtype=bool) if alive is None else alive
    batch, pixels = image_of(graph)
    cost, counted = np.zeros(len(alive)), set[str]()
    for product in products(graph):
        made, read = product.alive_outputs(alive), product.alive_columns(alive)
        map_size = math.prod(product.op.out.shape) / (made.size * batch)
        taps = 0 if product.site.weight in counted else taps_of(product)  # a weight that is used twice is held once
        counted.add(product.site.weight)
        # A depthwise filter reads the channel that it makes, so it is there with it, and counts once.
        filters = np.full(len(read), read.shape[1]) if product.reads_one else read.sum(axis=1)
        for numbers in product.outputs:
            np.add.at(cost, numbers, taps * filters[:, None] + map_size)
        for numbers in () if product.reads_one else product.columns:
            np.add.at(cost, numbers, taps * made.sum(axis=1)[:, None])
    return {name: torch.from_numpy(cost[group.channels] / pixels) for name, group in graph.groups.items()}


def image_of(graph: ChannelGraph) -> tuple[int, int]:
    """Return the batch size of a graph's example, and how many places one sample has (pixels, tokens), 1 or more."""
    args, kwargs = graph.example
    first = next((each for each in (*args, *kwargs.values()) if isinstance(each, Tensor) and each.ndim), None)
    if first is None:
        return 1, 1
    places = first.shape[2:] if first.is_floating_point() else first.shape[1:]
    return max(1, first.shape[0]), max(1, math.prod(places))
