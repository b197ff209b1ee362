"""A gated unit multiplies the two halves of one layer: value and gate of a neuron go together."""

from torch import nn
from torch.nn import functional as F


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.up, self.down = nn.Linear(5, 14), nn.Linear(7, 2)

    def forward(self, x):
        value, gate = self.up(x).chunk(2, dim=-1)
        return self.down(value * F.silu(gate))


example = (2, 4, 5)
groups = [{"up:out", "down:in"}]
widths = [7]
