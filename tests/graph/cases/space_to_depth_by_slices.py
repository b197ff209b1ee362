"""Slices of positions side by side (Swin's patch merging): four columns for each channel."""

import torch
from torch import nn


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.norm, self.reduce = nn.Linear(3, 5), nn.LayerNorm(20), nn.Linear(20, 2)

    def forward(self, x):
        x = self.stem(x)
        corners = [x[:, i::2, j::2] for i in (0, 1) for j in (0, 1)]
        return self.reduce(self.norm(torch.cat(corners, dim=-1)))


example = (2, 4, 4, 3)
groups = [{"stem:out", "norm:out", "reduce:in"}]
widths = [5]
