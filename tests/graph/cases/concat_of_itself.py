"""The same channels twice side by side: one width, two places in the consumer."""

import torch
from torch import nn


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 5, 3, padding=1), nn.Conv2d(10, 2, 1)

    def forward(self, x):
        x = self.conv(x)
        return self.head(torch.cat([x.relu(), -x], dim=1))


example = (2, 3, 6, 6)
groups = [{"conv:out", "head:in"}]
widths = [5]
