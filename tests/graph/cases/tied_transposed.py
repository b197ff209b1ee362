"""One matrix used both ways round: encoder rows are decoder columns."""

from torch import nn
from torch.nn import functional as F


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.encode, self.inner = nn.Linear(5, 8), nn.Linear(8, 8)

    def forward(self, x):
        hidden = self.inner(self.encode(x).relu())
        return F.linear(hidden, self.encode.weight.t())


example = (2, 4, 5)
groups = [{"encode:out", "inner:in", "inner:out"}]
widths = [8]
