"""Inside a residual branch the width is free; only the ends are tied to the trunk."""

from torch import nn


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.head = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 2, 1)
        self.up, self.norm, self.down = nn.Conv2d(8, 6, 1, bias=False), nn.BatchNorm2d(6), nn.Conv2d(6, 8, 1)

    def forward(self, x):
        x = self.stem(x)
        return self.head(x + self.down(self.norm(self.up(x)).relu()))


example = (2, 3, 6, 6)
groups = [{"stem:out", "up:in", "down:out", "head:in"}, {"up:out", "norm:out", "down:in"}]
widths = [8, 6]
