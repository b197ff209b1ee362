"""scaled_dot_product_attention scales by the width of the queries, so that width stays."""

from torch import nn
from torch.nn import functional as F


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.q, self.k, self.v, self.proj = nn.Linear(5, 6), nn.Linear(5, 6), nn.Linear(5, 4), nn.Linear(4, 2)

    def forward(self, x):
        return self.proj(F.scaled_dot_product_attention(self.q(x), self.k(x), self.v(x)))


example = (2, 6, 5)
groups = [{"v:out", "proj:in"}]
widths = [4]
