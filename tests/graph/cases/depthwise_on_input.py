"""A depthwise convolution on the input: one output channel for each colour, so none can go."""

from torch import nn


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.depthwise, self.point, self.head = nn.Conv2d(3, 6, 3, groups=3), nn.Conv2d(6, 5, 1), nn.Conv2d(5, 2, 1)

    def forward(self, x):
        return self.head(self.point(self.depthwise(x)).relu())


example = (2, 3, 6, 6)
groups = [{"point:out", "head:in"}]
widths = [5]
