"""Attention written with einsum over weights that hold heads and their width on axes of their own."""

import torch
from torch import nn


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.q, self.k, self.v = (nn.Parameter(torch.empty(5, 4, 3)) for _ in range(3))
        self.out = nn.Parameter(torch.empty(4, 3, 2))

    def forward(self, x):
        q, k, v = (torch.einsum("blc,chd->bhld", x, weight) for weight in (self.q, self.k, self.v))
        weights = torch.einsum("bhld,bhmd->bhlm", q, k).softmax(-1)
        return torch.einsum("bhlm,bhmd,hdo->blo", weights, v, self.out)


example = (2, 6, 5)
groups = [{"q:1", "k:1", "v:1", "out:0"}, {"q:2", "k:2"}, {"v:2", "out:1"}]
widths = [4, 3, 3]
macs_need = 2  # einsum multiplies element by element along an axis of size 1
