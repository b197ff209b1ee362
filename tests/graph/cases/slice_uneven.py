"""Slices that cut an axis at one place leave two independent widths."""

from torch import nn


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = 3
        self.stem, self.left, self.right = nn.Conv2d(3, 8, 1), nn.Conv2d(3, 2, 1), nn.Conv2d(5, 2, 1)

    def forward(self, x):
        x = self.stem(x)
        return self.left(x[:, : self.first]) + self.right(x[:, self.first :])


example = (2, 3, 6, 6)
groups = [{"stem:out", "left:in"}, {"stem:out", "right:in"}]
widths = [3, 5]
