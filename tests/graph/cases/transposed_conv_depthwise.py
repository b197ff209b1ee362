"""Depthwise and transposed: as many out as in."""

from torch import nn


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.head = nn.Conv2d(3, 5, 1), nn.Conv2d(5, 2, 1)
        self.up = nn.ConvTranspose2d(5, 5, 2, stride=2, groups=5)

    def forward(self, x):
        return self.head(self.up(self.stem(x).relu()).relu())


example = (2, 3, 4, 4)
groups = [{"stem:out", "up:in", "up:out", "head:in"}]
widths = [5]
