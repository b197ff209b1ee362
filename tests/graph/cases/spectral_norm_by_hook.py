"""The old spectral_norm divides in a hook before forward, by a number for the whole matrix."""

from torch import nn


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        norm = nn.utils.spectral_norm
        self.one, self.two, self.head = norm(nn.Conv2d(3, 5, 3, padding=1)), norm(nn.Linear(5, 6)), nn.Linear(6, 2)

    def forward(self, x):
        return self.head(self.two(self.one(x).relu().mean((2, 3))).relu())


example = (2, 3, 6, 6)
groups = [{"one:out", "two:in"}, {"two:out", "head:in"}]
widths = [5, 6]
