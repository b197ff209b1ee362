"""A group with one output and several inputs goes whole."""

from torch import nn


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.grouped, self.head = nn.Conv2d(3, 12, 1), nn.Conv2d(12, 4, 1, groups=4), nn.Conv2d(4, 2, 1)

    def forward(self, x):
        return self.head(self.grouped(self.stem(x)).relu())


example = (2, 3, 6, 6)
groups = [{"stem:out", "grouped:in", "grouped:out", "head:in"}]
widths = [4]
