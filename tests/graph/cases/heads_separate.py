"""Separate q, k, v and the columns of the projection: a head is one channel."""

from torch import nn


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.heads, self.head_dim = 4, 3
        self.q, self.k, self.v, self.proj = (nn.Linear(5, 12) for _ in range(3)), None, None, nn.Linear(12, 2)
        self.q, self.k, self.v = self.q

    def forward(self, x):
        batch, length, _ = x.shape
        q, k, v = (
            f(x).view(batch, length, self.heads, self.head_dim).transpose(1, 2) for f in (self.q, self.k, self.v)
        )
        mixed = (q @ k.transpose(-2, -1) * 0.5).softmax(-1) @ v
        return self.proj(mixed.transpose(1, 2).reshape(batch, length, self.heads * self.head_dim))


example = (2, 6, 5)
groups = [{"q:out", "k:out", "v:out", "proj:in"}]
widths = [4]
