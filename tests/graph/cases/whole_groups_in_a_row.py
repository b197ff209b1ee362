"""Two grouped convolutions in a row are one channel a group; a shuffle between them joins all groups, so they stay."""

from torch import nn


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.one, self.two = nn.Conv2d(3, 9, 1), nn.Conv2d(9, 6, 3, groups=3), nn.Conv2d(6, 12, 1, groups=3)
        self.before, self.after = nn.Conv2d(12, 8, 1, groups=2), nn.Conv2d(8, 4, 1, groups=2)
        self.expand, self.shuffle, self.head = nn.Conv2d(12, 12, 1), nn.ChannelShuffle(2), nn.Conv2d(4, 2, 1)

    def forward(self, x):
        x = self.expand(self.two(self.one(self.stem(x)).relu()))
        return self.head(self.after(self.shuffle(self.before(x).relu())))


example = (2, 3, 6, 6)
options = {"conv_groups": "whole"}
groups = [{"stem:out", "one:in", "one:out", "two:in", "two:out", "expand:in"}]
widths = [3]
