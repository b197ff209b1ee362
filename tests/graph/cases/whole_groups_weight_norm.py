"""A computed weight has one set of columns for all groups: they stay, and groups go by their rows."""

import torch
from torch import nn
from torch.nn import functional as F


class Standardised(nn.Conv2d):
    def forward(self, x):
        mean = self.weight.mean((1, 2, 3), keepdim=True)
        std = self.weight.std((1, 2, 3), keepdim=True)
        weight = (self.weight - mean) / torch.sqrt(std.square() + 1e-5)
        return F.conv2d(x, weight, self.bias, self.stride, self.padding, self.dilation, self.groups)


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.head = nn.Conv2d(3, 12, 1), nn.Conv2d(8, 2, 1)
        self.normed = nn.utils.parametrizations.weight_norm(nn.Conv2d(12, 12, 3, padding=1, groups=4))
        self.standardised = Standardised(12, 8, 3, padding=1, groups=4)

    def forward(self, x):
        return self.head(self.standardised(self.normed(self.stem(x)).relu()).relu())


example = (2, 3, 6, 6)
options = {"conv_groups": "whole"}
groups = [{"stem:out", "normed:out", "standardised:out", "head:in"}]
widths = [4]
