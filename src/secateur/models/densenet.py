"""DenseNet for 32x32 images, without bottlenecks and without compression.

Source: Huang et al. 2017, "Densely Connected Convolutional Networks", arXiv:1608.06993, section 3. The paper starts
with 16 channels; Liu et al. 2017 (arXiv:1708.06519) and their followers prune the version that starts with 24.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ._init import initialise_


class DenseLayer(nn.Module):
    """Batch norm, ReLU, 3x3 convolution; the result is put behind the input."""

    def __init__(self, in_channels: int, growth: int) -> None:
        super().__init__()
        self.bn = nn.BatchNorm2d(in_channels)
        self.conv = nn.Conv2d(in_channels, growth, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map (batch, in_channels, height, width) to (batch, in_channels + growth, height, width)."""
        return torch.cat([x, self.conv(F.relu(self.bn(x)))], dim=1)


class Transition(nn.Module):
    """Batch norm, ReLU, 1x1 convolution of equal width, 2x2 average pooling."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.bn = nn.BatchNorm2d(channels)
        self.conv = nn.Conv2d(channels, channels, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map (batch, channels, height, width) to (batch, channels, height / 2, width / 2)."""
        return F.avg_pool2d(self.conv(F.relu(self.bn(x))), 2)


class DenseNet(nn.Module):
    """A 3x3 convolution and three dense blocks with transitions between, then pooling and a linear classifier.

    Args:
        layer_count: layers in each dense block; the depth is 3 * layer_count + 4.
        class_count: number of outputs.
        in_channels: channels of the images.
        growth: channels that each layer adds.
        stem_width: channels of the first convolution.
    """

    def __init__(
        self,
        layer_count: int = 12,
        *,
        class_count: int = 10,
        in_channels: int = 3,
        growth: int = 12,
        stem_width: int = 24,
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, stem_width, 3, padding=1, bias=False)
        layers: list[nn.Module] = []
        width = stem_width
        for stage in range(3):
            if stage:
                layers.append(Transition(width))
            for _ in range(layer_count):
                layers.append(DenseLayer(width, growth))
                width += growth
        self.layers = nn.Sequential(*layers)
        self.bn = nn.BatchNorm2d(width)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(width, class_count)
        initialise_(self)

    def forward(self, images: Tensor) -> Tensor:
        """Map (batch, in_channels, height, width) to logits (batch, class_count)."""
        features: Tensor = self.pool(F.relu(self.bn(self.layers(self.conv1(images)))))
        logits: Tensor = self.fc(features.flatten(1))
        return logits


def densenet40(class_count: int = 10, in_channels: int = 3, *, stem_width: int = 24) -> DenseNet:
    """Build DenseNet-40 with growth 12; `stem_width=16` is the network of the DenseNet paper."""
    return DenseNet(class_count=class_count, in_channels=in_channels, stem_width=stem_width)
