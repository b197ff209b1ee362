"""A product of channels with channels (a Gram matrix) has channels on both axes; flattened, it is frozen."""

from torch import nn


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.conv, self.head = nn.Conv2d(3, 6, 1), nn.Conv2d(6, 4, 1), nn.Linear(16, 2)

    def forward(self, x):
        x = self.conv(self.stem(x)).flatten(2)
        return self.head((x @ x.transpose(1, 2)).flatten(1))


example = (2, 3, 4, 4)
groups = [{"stem:out", "conv:in"}]
widths = [6]
