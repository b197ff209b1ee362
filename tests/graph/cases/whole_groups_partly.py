"""Groups that hold an input of the model, or all that a layer makes, stay; those beside them can go."""

import torch
from torch import nn


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.wide, self.thin = nn.Conv2d(3, 9, 1), nn.Conv2d(3, 3, 1)
        self.grouped, self.head = nn.Conv2d(15, 10, 3, groups=5), nn.Conv2d(10, 2, 1)

    def forward(self, x):
        return self.head(self.grouped(torch.cat([x, self.wide(x), self.thin(x)], dim=1)).relu())


example = (2, 3, 6, 6)
options = {"conv_groups": "whole"}
groups = [{"wide:out", "grouped:in", "grouped:out", "head:in"}]
widths = [3]
