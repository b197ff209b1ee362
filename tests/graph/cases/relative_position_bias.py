"""A table of biases, one column for each head, is looked up by position: its columns go with the heads."""

import torch
from torch import nn
from torch.nn import functional as F


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.heads = 4
        self.q, self.k, self.v = nn.Linear(5, 12), nn.Linear(5, 12), nn.Linear(5, 12)
        self.proj, self.table = nn.Linear(12, 2), nn.Parameter(torch.empty(11, 4))
        self.register_buffer("index", torch.arange(6)[:, None] - torch.arange(6) + 5)

    def forward(self, x):
        q, k, v = (f(x).unflatten(-1, (self.heads, -1)).transpose(1, 2) for f in (self.q, self.k, self.v))
        bias = self.table[self.index.view(-1)].view(6, 6, -1).permute(2, 0, 1)
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=bias.unsqueeze(0))
        return self.proj(mixed.transpose(1, 2).flatten(2))


example = (2, 6, 5)
groups = [{"q:out", "k:out", "v:out", "proj:in", "table:1"}]
widths = [4]
