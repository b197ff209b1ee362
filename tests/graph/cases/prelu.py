"""A PReLU with a slope for each channel loses slopes; one with a single slope keeps it."""

from torch import nn


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.one, self.each, self.two = nn.Conv2d(3, 7, 1), nn.PReLU(7), nn.Conv2d(7, 5, 1)
        self.single, self.head = nn.PReLU(), nn.Conv2d(5, 2, 1)

    def forward(self, x):
        return self.head(self.single(self.two(self.each(self.one(x)))))


example = (2, 3, 4, 4)
groups = [{"one:out", "each:out", "two:in"}, {"two:out", "head:in"}]
widths = [7, 5]
