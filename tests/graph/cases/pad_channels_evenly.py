"""ResNet's option A adds zero channels on both sides of a narrower shortcut; both sides stay equal."""

from torch import nn
from torch.nn import functional as F


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.pad = 2
        self.stem, self.branch, self.head = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 8, 1), nn.Conv2d(8, 2, 1)

    def forward(self, x):
        x = self.stem(x)
        return self.head(self.branch(x).relu() + F.pad(x, (0, 0, 0, 0, self.pad, self.pad)))


example = (2, 3, 4, 4)
groups = [{"stem:out", "branch:in", "branch:out", "head:in"}, {"branch:out", "head:in"}]
widths = [4, 2]
