"""One layer for q, k and v viewed as (3, heads, width): a head takes rows of all three."""

from torch import nn


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.heads, self.head_dim = 4, 3
        self.qkv, self.proj = nn.Linear(5, 36), nn.Linear(12, 2)

    def forward(self, x):
        batch, length, _ = x.shape
        qkv = self.qkv(x).reshape(batch, length, 3, self.heads, self.head_dim).permute(2, 0, 3, 1, 4)
        q, k, v = qkv.unbind(0)
        mixed = (q @ k.transpose(-2, -1)).softmax(-1) @ v
        return self.proj(mixed.transpose(1, 2).flatten(2))


example = (2, 6, 5)
groups = [{"qkv:out", "proj:in"}]
widths = [4]
