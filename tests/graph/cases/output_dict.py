"""Outputs inside dictionaries and lists are outputs."""

from torch import nn


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.one, self.two, self.three, self.head = nn.Linear(3, 6), nn.Linear(6, 5), nn.Linear(5, 4), nn.Linear(4, 2)

    def forward(self, x):
        features = self.two(self.one(x).relu())
        return {"logits": self.head(self.three(features)), "features": [features, None]}


example = (2, 3)
groups = [{"one:out", "two:in"}, {"three:out", "head:in"}]
widths = [6, 4]
