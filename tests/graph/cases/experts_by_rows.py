"""Experts that each get the rows routed to them: the first gets none, and is tied to the others all the same."""

import torch
from torch import nn


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.router, self.head = nn.Linear(3, 5), nn.Linear(3, 3), nn.Linear(5, 2)
        self.experts = nn.ModuleList(
            nn.Sequential(nn.Linear(5, 6 + i), nn.ReLU(), nn.Linear(6 + i, 5)) for i in range(3)
        )

    def forward(self, x):
        chosen = 1 + self.router(x)[:, 1:].argmax(-1)
        x = self.stem(x)
        mixed = torch.zeros_like(x)
        for i, expert in enumerate(self.experts):
            (rows,) = torch.where(chosen == i)
            mixed = mixed.index_add(0, rows, expert(x[rows]))
        return self.head(x + mixed)


example = (6, 3)
groups = [
    {
        "stem:out",
        "head:in",
        *(f"experts.{i}.0:in" for i in range(3)),
        *(f"experts.{i}.2:out" for i in range(3)),
    },
    *({f"experts.{i}.0:out", f"experts.{i}.2:in"} for i in range(3)),
]
widths = [5, 6, 7, 8]
