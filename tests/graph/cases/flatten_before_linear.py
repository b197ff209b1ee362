"""After flatten a channel is one column for every position."""

from torch import nn


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 6, 3), nn.Linear(6 * 16, 2)

    def forward(self, x):
        return self.head(self.conv(x).relu().flatten(1))


example = (2, 3, 6, 6)
groups = [{"conv:out", "head:in"}]
widths = [6]
