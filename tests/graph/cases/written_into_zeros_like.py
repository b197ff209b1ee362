"""Channels written into part of a blank tensor as wide as another are tied to the places they are written to."""

import torch
from torch import nn


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = 2
        self.stem, self.side, self.head = nn.Conv2d(3, 6, 1), nn.Conv2d(3, 2, 1), nn.Conv2d(6, 2, 1)

    def forward(self, x):
        y = self.stem(x)
        z = torch.zeros_like(y)
        z[:, : self.first] = self.side(x)
        return self.head(y + z)


example = (2, 3, 4, 4)
groups = [{"stem:out", "side:out", "head:in"}]
widths = [2]
