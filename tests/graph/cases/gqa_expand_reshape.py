"""The same by expand and reshape, as Llama repeats its keys and values."""

from torch import nn
from torch.nn import functional as F


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.repeats, self.head_dim = 3, 2
        self.q, self.k, self.v = nn.Linear(5, 24), nn.Linear(5, 8), nn.Linear(5, 8)
        self.proj = nn.Linear(24, 2)

    def repeated(self, x):
        batch, heads, length, width = x.shape
        x = x[:, :, None].expand(batch, heads, self.repeats, length, width)
        return x.reshape(batch, heads * self.repeats, length, width)

    def forward(self, x):
        q, k, v = (f(x).unflatten(-1, (-1, self.head_dim)).transpose(1, 2) for f in (self.q, self.k, self.v))
        mixed = F.scaled_dot_product_attention(q, self.repeated(k), self.repeated(v))
        return self.proj(mixed.transpose(1, 2).flatten(2))


example = (2, 6, 5)
groups = [{"q:out", "k:out", "v:out", "proj:in"}]
widths = [4]
