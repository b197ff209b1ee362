"""Keys and values serve two query heads each: a channel is a key/value head with its query heads."""

from torch import nn


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.repeats, self.head_dim = 2, 3
        self.q, self.k, self.v = nn.Linear(5, 24), nn.Linear(5, 12), nn.Linear(5, 12)
        self.proj = nn.Linear(24, 2)

    def forward(self, x):
        q, k, v = (f(x).unflatten(-1, (-1, self.head_dim)).transpose(1, 2) for f in (self.q, self.k, self.v))
        k, v = k.repeat_interleave(self.repeats, dim=1), v.repeat_interleave(self.repeats, dim=1)
        mixed = (q @ k.transpose(-2, -1)).softmax(-1) @ v
        return self.proj(mixed.transpose(1, 2).flatten(2))


example = (2, 6, 5)
groups = [{"q:out", "k:out", "v:out", "proj:in"}]
widths = [4]
