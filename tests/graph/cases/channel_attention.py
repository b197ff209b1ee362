"""Attention among channels: scores have channels on both axes, and the softmax runs over those left."""

from torch import nn


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.head = nn.Conv2d(3, 6, 1), nn.Conv2d(6, 2, 1)

    def forward(self, x):
        y = self.stem(x).flatten(2)
        scores = (y @ y.transpose(1, 2)).softmax(-1)
        return self.head((scores @ y).unflatten(2, x.shape[2:]))


example = (2, 3, 4, 4)
groups = [{"stem:out", "head:in"}]
widths = [6]
