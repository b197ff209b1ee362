"""Two convolutions that meet in an addition lose the same channels; the skip path counts too."""

from torch import nn


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.branch = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.head = nn.Conv2d(8, 2, 1)

    def forward(self, x):
        x = self.stem(x)
        return self.head(x + self.branch(x).relu())


example = (2, 3, 6, 6)
groups = [{"stem:out", "branch:in", "branch:out", "head:in"}]
widths = [8]
