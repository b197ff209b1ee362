"""Along head dimensions a rotary table goes with them; turned halves stay equal."""

import torch
from torch import nn


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.heads = 2
        self.q, self.k, self.v = nn.Linear(5, 12), nn.Linear(5, 12), nn.Linear(5, 12)
        self.proj = nn.Linear(12, 2)
        self.register_buffer("cos", torch.empty(6, 6))
        self.register_buffer("sin", torch.empty(6, 6))

    def turned(self, x):
        left, right = x.chunk(2, dim=-1)
        return x * self.cos + torch.cat([-right, left], dim=-1) * self.sin

    def forward(self, x):
        q, k, v = (f(x).unflatten(-1, (self.heads, -1)).transpose(1, 2) for f in (self.q, self.k, self.v))
        mixed = (self.turned(q) @ self.turned(k).transpose(-2, -1)).softmax(-1) @ v
        return self.proj(mixed.transpose(1, 2).flatten(2))


example = (2, 6, 5)
options = {"granularity": "head_dims"}
groups = [{"q:out", "k:out", "cos:1", "sin:1"}, {"v:out", "proj:in"}]
widths = [3, 6]
