"""The same with tables made in forward, from nothing of the model."""

import torch
from torch import nn
from torch.nn import functional as F


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.q, self.k, self.v = nn.Linear(5, 12), nn.Linear(5, 12), nn.Linear(5, 12)
        self.proj = nn.Linear(12, 2)

    def forward(self, x):
        angle = torch.arange(x.shape[1], dtype=x.dtype)[:, None] * torch.arange(4, dtype=x.dtype)
        q, k, v = (f(x).unflatten(-1, (-1, 4)).transpose(1, 2) for f in (self.q, self.k, self.v))
        q, k = q * angle.cos() + q.roll(2, -1) * angle.sin(), k * angle.cos() + k.roll(2, -1) * angle.sin()
        return self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


example = (2, 6, 5)
groups = [{"q:out", "k:out", "v:out", "proj:in"}]
widths = [3]
