"""A batch norm that always uses the batch has no running statistics to cut."""

from torch import nn


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 7, 1), nn.BatchNorm2d(7, track_running_stats=False)
        self.head = nn.Conv2d(7, 2, 1)

    def forward(self, x):
        return self.head(self.norm(self.conv(x)))


example = (2, 3, 4, 4)
groups = [{"conv:out", "norm:out", "head:in"}]
widths = [7]
