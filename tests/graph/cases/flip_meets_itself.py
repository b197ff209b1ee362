"""Added to its own flip, the first channel goes with the last; a middle one is alone and stays."""

from torch import nn


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 7, 1), nn.Conv2d(7, 2, 1)

    def forward(self, x):
        x = self.conv(x)
        return self.head(x + x.flip(1))


example = (2, 3, 4, 4)
groups = [{"conv:out", "head:in"}]
widths = [3]
