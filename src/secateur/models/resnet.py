"""ResNet for 32x32 images: three stages of basic blocks.

Source: He et al. 2016, "Deep Residual Learning for Image Recognition", arXiv:1512.03385, section 4.2 and
option A / option B of section 3.3. Option A pads the added channels half before and half after the old ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import ModelError
from ._init import initialise_

STAGE_WIDTHS = (16, 32, 64)


class ZeroPadShortcut(nn.Module):
    """Option A: take every second pixel and put channels of zeros before and after the given ones.

    The two counts are attributes of their own, for a pruner may leave more channels on one side than on the other.

    Attributes:
        pad_before: number of zero channels before the input's channels.
        pad_after: number of zero channels after them.
        stride: step between the pixels taken.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.pad_before = (out_channels - in_channels) // 2
        self.pad_after = out_channels - in_channels - self.pad_before
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        """Map (batch, in_channels, height, width) to (batch, out_channels, height / stride, width / stride)."""
        return F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, self.pad_before, self.pad_after))


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut around them.

    Args:
        in_channels: channels coming in.
        inner_channels: channels between the two convolutions; free of the width of the stage.
        out_channels: channels going out.
        stride: stride of the first convolution.
        shortcut: "A" pads with zeros, "B" is a 1x1 convolution with batch norm; used only where shapes differ.
    """

    def __init__(self, in_channels: int, inner_channels: int, out_channels: int, *, stride: int, shortcut: str) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, inner_channels, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(inner_channels)
        self.conv2 = nn.Conv2d(inner_channels, out_channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or in_channels != out_channels:
            self.shortcut = _shortcut(shortcut, in_channels, out_channels, stride)

    def forward(self, x: Tensor) -> Tensor:
        """Map (batch, in_channels, height, width) to (batch, out_channels, height / stride, width / stride)."""
        out = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(out)) + self.shortcut(x))


class ResNet(nn.Module):
    """A 3x3 convolution, three stages of basic blocks, average pooling and a linear classifier.

    Args:
        block_count: blocks in each stage; the depth is 6 * block_count + 2.
        class_count: number of outputs.
        in_channels: channels of the images.
        shortcut: "A" (no parameters) or "B" (1x1 convolution and batch norm) where a stage begins.
        widths: channels of the three stages.
        inner_widths: channels between the two convolutions of each block, first block first; None for the
            width of the stage.

    Raises:
        ModelError: an unknown shortcut, or a number of inner widths that is not the number of blocks.

    >>> import torch
    >>> ResNet(1, in_channels=1)(torch.zeros(2, 1, 8, 8)).shape
    torch.Size([2, 10])
    """

    def __init__(
        self,
        block_count: int,
        *,
        class_count: int = 10,
        in_channels: int = 3,
        shortcut: Literal["A", "B"] = "A",
        widths: Sequence[int] = STAGE_WIDTHS,
        inner_widths: Sequence[int] | None = None,
    ) -> None:
        super().__init__()
        inner = list(inner_widths) if inner_widths is not None else [w for w in widths for _ in range(block_count)]
        if len(inner) != len(widths) * block_count:
            raise ModelError(
                f"inner_widths gives {len(inner)} widths; this network has {len(widths) * block_count} blocks, "
                "and each needs one."
            )
        self.conv1 = nn.Conv2d(in_channels, widths[0], 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(widths[0])
        stages: list[nn.Module] = []
        width_in = widths[0]
        for stage, width in enumerate(widths):
            blocks: list[nn.Module] = []
            for block in range(block_count):
                stride = 2 if stage > 0 and block == 0 else 1
                middle = inner[stage * block_count + block]
                blocks.append(BasicBlock(width_in, middle, width, stride=stride, shortcut=shortcut))
                width_in = width
            stages.append(nn.Sequential(*blocks))
        self.stages = nn.Sequential(*stages)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(width_in, class_count)
        initialise_(self)

    def forward(self, images: Tensor) -> Tensor:
        """Map (batch, in_channels, height, width) to logits (batch, class_count)."""
        features: Tensor = self.pool(self.stages(F.relu(self.bn1(self.conv1(images)))))
        logits: Tensor = self.fc(features.flatten(1))
        return logits


def resnet20(
    class_count: int = 10,
    in_channels: int = 3,
    *,
    shortcut: Literal["A", "B"] = "A",
    inner_widths: Sequence[int] | None = None,
) -> ResNet:
    """Build ResNet-20: 3 blocks a stage."""
    return ResNet(3, class_count=class_count, in_channels=in_channels, shortcut=shortcut, inner_widths=inner_widths)


def resnet32(
    class_count: int = 10,
    in_channels: int = 3,
    *,
    shortcut: Literal["A", "B"] = "A",
    inner_widths: Sequence[int] | None = None,
) -> ResNet:
    """Build ResNet-32: 5 blocks a stage."""
    return ResNet(5, class_count=class_count, in_channels=in_channels, shortcut=shortcut, inner_widths=inner_widths)


def resnet56(
    class_count: int = 10,
    in_channels: int = 3,
    *,
    shortcut: Literal["A", "B"] = "A",
    inner_widths: Sequence[int] | None = None,
) -> ResNet:
    """Build ResNet-56: 9 blocks a stage."""
    return ResNet(9, class_count=class_count, in_channels=in_channels, shortcut=shortcut, inner_widths=inner_widths)


def resnet110(
    class_count: int = 10,
    in_channels: int = 3,
    *,
    shortcut: Literal["A", "B"] = "A",
    inner_widths: Sequence[int] | None = None,
) -> ResNet:
    """Build ResNet-110: 18 blocks a stage."""
    return ResNet(18, class_count=class_count, in_channels=in_channels, shortcut=shortcut, inner_widths=inner_widths)


def digits_resnet(class_count: int = 10, in_channels: int = 1) -> ResNet:
    """Build ResNet-8 for 8x8 grey images: one block a stage, 75,002 parameters with 10 classes."""
    return ResNet(1, class_count=class_count, in_channels=in_channels)


def _shortcut(kind: str, in_channels: int, out_channels: int, stride: int) -> nn.Module:
    if kind == "A":
        return ZeroPadShortcut(in_channels, out_channels, stride)
    if kind == "B":
        conv = nn.Conv2d(in_channels, out_channels, 1, stride=stride, bias=False)
        return nn.Sequential(conv, nn.BatchNorm2d(out_channels))
    raise ModelError(f"shortcut={kind!r}: expected 'A' (zero padding) or 'B' (1x1 convolution and batch norm).")
