"""Channels picked by an index tensor: the numbers in it name all of them, so none can go."""

import torch
from torch import nn


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.inner, self.head = nn.Conv2d(3, 6, 1), nn.Conv2d(6, 5, 1), nn.Conv2d(5, 2, 1)
        self.register_buffer("order", torch.tensor([3, 0, 5, 1, 4, 2]))

    def forward(self, x):
        return self.head(self.inner(self.conv(x)[:, self.order]).relu())


example = (2, 3, 4, 4)
groups = [{"inner:out", "head:in"}]
widths = [5]
