"""Grouped and transposed: axis 1 holds the outputs of one group."""

from torch import nn


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.head = nn.Conv2d(3, 8, 1), nn.Conv2d(6, 2, 1)
        self.up, self.norm = nn.ConvTranspose2d(8, 6, 2, stride=2, groups=2), nn.BatchNorm2d(6)

    def forward(self, x):
        return self.head(self.norm(self.up(self.stem(x).relu())).relu())


example = (2, 3, 4, 4)
groups = [{"stem:out", "up:in"}, {"up:out", "norm:out", "head:in"}]
widths = [4, 3]
