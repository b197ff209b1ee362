"""A whole encoder layer: the trunk, the heads and the MLP's neurons."""

from torch import nn


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.head = nn.Linear(5, 8), nn.Linear(8, 2)
        self.layer = nn.TransformerEncoderLayer(8, 2, 7, batch_first=True)

    def forward(self, x):
        return self.head(self.layer(self.stem(x)))


example = (2, 6, 5)
groups = [
    {
        "stem:out",
        "layer.self_attn.in_proj_weight:1",
        "layer.self_attn.out_proj:out",
        "layer.norm1:out",
        "layer.linear1:in",
        "layer.linear2:out",
        "layer.norm2:out",
        "head:in",
    },
    {"layer.self_attn.in_proj_weight:0", "layer.self_attn.in_proj_bias:0", "layer.self_attn.out_proj:in"},
    {"layer.linear1:out", "layer.linear2:in"},
]
widths = [8, 2, 7]
