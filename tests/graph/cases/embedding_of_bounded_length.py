"""Rows of an embedding that are shortened as they are read are shortened by what is left of them."""

import torch
from torch import nn


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.words, self.head = nn.Embedding(11, 6, max_norm=0.5), nn.Linear(6, 2)

    def forward(self, ids):
        return self.head(self.words(ids))


example = (torch.arange(8).view(2, 4),)
groups = [{"words:out", "head:in"}]
widths = [6]
