"""Weight norm on linear layers, and on a grouped convolution."""

from torch import nn


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        norm = nn.utils.parametrizations.weight_norm
        self.one, self.two = norm(nn.Linear(3, 6)), norm(nn.Linear(6, 4))
        self.grouped, self.head = norm(nn.Conv1d(4, 6, 3, padding=1, groups=2)), nn.Conv1d(6, 2, 1)

    def forward(self, x):
        x = self.two(self.one(x).relu()).transpose(1, 2)
        return self.head(self.grouped(x.relu()))


example = (2, 5, 3)
groups = [{"one:out", "two:in"}, {"two:out", "grouped:in"}, {"grouped:out", "head:in"}]
widths = [6, 2, 3]
