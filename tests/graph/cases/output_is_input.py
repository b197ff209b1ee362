"""A model may return its input, a parameter or the same tensor twice."""

import torch
from torch import nn


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.one, self.two, self.scale = nn.Linear(3, 6), nn.Linear(6, 3), nn.Parameter(torch.empty(6))

    def forward(self, x):
        y = self.two(self.one(x) * self.scale)
        return x, y, y, self.scale


example = (2, 3)
groups = []
