"""Flipped channels are the same channels in the other order."""

import torch
from torch import nn


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 6, 1), nn.Conv2d(12, 2, 1)

    def forward(self, x):
        x = self.conv(x)
        return self.head(torch.cat([x.relu(), x.flip(1)], dim=1))


example = (2, 3, 4, 4)
groups = [{"conv:out", "head:in"}]
widths = [6]
