"""Channels last before flatten: a channel is every sixth column."""

from torch import nn


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 6, 3), nn.Linear(6 * 16, 2)

    def forward(self, x):
        x = self.conv(x).relu().permute(0, 2, 3, 1)
        return self.head(x.reshape(x.shape[0], -1))


example = (2, 3, 6, 6)
groups = [{"conv:out", "head:in"}]
widths = [6]
