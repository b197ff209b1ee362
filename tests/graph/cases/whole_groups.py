"""On demand a group of a grouped convolution is one channel: the rows that make its inputs, and all that reads it."""

from torch import nn


class Model(nn.Module):
    """A bottleneck of ResNeXt with four groups of three channels in and two out."""

    def __init__(self):
        super().__init__()
        self.stem, self.conv1, self.bn1 = nn.Conv2d(3, 5, 1), nn.Conv2d(5, 12, 1, bias=False), nn.BatchNorm2d(12)
        self.conv2, self.bn2 = nn.Conv2d(12, 8, 3, padding=1, groups=4), nn.BatchNorm2d(8)
        self.conv3, self.head = nn.Conv2d(8, 5, 1), nn.Linear(5, 2)

    def forward(self, x):
        x = self.stem(x)
        out = self.bn2(self.conv2(self.bn1(self.conv1(x)).relu())).relu()
        return self.head((x + self.conv3(out)).relu().mean((2, 3)))


example = (2, 3, 6, 6)
options = {"conv_groups": "whole"}
groups = [
    {"stem:out", "conv1:in", "conv3:out", "head:in"},
    {"conv1:out", "bn1:out", "conv2:in", "conv2:out", "bn2:out", "conv3:in"},
]
widths = [5, 4]
