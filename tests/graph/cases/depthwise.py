"""A depthwise convolution has as many channels out as in."""

from torch import nn


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.head = nn.Conv2d(3, 6, 1), nn.Conv2d(6, 2, 1)
        self.depthwise, self.norm = nn.Conv2d(6, 6, 3, padding=1, groups=6), nn.BatchNorm2d(6)

    def forward(self, x):
        return self.head(self.norm(self.depthwise(self.stem(x).relu())))


example = (2, 3, 6, 6)
groups = [{"stem:out", "depthwise:out", "norm:out", "head:in"}]
widths = [6]
