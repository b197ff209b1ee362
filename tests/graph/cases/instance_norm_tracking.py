"""With running statistics these are cut like those of batch norm."""

from torch import nn


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 7, 1), nn.Conv2d(7, 2, 1)
        self.norm = nn.InstanceNorm2d(7, affine=True, track_running_stats=True)

    def forward(self, x):
        return self.head(self.norm(self.conv(x)))


example = (2, 3, 4, 4)
groups = [{"conv:out", "norm:out", "head:in"}]
widths = [7]
