"""A fixed kernel repeated for as many channels as there are (BlurPool) follows them, repeated or expanded."""

import torch
from torch import nn
from torch.nn import functional as F


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.one, self.two, self.head = nn.Conv2d(3, 6, 1), nn.Conv2d(6, 5, 1), nn.Conv2d(5, 2, 1)
        self.register_buffer("kernel", torch.empty(1, 1, 3, 3))

    def forward(self, x):
        x = self.one(x)
        x = self.two(F.conv2d(x, self.kernel.repeat(x.shape[1], 1, 1, 1), groups=x.shape[1], padding=1))
        return self.head(F.conv2d(x, self.kernel.expand(x.shape[1], -1, -1, -1), groups=x.shape[1]))


example = (2, 3, 6, 6)
groups = [{"one:out", "two:in"}, {"two:out", "head:in"}]
widths = [6, 5]
