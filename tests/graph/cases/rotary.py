"""Rotary tables run along positions and head dimensions; they belong to every head and stay."""

import torch
from torch import nn
from torch.nn import functional as F


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.q, self.k, self.v = nn.Linear(5, 12), nn.Linear(5, 12), nn.Linear(5, 12)
        self.proj = nn.Linear(12, 2)
        self.register_buffer("cos", torch.empty(6, 4))
        self.register_buffer("sin", torch.empty(6, 4))

    def turned(self, x):
        left, right = x.chunk(2, dim=-1)
        return x * self.cos + torch.cat([-right, left], dim=-1) * self.sin

    def forward(self, x):
        q, k, v = (f(x).unflatten(-1, (-1, 4)).transpose(1, 2) for f in (self.q, self.k, self.v))
        mixed = F.scaled_dot_product_attention(self.turned(q), self.turned(k), v)
        return self.proj(mixed.transpose(1, 2).flatten(2))


example = (2, 6, 5)
groups = [{"q:out", "k:out", "v:out", "proj:in"}]
widths = [3]
