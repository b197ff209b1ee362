"""Positions picked by an index tensor: channels pass."""

import torch
from torch import nn


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.up, self.head = nn.Linear(3, 6), nn.Linear(6, 2)
        self.register_buffer("order", torch.tensor([3, 0, 1]))

    def forward(self, x):
        x = self.up(x)
        return self.head(x.index_select(1, self.order) + x[:, self.order] + x[:, [0, 2, 1]])


example = (2, 5, 3)
groups = [{"up:out", "head:in"}]
widths = [6]
