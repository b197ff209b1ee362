"""All groups keep the same number of inputs, and of outputs: the j-th of each group go together."""

from torch import nn


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.grouped = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 12, 3, padding=1, groups=2)
        self.norm, self.head = nn.BatchNorm2d(12), nn.Conv2d(12, 2, 1)

    def forward(self, x):
        return self.head(self.norm(self.grouped(self.stem(x))).relu())


example = (2, 3, 6, 6)
groups = [{"stem:out", "grouped:in"}, {"grouped:out", "norm:out", "head:in"}]
widths = [4, 6]
