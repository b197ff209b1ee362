"""Layer norm takes its statistics over the channels that are left."""

from torch import nn


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.up, self.norm, self.down = nn.Linear(5, 7), nn.LayerNorm(7), nn.Linear(7, 2)

    def forward(self, x):
        return self.down(self.norm(self.up(x)))


example = (2, 4, 5)
groups = [{"up:out", "norm:out", "down:in"}]
widths = [7]
