"""Heads inside windows that are cut out of the image, turned round and put back (Swin)."""

from torch import nn


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.heads, self.window = 3, 2
        self.stem, self.qkv, self.proj = nn.Linear(3, 7), nn.Linear(7, 18), nn.Linear(6, 2)

    def forward(self, x):
        x = self.stem(x).roll((-1, -1), dims=(1, 2))
        batch, height, width, channels = x.shape
        w = self.window
        x = (
            x.view(batch, height // w, w, width // w, w, channels)
            .permute(0, 1, 3, 2, 4, 5)
            .reshape(-1, w * w, channels)
        )
        q, k, v = self.qkv(x).view(x.shape[0], w * w, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        x = ((q @ k.transpose(-2, -1)).softmax(-1) @ v).transpose(1, 2).flatten(2)
        x = x.view(batch, height // w, width // w, w, w, -1).permute(0, 1, 3, 2, 4, 5)
        return self.proj(x.reshape(batch, height, width, -1).roll((1, 1), dims=(1, 2)))


example = (2, 4, 4, 3)
groups = [{"stem:out", "qkv:in"}, {"qkv:out", "proj:in"}]
widths = [7, 3]
