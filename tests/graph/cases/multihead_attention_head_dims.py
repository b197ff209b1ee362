"""torch's own attention divides by its head width, so even on demand it loses no head dimensions, and no heads then."""

from torch import nn


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.attention = nn.Linear(5, 8), nn.MultiheadAttention(8, 2, batch_first=True)
        self.head = nn.Linear(8, 2)

    def forward(self, x):
        x = self.stem(x)
        return self.head(self.attention(x, x, x)[0])


example = (2, 6, 5)
options = {"granularity": "head_dims"}
groups = [{"stem:out", "attention.in_proj_weight:1"}, {"attention.out_proj:out", "head:in"}]
widths = [8, 8]
