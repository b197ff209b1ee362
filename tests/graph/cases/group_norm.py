"""The groups of a group norm keep the same number of channels."""

from torch import nn


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.norm, self.head = nn.Conv2d(3, 8, 1), nn.GroupNorm(2, 8), nn.Conv2d(8, 2, 1)

    def forward(self, x):
        return self.head(self.norm(self.conv(x)))


example = (2, 3, 4, 4)
groups = [{"conv:out", "norm:out", "head:in"}]
widths = [4]
