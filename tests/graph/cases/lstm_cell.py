"""A cell in a loop: its state is a tensor of zeros in the size of another."""

import torch
from torch import nn


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.cell, self.head = nn.Linear(3, 4), nn.LSTMCell(4, 4), nn.Linear(4, 2)

    def forward(self, x):
        hidden = cell = torch.zeros_like(self.stem(x[:, 0]))
        for step in range(x.shape[1]):
            hidden, cell = self.cell(self.stem(x[:, step]), (hidden, cell))
        return self.head(hidden)


example = (2, 3, 3)
groups = [
    {
        *(f"cell.{kind}_{place}:0" for kind in ("weight", "bias") for place in ("ih", "hh")),
        "cell.weight_ih:1",
        "cell.weight_hh:1",
        "stem:out",
        "head:in",
    }
]
widths = [4]
