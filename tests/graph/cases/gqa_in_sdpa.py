"""Grouped queries repeated inside scaled_dot_product_attention."""

from torch import nn
from torch.nn import functional as F


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.q, self.k, self.v = nn.Linear(5, 12), nn.Linear(5, 6), nn.Linear(5, 6)
        self.proj = nn.Linear(12, 2)

    def forward(self, x):
        q, k, v = (f(x).unflatten(-1, (-1, 2)).transpose(1, 2) for f in (self.q, self.k, self.v))
        mixed = F.scaled_dot_product_attention(q, k, v, enable_gqa=True)
        return self.proj(mixed.transpose(1, 2).flatten(2))


example = (2, 6, 5)
groups = [{"q:out", "k:out", "v:out", "proj:in"}]
widths = [3]
