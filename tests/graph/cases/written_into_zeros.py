"""Channels written into a blank tensor are not followed, so they stay."""

from torch import nn


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.side, self.head = nn.Conv2d(3, 5, 1), nn.Conv2d(5, 3, 1), nn.Conv2d(6, 2, 1)

    def forward(self, x):
        y = x.new_zeros(x.shape[0], 6, *x.shape[2:])
        y[:, :3] = self.side(self.stem(x))
        y[:, 3:] = x
        return self.head(y)


example = (2, 3, 6, 6)
groups = [{"stem:out", "side:in"}]
widths = [5]
