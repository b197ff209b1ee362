"""A grouped convolution on the input of the model keeps its groups, and with them its channels."""

from torch import nn


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.grouped, self.mix, self.head = nn.Conv2d(4, 8, 3, groups=2), nn.Conv2d(8, 5, 1), nn.Conv2d(5, 2, 1)

    def forward(self, x):
        return self.head(self.mix(self.grouped(x).relu()).relu())


example = (2, 4, 6, 6)
options = {"conv_groups": "whole"}
groups = [{"mix:out", "head:in"}]
widths = [5]
