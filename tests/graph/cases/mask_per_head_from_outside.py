"""Attention masks given for every head hold the heads of torch's own module, values too."""

from torch import nn


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.attention = nn.Linear(5, 8), nn.MultiheadAttention(8, 2, batch_first=True)
        self.head = nn.Linear(8, 2)

    def forward(self, x, mask):
        x = self.stem(x)
        return self.head(self.attention(x, x, x, attn_mask=mask, need_weights=False)[0])


example = ((2, 6, 5), (4, 6, 6))
groups = [{"stem:out", "attention.in_proj_weight:1"}, {"attention.out_proj:out", "head:in"}]
widths = [8, 8]
