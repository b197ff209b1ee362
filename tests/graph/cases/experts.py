"""Experts of equal width, weighted by a router: their hidden widths are their own."""

from torch import nn


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.router, self.head = nn.Linear(3, 5), nn.Linear(5, 2), nn.Linear(5, 2)
        self.experts = nn.ModuleList(nn.Sequential(nn.Linear(5, 6 + i), nn.Linear(6 + i, 5)) for i in range(2))

    def forward(self, x):
        x = self.stem(x)
        shares = self.router(x).softmax(-1)
        return self.head(sum(shares[:, i : i + 1] * expert(x) for i, expert in enumerate(self.experts)))


example = (4, 3)
groups = [
    {"stem:out", "router:in", "experts.0.0:in", "experts.1.0:in"},
    {"experts.0.1:out", "experts.1.1:out", "head:in"},
    {"experts.0.0:out", "experts.0.1:in"},
    {"experts.1.0:out", "experts.1.1:in"},
]
widths = [5, 5, 6, 7]
