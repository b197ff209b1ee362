"""ConvNeXt's norm: channels are moved last, normalised and moved back."""

from torch import nn


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.norm, self.head = nn.Conv2d(3, 7, 1), nn.LayerNorm(7), nn.Conv2d(7, 2, 1)

    def forward(self, x):
        return self.head(self.norm(self.conv(x).permute(0, 2, 3, 1)).permute(0, 3, 1, 2))


example = (2, 3, 4, 4)
groups = [{"conv:out", "norm:out", "head:in"}]
widths = [7]
