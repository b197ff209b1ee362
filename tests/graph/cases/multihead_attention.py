"""torch's own module: heads go, and the width around it too."""

from torch import nn


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.head = nn.Linear(5, 12), nn.Linear(12, 2)
        self.attention = nn.MultiheadAttention(12, 4, batch_first=True)

    def forward(self, x):
        x = self.stem(x)
        return self.head(self.attention(x, x, x, need_weights=False)[0])


example = (2, 6, 5)
groups = [
    {"stem:out", "attention.in_proj_weight:1"},
    {"attention.in_proj_weight:0", "attention.in_proj_bias:0", "attention.out_proj:in"},
    {"attention.out_proj:out", "head:in"},
]
widths = [12, 4, 12]
