"""Whole groups of a transposed convolution: axis 0 of its weight holds the inputs, block by block."""

from torch import nn


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.head = nn.Conv2d(3, 8, 1), nn.Conv2d(12, 2, 1)
        self.up, self.norm = nn.ConvTranspose2d(8, 12, 2, stride=2, groups=4), nn.BatchNorm2d(12)

    def forward(self, x):
        return self.head(self.norm(self.up(self.stem(x).relu())).relu())


example = (2, 3, 4, 4)
options = {"conv_groups": "whole"}
groups = [{"stem:out", "up:in", "up:out", "norm:out", "head:in"}]
widths = [4]
