"""The gate of a squeeze-and-excite block has one number for each channel it scales."""

from torch import nn


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 2, 1)
        self.squeeze, self.excite = nn.Conv2d(8, 4, 1), nn.Conv2d(4, 8, 1)

    def forward(self, x):
        x = self.conv(x)
        gate = self.excite(self.squeeze(x.mean((2, 3), keepdim=True)).relu()).sigmoid()
        return self.head(x * gate)


example = (2, 3, 6, 6)
groups = [{"conv:out", "squeeze:in", "excite:out", "head:in"}, {"squeeze:out", "excite:in"}]
widths = [8, 4]
