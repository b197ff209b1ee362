"""The same rules hold for one and three spatial axes."""

from torch import nn


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.solid, self.line = nn.Conv3d(2, 6, 3, padding=1), nn.Conv1d(6, 5, 3, padding=1)
        self.up, self.head = nn.ConvTranspose1d(5, 4, 2, stride=2), nn.Conv1d(4, 2, 1)

    def forward(self, x):
        x = self.solid(x).mean((3, 4))
        return self.head(self.up(self.line(x.relu())).relu())


example = (2, 2, 4, 4, 4)
groups = [{"solid:out", "line:in"}, {"line:out", "up:in"}, {"up:out", "head:in"}]
widths = [6, 5, 4]
