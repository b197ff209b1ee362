"""Spectral norm divides by one number for the whole matrix, taken over what is left of it."""

from torch import nn


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        norm = nn.utils.parametrizations.spectral_norm
        self.one, self.two = norm(nn.Conv2d(3, 5, 3, padding=1)), norm(nn.Conv2d(5, 6, 1))
        self.line, self.head = norm(nn.Linear(6, 4)), nn.Linear(4, 2)

    def forward(self, x):
        x = self.two(self.one(x).relu()).relu().mean((2, 3))
        return self.head(self.line(x).relu())


example = (2, 3, 6, 6)
groups = [{"one:out", "two:in"}, {"two:out", "line:in"}, {"line:out", "head:in"}]
widths = [5, 6, 4]
