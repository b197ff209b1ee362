"""Rolled by a fixed number, channels would wrap round elsewhere if some were gone: nothing may go."""

from torch import nn


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 6, 1), nn.Conv2d(6, 2, 1)

    def forward(self, x):
        x = self.conv(x)
        return self.head(x + x.roll(2, dims=1))


example = (2, 3, 4, 4)
groups = []
