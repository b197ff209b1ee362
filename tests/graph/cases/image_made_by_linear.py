"""A linear layer's output seen as an image and flattened again loses channels, not columns of the image."""

from torch import nn


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.width = 5
        self.up, self.head = nn.Linear(3, 5 * 16), nn.Linear(5 * 16, 2)

    def forward(self, x):
        return self.head(self.up(x).view(-1, self.width, 4, 4).relu().flatten(1))


example = (2, 3)
groups = [{"up:out", "head:in"}]
widths = [5]
