"""Rolled along positions, channels stay where they are."""

from torch import nn


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 6, 1), nn.Conv2d(6, 2, 1)

    def forward(self, x):
        return self.head(self.conv(x).roll((1, 2), dims=(2, 3)))


example = (2, 3, 4, 4)
groups = [{"conv:out", "head:in"}]
widths = [6]
