"""A bag of embeddings has their columns."""

import torch
from torch import nn


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.bag, self.head = nn.EmbeddingBag(11, 6), nn.Linear(6, 2)

    def forward(self, ids):
        return self.head(self.bag(ids))


example = (torch.arange(8).view(2, 4),)
groups = [{"bag:out", "head:in"}]
widths = [6]
