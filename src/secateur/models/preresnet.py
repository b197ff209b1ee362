"""Pre-activation ResNet with bottleneck blocks for 32x32 images.

Source: He et al. 2016, "Identity Mappings in Deep Residual Networks", arXiv:1603.05027: batch norm and ReLU come
before each convolution. The first block of a stage has a 1x1 convolution without batch norm on its shortcut, which
reads the activated input.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from ._init import initialise_

EXPANSION = 4


class PreActivationBottleneck(nn.Module):
    """Batch norm, ReLU and convolution, three times: 1x1, 3x3, 1x1 to four times the width.

    Args:
        in_channels: channels coming in.
        width: channels of the first two convolutions; `4 * width` go out.
        stride: stride of the 3x3 convolution.
        is_first: whether the block opens a stage and so needs a convolution on its shortcut.
    """

    def __init__(self, in_channels: int, width: int, *, stride: int, is_first: bool) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.conv1 = nn.Conv2d(in_channels, width, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride=stride, padding=1, bias=False)
        self.bn3 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, EXPANSION * width, 1, bias=False)
        self.shortcut = nn.Conv2d(in_channels, EXPANSION * width, 1, stride=stride, bias=False) if is_first else None

    def forward(self, x: Tensor) -> Tensor:
        """Map (batch, in_channels, height, width) to (batch, 4 * width, height / stride, width / stride)."""
        activated = F.relu(self.bn1(x))
        out = self.conv1(activated)
        out = self.conv2(F.relu(self.bn2(out)))
        out = self.conv3(F.relu(self.bn3(out)))
        around = x if self.shortcut is None else self.shortcut(activated)
        result: Tensor = out + around
        return result


class PreResNet(nn.Module):
    """A 3x3 convolution, three stages of pre-activation bottlenecks, batch norm, ReLU, pooling and a classifier.

    Args:
        block_count: blocks in each stage; the depth is 9 * block_count + 2.
        class_count: number of outputs.
        in_channels: channels of the images.
    """

    def __init__(self, block_count: int, *, class_count: int = 10, in_channels: int = 3) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, 16, 3, padding=1, bias=False)
        blocks: list[nn.Module] = []
        width_in = 16
        for width, stage_stride in ((16, 1), (32, 2), (64, 2)):
            for block in range(block_count):
                is_first = block == 0
                stride = stage_stride if is_first else 1
                blocks.append(PreActivationBottleneck(width_in, width, stride=stride, is_first=is_first))
                width_in = EXPANSION * width
        self.blocks = nn.Sequential(*blocks)
        self.bn = nn.BatchNorm2d(width_in)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(width_in, class_count)
        initialise_(self)

    def forward(self, images: Tensor) -> Tensor:
        """Map (batch, in_channels, height, width) to logits (batch, class_count)."""
        features: Tensor = self.pool(F.relu(self.bn(self.blocks(self.conv1(images)))))
        logits: Tensor = self.fc(features.flatten(1))
        return logits


def preresnet164(class_count: int = 10, in_channels: int = 3) -> PreResNet:
    """Build the pre-activation ResNet-164: 18 bottlenecks a stage."""
    return PreResNet(18, class_count=class_count, in_channels=in_channels)
