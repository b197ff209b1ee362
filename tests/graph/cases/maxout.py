"""The largest of two neighbouring channels: both go together."""

from torch import nn


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.up, self.down = nn.Linear(3, 12), nn.Linear(6, 2)

    def forward(self, x):
        return self.down(self.up(x).unflatten(-1, (-1, 2)).amax(-1))


example = (2, 3)
groups = [{"up:out", "down:in"}]
widths = [6]
