"""An empty rest beside the channels, as a rotation over all dimensions of a head leaves it: it ties nothing."""

import torch
from torch import nn


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(3, 6), nn.Linear(6, 2)

    def forward(self, x):
        x = self.first(x)
        return self.second(torch.cat([x[..., :6] * 2, x[..., 6:]], dim=-1))


example = (2, 3)
groups = [{"first:out", "second:in"}]
widths = [6]
