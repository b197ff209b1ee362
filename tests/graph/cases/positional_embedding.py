"""Learnt positions meet the tokens: the channel axis is shared, the position axis stays."""

import torch
from torch import nn


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.patches, self.head = nn.Linear(5, 6), nn.Linear(6, 2)
        self.positions = nn.Parameter(torch.empty(1, 4, 6))

    def forward(self, x):
        return self.head((self.patches(x) + self.positions).tanh())


example = (2, 4, 5)
groups = [{"patches:out", "positions:2", "head:in"}]
widths = [6]
