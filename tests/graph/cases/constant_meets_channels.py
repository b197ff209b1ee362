"""A constant with a value for each channel holds them all: pruning cannot narrow it."""

import torch
from torch import nn


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.one, self.two, self.head = nn.Linear(3, 6), nn.Linear(6, 5), nn.Linear(5, 2)

    def forward(self, x):
        return self.head(self.two(self.one(x) * torch.arange(6.0, dtype=x.dtype)).relu())


example = (2, 3)
groups = [{"two:out", "head:in"}]
widths = [5]
