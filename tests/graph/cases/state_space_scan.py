"""A recurrence by hand over positions: the state has a channel axis and an axis of its own."""

import torch
from torch import nn


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.up, self.decay = nn.Linear(3, 6), nn.Parameter(torch.empty(6, 4))
        self.drive, self.read, self.head = nn.Linear(6, 4), nn.Linear(6, 4), nn.Linear(6, 2)

    def forward(self, x):
        x = self.up(x)
        state, outputs = x.new_zeros(x.shape[0], *self.decay.shape), []
        for step in x.unbind(1):
            state = state * self.decay.sigmoid() + step[..., None] * self.drive(step)[:, None]
            outputs.append((state * self.read(step)[:, None]).sum(-1))
        return self.head(torch.stack(outputs, dim=1))


example = (2, 4, 3)
groups = [{"up:out", "decay:0", "drive:in", "read:in", "head:in"}, {"decay:1", "drive:out", "read:out"}]
widths = [6, 4]
