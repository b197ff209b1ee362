"""Tokens chosen by a score: channels pass, what the score is read off is frozen where its order counts."""

import torch
from torch import nn


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.up, self.score, self.head = nn.Linear(3, 6), nn.Linear(6, 1), nn.Linear(6, 2)

    def forward(self, x):
        x = self.up(x)
        best = self.score(x).squeeze(-1).topk(2, dim=1).indices
        return self.head(x[torch.arange(x.shape[0])[:, None], best])


example = (2, 5, 3)
groups = [{"up:out", "score:in", "head:in"}]
widths = [6]
