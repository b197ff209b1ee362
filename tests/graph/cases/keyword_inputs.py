"""Keyword inputs, one of them optional, one no tensor."""

import torch
from torch import nn


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.one, self.two, self.head = nn.Linear(3, 6), nn.Linear(4, 6), nn.Linear(6, 2)

    def forward(self, x, *, other=None, scale=1.0, names=()):
        x = self.one(x) * scale
        return self.head(x if other is None else x + self.two(other["inner"]))


example = (2, 3)
kwargs = {"other": {"inner": torch.ones(2, 4, dtype=torch.float64)}, "scale": 0.5, "names": ["a", "b"]}
groups = [{"one:out", "two:out", "head:in"}]
widths = [6]
