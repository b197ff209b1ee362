"""Writing into a view writes into the tensor: what is added to the first half stays as wide as it."""

from torch import nn


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.half = 3
        self.stem, self.side, self.head = nn.Conv2d(3, 6, 1), nn.Conv2d(3, 3, 1), nn.Conv2d(6, 2, 1)

    def forward(self, x):
        y = self.stem(x)
        y[:, : self.half] += self.side(x)
        return self.head(y)


example = (2, 3, 6, 6)
groups = [{"stem:out", "side:out", "head:in"}]
widths = [3]
