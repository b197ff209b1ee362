"""nn.ChannelShuffle is the same as view, transpose, reshape."""

from torch import nn


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.shuffle, self.head = nn.Conv2d(3, 9, 1), nn.ChannelShuffle(3), nn.Conv2d(9, 2, 1)

    def forward(self, x):
        return self.head(self.shuffle(self.stem(x)))


example = (2, 3, 6, 6)
groups = [{"stem:out", "head:in"}]
widths = [3]
