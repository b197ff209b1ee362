"""q, k and v of one head are neighbours: (heads, 3 * width), as BLOOM and GPT-NeoX lay them out."""

from torch import nn


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.heads, self.head_dim = 4, 2
        self.qkv, self.proj = nn.Linear(5, 24), nn.Linear(8, 2)

    def forward(self, x):
        batch, length, _ = x.shape
        qkv = self.qkv(x).view(batch, length, self.heads, 3 * self.head_dim).transpose(1, 2)
        q, k, v = qkv.chunk(3, dim=-1)
        mixed = (q @ k.transpose(-2, -1)).softmax(-1) @ v
        return self.proj(mixed.transpose(1, 2).reshape(batch, length, self.heads * self.head_dim))


example = (2, 6, 5)
groups = [{"qkv:out", "proj:in"}]
widths = [4]
