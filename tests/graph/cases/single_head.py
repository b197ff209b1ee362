"""Without heads, widths of queries and of values are free; the scale is a number of its own."""

from torch import nn


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.q, self.k, self.v, self.proj = nn.Linear(5, 6), nn.Linear(5, 6), nn.Linear(5, 4), nn.Linear(4, 2)

    def forward(self, x):
        weights = (self.q(x) @ self.k(x).transpose(1, 2) * 0.4).softmax(-1)
        return self.proj(weights @ self.v(x))


example = (2, 6, 5)
groups = [{"q:out", "k:out"}, {"v:out", "proj:in"}]
widths = [6, 4]
