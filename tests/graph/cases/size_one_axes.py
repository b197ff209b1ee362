"""An axis of size 1 broadcasts and ties nothing: a gate with one channel scales any number."""

import torch
from torch import nn


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.gate, self.head = nn.Conv2d(3, 6, 1), nn.Conv2d(3, 1, 3, padding=1), nn.Conv2d(6, 2, 1)
        self.scale = nn.Parameter(torch.empty(1))

    def forward(self, x):
        return self.head(self.conv(x) * self.gate(x).sigmoid() * self.scale)


example = (2, 3, 6, 6)
groups = [{"conv:out", "head:in"}]
widths = [6]
