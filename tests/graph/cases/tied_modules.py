"""One module under two names is one set of weights."""

from torch import nn


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.one, self.head = nn.Linear(3, 6), nn.Linear(6, 6), nn.Linear(6, 2)
        self.two = self.one

    def forward(self, x):
        return self.head(self.two(self.one(self.stem(x)).relu()).relu())


example = (2, 3)
groups = [{"stem:out", "one:in", "one:out", "head:in"}]
widths = [6]
