"""A transposed convolution keeps its inputs on axis 0 and its outputs on axis 1."""

from torch import nn


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.up, self.head = nn.Conv2d(3, 4, 1), nn.ConvTranspose2d(4, 6, 2, stride=2), nn.Conv2d(6, 2, 1)

    def forward(self, x):
        return self.head(self.up(self.stem(x).relu()).relu())


example = (2, 3, 4, 4)
groups = [{"stem:out", "up:in"}, {"up:out", "head:in"}]
widths = [4, 6]
