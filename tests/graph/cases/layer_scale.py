"""One learnt factor for each channel."""

import torch
from torch import nn


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.branch, self.head = nn.Linear(3, 6), nn.Linear(6, 6), nn.Linear(6, 2)
        self.gamma = nn.Parameter(torch.empty(6))

    def forward(self, x):
        x = self.stem(x)
        return self.head(x + self.gamma * self.branch(x))


example = (2, 5, 3)
groups = [{"stem:out", "branch:in", "branch:out", "gamma:0", "head:in"}]
widths = [6]
