"""On demand attention is cut along the dimensions of every head alike, where heads would be the default."""

from torch import nn


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.heads = 2
        self.q, self.k, self.v = nn.Linear(5, 12), nn.Linear(5, 12), nn.Linear(5, 12)
        self.proj = nn.Linear(12, 2)

    def forward(self, x):
        q, k, v = (f(x).unflatten(-1, (self.heads, -1)).transpose(1, 2) for f in (self.q, self.k, self.v))
        mixed = (q @ k.transpose(-2, -1) * 0.4).softmax(-1) @ v
        return self.proj(mixed.transpose(1, 2).flatten(2))


example = (2, 6, 5)
options = {"granularity": "head_dims"}
groups = [{"q:out", "k:out"}, {"v:out", "proj:in"}]
widths = [6, 6]
