"""A linear layer whose weight another layer makes: its rows can go, not its columns as well."""

from torch import nn
from torch.nn import functional as F


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.rows, self.columns = 4, 6
        self.make, self.up, self.head = nn.Linear(4, 24), nn.Linear(3, 6), nn.Linear(4, 2)

    def forward(self, x, z):
        weight = self.make(z).view(self.rows, self.columns)
        return self.head(F.linear(self.up(x), weight).relu())


example = ((2, 3), (4,))
groups = [{"make:out", "head:in"}]
widths = [4]
