"""The same with nn.Embedding as the table, as T5 keeps it."""

import torch
from torch import nn


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.q, self.k, self.v = nn.Linear(5, 12), nn.Linear(5, 12), nn.Linear(5, 12)
        self.proj, self.table = nn.Linear(12, 2), nn.Embedding(11, 4)

    def forward(self, x):
        q, k, v = (f(x).unflatten(-1, (-1, 3)).transpose(1, 2) for f in (self.q, self.k, self.v))
        positions = torch.arange(x.shape[1])
        bias = self.table(positions[:, None] - positions + 5).permute(2, 0, 1)
        return self.proj(((q @ k.transpose(-2, -1) + bias).softmax(-1) @ v).transpose(1, 2).flatten(2))


example = (2, 6, 5)
groups = [{"q:out", "k:out", "v:out", "proj:in", "table:out"}]
widths = [4]
