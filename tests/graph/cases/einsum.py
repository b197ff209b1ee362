"""einsum is products and permutations; weights of any shape are labelled axis by axis."""

import torch
from torch import nn


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.mix, self.out = nn.Parameter(torch.empty(3, 6)), nn.Parameter(torch.empty(6, 4, 2))
        self.gate = nn.Linear(3, 4)

    def forward(self, x):
        hidden = torch.einsum("blc,cd->bdl", x, self.mix).relu()
        return torch.einsum("bdl,dgo,blg->blo", hidden, self.out, self.gate(x))


example = (2, 5, 3)
groups = [{"mix:1", "out:0"}, {"out:1", "gate:out"}]
widths = [6, 4]
macs_need = 2  # einsum multiplies element by element along an axis of size 1
