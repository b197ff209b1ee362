"""Every second channel: which one is second changes with a cut, so nothing may go."""

from torch import nn


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.left, self.right = nn.Conv2d(3, 8, 1), nn.Conv2d(4, 2, 1), nn.Conv2d(4, 2, 1)

    def forward(self, x):
        x = self.stem(x)
        return self.left(x[:, ::2]) + self.right(x[:, 1::2])


example = (2, 3, 6, 6)
groups = []
