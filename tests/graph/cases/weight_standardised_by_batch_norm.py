"""The same through F.batch_norm on the reshaped weight, as timm does it."""

import torch
from torch import nn
from torch.nn import functional as F


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.conv, self.head = nn.Conv2d(3, 5, 1), nn.Conv2d(5, 6, 3, padding=1), nn.Conv2d(6, 2, 1)
        self.gain = nn.Parameter(torch.empty(6, 1, 1, 1))

    def forward(self, x):
        weight = self.conv.weight
        flat = weight.reshape(1, self.conv.out_channels, -1)
        flat = F.batch_norm(flat, None, None, weight=self.gain.view(-1), training=True, momentum=0.0)
        return self.head(F.conv2d(self.stem(x), flat.reshape_as(weight), self.conv.bias, padding=1).relu())


example = (2, 3, 6, 6)
groups = [{"stem:out", "conv:in"}, {"conv:out", "gain:0", "head:in"}]
widths = [5, 6]
