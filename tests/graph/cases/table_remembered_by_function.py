"""A table that a function remembers between calls: each pass makes its own (BEiT's relative positions)."""

import functools

import torch
from torch import nn


@functools.lru_cache(maxsize=4)
def order(size):
    return torch.arange(size).flip(0)


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.up, self.down = nn.Linear(4, 6), nn.Linear(6, 2)
        self.position_bias = nn.Parameter(torch.zeros(5, 6))

    def forward(self, x):
        return self.down(torch.relu(self.up(x) + self.position_bias[order(x.shape[1])]))


example = (2, 5, 4)
groups = [{"up:out", "position_bias:1", "down:in"}]
