"""With as many groups as channels a group norm looks at one channel at a time, and its groups follow the channels."""

from torch import nn


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.one, self.norm, self.two = nn.Conv2d(3, 6, 1), nn.GroupNorm(6, 6), nn.Conv2d(6, 4, 1)
        self.plain, self.head = nn.GroupNorm(4, 4, affine=False), nn.Conv2d(4, 2, 1)

    def forward(self, x):
        return self.head(self.plain(self.two(self.norm(self.one(x)))))


example = (2, 3, 4, 4)
groups = [{"one:out", "norm:out", "two:in"}, {"two:out", "head:in"}]
widths = [6, 4]
