"""Channels repeated side by side, and each one in turn."""

import torch
from torch import nn


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.one, self.other, self.head = nn.Linear(3, 4), nn.Linear(3, 4), nn.Linear(8, 2)

    def forward(self, x):
        return self.head(torch.cat([self.one(x).repeat(1, 2)], 1)) + self.head(self.other(x).repeat_interleave(2, 1))


example = (2, 3)
groups = [{"one:out", "other:out", "head:in"}]
widths = [2]
