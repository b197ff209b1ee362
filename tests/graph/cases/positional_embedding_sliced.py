"""Positions taken off a longer table by the length of the input."""

import torch
from torch import nn


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.words, self.head, self.positions = nn.Embedding(11, 6), nn.Linear(6, 2), nn.Embedding(9, 6)
        self.register_buffer("ids", torch.arange(9).unsqueeze(0))

    def forward(self, words):
        return self.head((self.words(words) + self.positions(self.ids[:, : words.shape[1]])).tanh())


example = (torch.arange(8).view(2, 4),)
groups = [{"words:out", "positions:out", "head:in"}]
widths = [6]
