"""What the model returns keeps its width, also in the middle of it."""

from torch import nn


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.one, self.two, self.head = nn.Linear(3, 6), nn.Linear(6, 5), nn.Linear(5, 2)

    def forward(self, x):
        features = self.two(self.one(x).relu())
        return self.head(features), features


example = (2, 3)
groups = [{"one:out", "two:in"}]
widths = [6]
