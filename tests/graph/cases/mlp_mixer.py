"""Mixing along tokens: hidden tokens are channels, the tokens themselves belong to the image."""

from torch import nn
from torch.nn import functional as F


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.head = nn.Linear(3, 6), nn.Linear(6, 2)
        self.token_up, self.token_down = nn.Linear(5, 7), nn.Linear(7, 5)
        self.up, self.down = nn.Linear(6, 8), nn.Linear(8, 6)

    def forward(self, x):
        x = self.stem(x)
        x = x + self.token_down(F.gelu(self.token_up(x.transpose(1, 2)))).transpose(1, 2)
        return self.head(x + self.down(F.gelu(self.up(x))))


example = (2, 5, 3)
groups = [
    {"stem:out", "up:in", "down:out", "head:in"},
    {"token_up:out", "token_down:in"},
    {"up:out", "down:in"},
]
widths = [6, 7, 8]
