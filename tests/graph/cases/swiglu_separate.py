"""Gate and up projections of a gated MLP meet in a product and share one width."""

from torch import nn
from torch.nn import functional as F


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.gate, self.up, self.down = nn.Linear(5, 7), nn.Linear(5, 7, bias=False), nn.Linear(7, 2)

    def forward(self, x):
        return self.down(F.silu(self.gate(x)) * self.up(x))


example = (2, 4, 5)
groups = [{"gate:out", "up:out", "down:in"}]
widths = [7]
