"""Heads folded into the batch axis of bmm, as fairseq and old BERTs do, are still heads."""

import torch
from torch import nn


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.heads, self.head_dim = 4, 3
        self.q, self.k, self.v = nn.Linear(5, 12), nn.Linear(5, 12), nn.Linear(5, 12)
        self.proj = nn.Linear(12, 2)

    def fold(self, x):
        x = x.view(x.shape[0], -1, self.heads, self.head_dim).transpose(1, 2)
        return x.reshape(x.shape[0] * self.heads, -1, self.head_dim)

    def forward(self, x):
        q, k, v = (self.fold(f(x)) for f in (self.q, self.k, self.v))
        mixed = torch.bmm(torch.bmm(q, k.transpose(1, 2)).softmax(-1), v)
        mixed = mixed.view(x.shape[0], self.heads, -1, self.head_dim).transpose(1, 2)
        return self.proj(mixed.reshape(x.shape[0], -1, self.heads * self.head_dim))


example = (2, 6, 5)
groups = [{"q:out", "k:out", "v:out", "proj:in"}]
widths = [4]
