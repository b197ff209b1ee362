"""Where a model calls a grouped convolution itself, its own number of groups follows."""

from torch import nn
from torch.nn import functional as F


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.cardinality, self.stem = 4, nn.Conv2d(3, 12, 1)
        self.taps, self.head = nn.Conv2d(12, 8, 3, groups=4), nn.Conv2d(8, 2, 1)
        self.more, self.last = nn.Conv2d(8, 12, 1, groups=2), nn.Conv2d(12, 2, 1)

    def forward(self, x):
        y = F.conv2d(self.stem(x), self.taps.weight, self.taps.bias, padding=1, groups=self.cardinality).relu()
        z = F.conv2d(y, self.more.weight, self.more.bias, groups=self.more.groups)
        return self.head(y) + self.last(z.relu())


example = (2, 3, 6, 6)
options = {"conv_groups": "whole"}
groups = [{"stem:out", "taps:in", "taps:out", "head:in", "more:in", "more:out", "last:in"}]
widths = [2]
