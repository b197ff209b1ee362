"""Experts held in one tensor each way, chosen by batched product: the hidden width is shared by all of them."""

import torch
from torch import nn


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.count = 4
        self.stem, self.router, self.head = nn.Linear(3, 5), nn.Linear(5, 4), nn.Linear(5, 2)
        self.up, self.down = nn.Parameter(torch.empty(4, 5, 6)), nn.Parameter(torch.empty(4, 6, 5))

    def forward(self, x):
        x = self.stem(x)
        mixed = torch.bmm(torch.bmm(x.expand(self.count, -1, -1), self.up).relu(), self.down)
        return self.head((mixed * self.router(x).sigmoid().t()[..., None]).sum(0))


example = (3, 3)
groups = [
    {"stem:out", "router:in", "up:1"},
    {"down:2", "head:in"},
    {"router:out", "up:0", "down:0"},
    {"up:2", "down:1"},
]
widths = [5, 5, 4, 6]
