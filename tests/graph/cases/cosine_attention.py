"""Queries and keys of length one, and a learnt temperature for each head (Swin v2)."""

import torch
from torch import nn
from torch.nn import functional as F


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.heads = 4
        self.q, self.k, self.v = nn.Linear(5, 12), nn.Linear(5, 12), nn.Linear(5, 12)
        self.proj, self.scale = nn.Linear(12, 2), nn.Parameter(torch.empty(4, 1, 1))

    def forward(self, x):
        q, k, v = (f(x).unflatten(-1, (self.heads, -1)).transpose(1, 2) for f in (self.q, self.k, self.v))
        scores = F.normalize(q, dim=-1) @ F.normalize(k, dim=-1).transpose(-2, -1)
        scores = scores * self.scale.clamp(max=4.6).exp()
        return self.proj((scores.softmax(-1) @ v).transpose(1, 2).flatten(2))


example = (2, 6, 5)
groups = [{"q:out", "k:out", "v:out", "proj:in", "scale:0"}]
widths = [4]
