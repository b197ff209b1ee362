"""Tokens made by a learnt query array are channels as well: nothing from outside counts them."""

import torch
from torch import nn


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.queries, self.up, self.down = nn.Parameter(torch.empty(7, 3)), nn.Linear(7, 4), nn.Linear(4, 2)

    def forward(self, x):
        weights = x @ self.queries.t()
        return self.down(self.up(weights.sigmoid()).relu())


example = (2, 5, 3)
groups = [{"queries:0", "up:in"}, {"up:out", "down:in"}]
widths = [7, 4]
