"""Beside whole groups a depthwise convolution goes on as ever, and so does a dense one."""

from torch import nn


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.depthwise, self.head = nn.Conv2d(3, 6, 1), nn.Conv2d(6, 6, 3, groups=6), nn.Conv2d(5, 2, 1)
        self.dense = nn.Conv2d(6, 5, 1)

    def forward(self, x):
        return self.head(self.dense(self.depthwise(self.stem(x).relu())).relu())


example = (2, 3, 6, 6)
options = {"conv_groups": "whole"}
groups = [{"stem:out", "depthwise:out", "dense:in"}, {"dense:out", "head:in"}]
widths = [6, 5]
