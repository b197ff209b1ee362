"""Features divided by their length: a length over the channels that are left."""

from torch import nn


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.one, self.two, self.head = nn.Linear(3, 6), nn.Linear(6, 5), nn.Linear(5, 2)

    def forward(self, x):
        x = self.one(x)
        x = self.two(x / x.norm(dim=-1, keepdim=True)).relu()
        return self.head(x / (x.pow(2).sum(-1, keepdim=True) + 1e-3).sqrt())


example = (2, 3)
groups = [{"one:out", "two:in"}, {"two:out", "head:in"}]
widths = [6, 5]
