"""Instance norm looks at one channel at a time."""

from torch import nn


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.one, self.norm, self.two = nn.Conv2d(3, 7, 1), nn.InstanceNorm2d(7, affine=True), nn.Conv2d(7, 5, 1)
        self.plain, self.head = nn.InstanceNorm2d(5), nn.Conv2d(5, 2, 1)

    def forward(self, x):
        return self.head(self.plain(self.two(self.norm(self.one(x)))))


example = (2, 3, 4, 4)
groups = [{"one:out", "norm:out", "two:in"}, {"two:out", "head:in"}]
widths = [7, 5]
