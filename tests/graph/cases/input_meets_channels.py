"""A model that adds its input to what it makes of it keeps that width."""

from torch import nn


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.up, self.down, self.head = nn.Linear(3, 6), nn.Linear(6, 3), nn.Linear(3, 2)

    def forward(self, x):
        return self.head(x + self.down(self.up(x).relu()))


example = (2, 3)
groups = [{"up:out", "down:in"}]
widths = [6]
