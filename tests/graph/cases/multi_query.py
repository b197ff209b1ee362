"""One key and value head for all: nothing of it can go, and query heads are free."""

from torch import nn


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.q, self.k, self.v = nn.Linear(5, 12), nn.Linear(5, 3), nn.Linear(5, 3)
        self.proj = nn.Linear(12, 2)

    def forward(self, x):
        q = self.q(x).unflatten(-1, (-1, 3)).transpose(1, 2)
        k, v = self.k(x)[:, None], self.v(x)[:, None]
        mixed = (q @ k.transpose(-2, -1)).softmax(-1) @ v
        return self.proj(mixed.transpose(1, 2).flatten(2))


example = (2, 6, 5)
groups = [{"q:out", "proj:in"}]
widths = [4]
