"""Parts of a split by a list of sizes are widths of their own."""

import torch
from torch import nn


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.sizes = [3, 5]
        self.stem, self.left, self.right = nn.Conv2d(3, 8, 1), nn.Conv2d(3, 2, 1), nn.Conv2d(5, 2, 1)

    def forward(self, x):
        left, right = torch.split(self.stem(x), self.sizes, dim=1)
        return self.left(left) + self.right(right)


example = (2, 3, 6, 6)
groups = [{"stem:out", "left:in"}, {"stem:out", "right:in"}]
widths = [3, 5]
