"""After chunk(2) both halves must keep the same number, so the j-th channels of the halves go together."""

from torch import nn


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.left, self.right = nn.Conv2d(3, 10, 1), nn.Conv2d(5, 2, 1), nn.Conv2d(5, 2, 3, padding=1)

    def forward(self, x):
        left, right = self.stem(x).chunk(2, dim=1)
        return self.left(left) + self.right(right)


example = (2, 3, 6, 6)
groups = [{"stem:out", "left:in", "right:in"}]
widths = [5]
