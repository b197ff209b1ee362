"""A bilinear layer has three widths."""

from torch import nn


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.left, self.right = nn.Linear(3, 4), nn.Linear(3, 5)
        self.both, self.head = nn.Bilinear(4, 5, 6), nn.Linear(6, 2)

    def forward(self, x):
        return self.head(self.both(self.left(x), self.right(x)).relu())


example = (4, 3)
groups = [{"left:out", "both.weight:1"}, {"right:out", "both.weight:2"}, {"both:out", "head:in"}]
widths = [4, 5, 6]
