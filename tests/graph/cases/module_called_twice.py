"""A module called twice in a row has the same width before and after."""

from torch import nn


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.shared, self.head = nn.Conv2d(3, 6, 1), nn.Conv2d(6, 6, 3, padding=1), nn.Conv2d(6, 2, 1)

    def forward(self, x):
        return self.head(self.shared(self.shared(self.stem(x)).relu()).relu())


example = (2, 3, 6, 6)
groups = [{"stem:out", "shared:in", "shared:out", "head:in"}]
widths = [6]
