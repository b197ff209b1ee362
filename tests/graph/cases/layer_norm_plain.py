"""Without a weight nothing of the norm is cut, but the shape it normalises over has to follow."""

from torch import nn


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.up, self.norm, self.down = nn.Linear(5, 7), nn.LayerNorm(7, elementwise_affine=False), nn.Linear(7, 2)

    def forward(self, x):
        return self.down(self.norm(self.up(x)))


example = (2, 4, 5)
groups = [{"up:out", "down:in"}]
widths = [7]
