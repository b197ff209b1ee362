"""The model's input cannot be narrowed; what is concatenated with it can."""

import torch
from torch import nn


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 5, 3, padding=1), nn.Conv2d(8, 2, 1)

    def forward(self, x):
        return self.head(torch.cat([x, self.conv(x)], dim=1))


example = (2, 3, 6, 6)
groups = [{"conv:out", "head:in"}]
widths = [5]
