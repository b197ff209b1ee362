"""A fixed pattern written into a blank tensor makes it a constant, which holds the channels that it meets."""

import torch
from torch import nn


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.one, self.two, self.head = nn.Linear(3, 6), nn.Linear(6, 5), nn.Linear(5, 2)

    def forward(self, x):
        pattern = x.new_zeros(6)
        pattern[:3] = torch.arange(3.0)
        return self.head(self.two(self.one(x) * pattern).relu())


example = (2, 3)
groups = [{"two:out", "head:in"}]
widths = [5]
