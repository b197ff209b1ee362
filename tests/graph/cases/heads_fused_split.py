"""One layer for q, k and v, split by the inner width before the heads are viewed."""

from torch import nn
from torch.nn import functional as F


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner, self.head_dim = 12, 3
        self.qkv, self.proj = nn.Linear(5, 36, bias=False), nn.Linear(12, 2)

    def forward(self, x):
        parts = self.qkv(x).split(self.inner, dim=-1)
        q, k, v = (part.unflatten(-1, (-1, self.head_dim)).transpose(1, 2) for part in parts)
        return self.proj(F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2))


example = (2, 6, 5)
groups = [{"qkv:out", "proj:in"}]
widths = [4]
