"""Side by side along channels: two widths, and both run along whatever comes after."""

import torch
from torch import nn


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.one, self.other = nn.Conv2d(3, 4, 1), nn.Conv2d(3, 6, 3, padding=1)
        self.norm, self.head = nn.BatchNorm2d(10), nn.Conv2d(10, 2, 1)

    def forward(self, x):
        return self.head(self.norm(torch.cat([self.one(x), self.other(x)], dim=1)))


example = (2, 3, 6, 6)
groups = [{"one:out", "norm:out", "head:in"}, {"other:out", "norm:out", "head:in"}]
widths = [4, 6]
