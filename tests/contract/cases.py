"""The tiny models that every promise is held on, their data, and the problems made of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from secateur import Budget, ChannelGraph, Limits, trace
from secateur.methods import Problem
from secateur.train import ClassificationTask

from ..networks import randomise

CLASSES, SIZE = 3, 8


class Plain(nn.Module):
    """Convolutions without normalisation, flattened into a linear layer."""

    def __init__(self):
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(3, 10, 3, padding=1), nn.Conv2d(10, 8, 3, padding=1)
        self.hidden, self.head = nn.Linear(8 * 16, 12), nn.Linear(12, CLASSES)

    def forward(self, x):
        x = F.max_pool2d(F.relu(self.conv1(x)), 2)
        return self.head(F.relu(self.hidden(F.relu(self.conv2(x)).flatten(1))))


class Residual(nn.Module):
    """A block around an identity, then one around a projection."""

    def __init__(self):
        super().__init__()
        self.stem, self.stem_bn = nn.Conv2d(3, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6)
        self.conv1, self.bn1 = nn.Conv2d(6, 14, 3, padding=1, bias=False), nn.BatchNorm2d(14)
        self.conv2, self.bn2 = nn.Conv2d(14, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6)
        self.conv3, self.bn3 = nn.Conv2d(6, 12, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(12)
        self.conv4, self.bn4 = nn.Conv2d(12, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.projection, self.projection_bn = nn.Conv2d(6, 8, 1, stride=2, bias=False), nn.BatchNorm2d(8)
        self.head = nn.Linear(8, CLASSES)

    def forward(self, x):
        x = F.relu(self.stem_bn(self.stem(x)))
        x = F.relu(x + self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x))))))
        y = self.bn4(self.conv4(F.relu(self.bn3(self.conv3(x)))))
        return self.head(F.relu(y + self.projection_bn(self.projection(x))).mean((2, 3)))


class Concatenated(nn.Module):
    """Two branches side by side, normalised together."""

    def __init__(self):
        super().__init__()
        self.left, self.right = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(3, 6, 1)
        self.bn1, self.conv = nn.BatchNorm2d(14), nn.Conv2d(14, 10, 3, padding=1)
        self.bn2, self.head = nn.BatchNorm2d(10), nn.Linear(10, CLASSES)

    def forward(self, x):
        x = F.relu(self.bn1(torch.cat([self.left(x), self.right(x)], dim=1)))
        return self.head(F.relu(self.bn2(self.conv(x))).mean((2, 3)))


class Grouped(nn.Module):
    """A grouped convolution between two others, then a depthwise one."""

    def __init__(self):
        super().__init__()
        self.enter, self.bn1 = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.grouped, self.bn2 = nn.Conv2d(8, 12, 3, padding=1, groups=2), nn.BatchNorm2d(12)
        self.expand, self.bn3 = nn.Conv2d(12, 10, 1), nn.BatchNorm2d(10)
        self.depthwise, self.bn4 = nn.Conv2d(10, 10, 3, padding=1, groups=10), nn.BatchNorm2d(10)
        self.head = nn.Linear(10, CLASSES)

    def forward(self, x):
        x = F.relu(self.bn1(self.enter(x)))
        x = F.relu(self.bn2(self.grouped(x)))
        x = F.relu(self.bn3(self.expand(x)))
        return self.head(F.relu(self.bn4(self.depthwise(x))).mean((2, 3)))


class Groups(nn.Module):
    """A bottleneck of ResNeXt with groups of two channels in and three out; whole groups are to go."""

    def __init__(self):
        super().__init__()
        self.stem, self.stem_bn = nn.Conv2d(3, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6)
        self.conv1, self.bn1 = nn.Conv2d(6, 16, 1, bias=False), nn.BatchNorm2d(16)
        self.conv2, self.bn2 = nn.Conv2d(16, 24, 3, padding=1, groups=8, bias=False), nn.BatchNorm2d(24)
        self.conv3, self.bn3 = nn.Conv2d(24, 6, 1, bias=False), nn.BatchNorm2d(6)
        self.head = nn.Linear(6, CLASSES)

    def forward(self, x):
        x = F.relu(self.stem_bn(self.stem(x)))
        y = F.relu(self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x))))))
        return self.head(F.relu(x + self.bn3(self.conv3(y))).mean((2, 3)))


class Attention(nn.Module):
    """Patches, one transformer block of four heads with fused query, key and value, mean over tokens."""

    def __init__(self):
        super().__init__()
        self.heads, self.head_dim = 4, 3
        self.patches = nn.Conv2d(3, 8, 4, stride=4)
        self.norm1, self.norm2 = nn.LayerNorm(8), nn.LayerNorm(8)
        self.qkv, self.out = nn.Linear(8, 3 * 12), nn.Linear(12, 8)
        self.up, self.down = nn.Linear(8, 16), nn.Linear(16, 8)
        self.head = nn.Linear(8, CLASSES)

    def forward(self, x):
        x = self.patches(x).flatten(2).transpose(1, 2)
        batch, length, _ = x.shape
        qkv = self.qkv(self.norm1(x)).reshape(batch, length, 3, self.heads, self.head_dim).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(*qkv.unbind(0)).transpose(1, 2).reshape(batch, length, -1)
        x = x + self.out(mixed)
        x = x + self.down(F.gelu(self.up(self.norm2(x))))
        return self.head(x.mean(1))


@dataclass(frozen=True)
class Case:
    """One tiny model and what is made of it.

    Attributes:
        name: in test names.
        make: the model, as its class makes it.
        conv_groups: as in `trace`.
    """

    name: str
    make: Callable[[], nn.Module]
    conv_groups: str = "narrow"

    def model(self, dtype: torch.dtype = torch.float32) -> nn.Module:
        """Build the model in evaluation mode; its weights are always the same, and no two alike."""
        with torch.random.fork_rng(devices=[]):
            model = self.make().double().eval()
        randomise(model, torch.Generator().manual_seed(3))
        return model.to(dtype)

    def images(self, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.randn(2, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(5)).to(dtype)

    def data(self, dtype: torch.dtype = torch.float32) -> list[tuple[Tensor, Tensor]]:
        """Four batches of eight images with labels."""
        generator = torch.Generator().manual_seed(7)
        images = torch.randn(4, 8, 3, SIZE, SIZE, generator=generator)
        labels = torch.randint(CLASSES, (4, 8), generator=generator)
        return [(batch.to(dtype), label) for batch, label in zip(images, labels, strict=True)]

    @property
    def graph(self) -> ChannelGraph:
        """The channel graph, traced once; it knows nothing of weights, so every copy of the model can use it."""
        return self.graph_in(torch.float32)

    def graph_in(self, dtype: torch.dtype, device: str = "cpu") -> ChannelGraph:
        return _graph(self, dtype, device)

    def problem(self, remove: float = 0.3, of: str = "channels", **changes: Any) -> Problem:
        """Return a problem on a fresh model, with data and task; `changes` replaces any part of it."""
        dtype, device = changes.pop("dtype", torch.float32), changes.pop("device", "cpu")
        limits = Limits(**changes.pop("limits", {}))
        parts = {
            "model": self.model(dtype).to(device) if "model" not in changes else None,
            "graph": self.graph_in(dtype, device),
            "args": (self.images(dtype).to(device),),
            "data": self.data(dtype),
            "task": ClassificationTask(),
        }
        return Problem(budget=Budget(remove, of), limits=limits, **{**parts, **changes})


@cache
def _graph(case: Case, dtype: torch.dtype, device: str) -> ChannelGraph:
    return trace(case.model(dtype).to(device), case.images(dtype).to(device), conv_groups=case.conv_groups)


CASES = {
    case.name: case
    for case in (
        Case("plain", Plain),
        Case("residual", Residual),
        Case("concat", Concatenated),
        Case("grouped", Grouped),
        Case("attention", Attention),
    )
}
CHANNEL_CASES = CASES | {"whole groups": Case("whole groups", Groups, conv_groups="whole")}
