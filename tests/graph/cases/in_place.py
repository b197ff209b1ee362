"""In-place arithmetic is arithmetic."""

from torch import nn


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.one, self.other, self.head = nn.Conv2d(3, 6, 1), nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(6, 2, 1)

    def forward(self, x):
        y = self.one(x)
        y += self.other(x)
        y.mul_(0.5).relu_().clamp_(max=2.0)
        return self.head(y)


example = (2, 3, 6, 6)
groups = [{"one:out", "other:out", "head:in"}]
widths = [6]
