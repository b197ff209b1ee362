"""Zero channels after the others are a width of their own."""

from torch import nn
from torch.nn import functional as F


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.pad = 3
        self.stem, self.branch, self.head = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 7, 1), nn.Conv2d(7, 2, 1)

    def forward(self, x):
        x = self.stem(x)
        return self.head(self.branch(x).relu() + F.pad(x, (0, 0, 0, 0, 0, self.pad)))


example = (2, 3, 4, 4)
groups = [{"stem:out", "branch:in", "branch:out", "head:in"}, {"branch:out", "head:in"}]
widths = [4, 3]
