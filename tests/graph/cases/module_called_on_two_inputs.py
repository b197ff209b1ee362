"""A module called on two branches ties them."""

import torch
from torch import nn


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.one, self.other = nn.Conv2d(3, 6, 1), nn.Conv2d(3, 6, 3, padding=1)
        self.shared, self.head = nn.Conv2d(6, 5, 1), nn.Conv2d(10, 2, 1)

    def forward(self, x):
        return self.head(torch.cat([self.shared(self.one(x)), self.shared(self.other(x))], 1).relu())


example = (2, 3, 6, 6)
groups = [{"one:out", "other:out", "shared:in"}, {"shared:out", "head:in"}]
widths = [6, 5]
