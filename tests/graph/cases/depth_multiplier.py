"""With a depth multiplier an input channel goes with all the outputs made from it."""

from torch import nn


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.depthwise = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 12, 3, padding=1, groups=4)
        self.norm, self.head = nn.BatchNorm2d(12), nn.Conv2d(12, 2, 1)

    def forward(self, x):
        return self.head(self.norm(self.depthwise(self.stem(x))))


example = (2, 3, 6, 6)
groups = [{"stem:out", "depthwise:out", "norm:out", "head:in"}]
widths = [4]
