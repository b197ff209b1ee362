"""Through a Fourier transform over positions channels pass, in complex numbers too."""

import torch
from torch import nn


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.up, self.head = nn.Linear(3, 6), nn.Linear(6, 2)
        self.filter = nn.Parameter(torch.empty(3, 6, 2))

    def forward(self, x):
        y = torch.fft.rfft(self.up(x), dim=1, norm="ortho") * torch.view_as_complex(self.filter)
        return self.head(torch.fft.irfft(y, n=x.shape[1], dim=1, norm="ortho"))


example = (2, 5, 3)
groups = [{"up:out", "filter:1", "head:in"}]
widths = [6]
