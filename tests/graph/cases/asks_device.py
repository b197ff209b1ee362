"""A model that moves constants to the device of its input."""

import torch
from torch import nn


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.one, self.head = nn.Linear(3, 6), nn.Linear(6, 2)
        self.shift = torch.tensor(0.5, dtype=torch.float64)

    def forward(self, x):
        steps = torch.arange(x.shape[0], device=x.device, dtype=x.dtype)
        if x.device.type != "cpu":
            raise ValueError("this model runs on the CPU")
        return self.head(self.one(x) + self.shift.to(x.device) + steps[:, None])


example = (2, 3)
groups = [{"one:out", "head:in"}]
widths = [6]
