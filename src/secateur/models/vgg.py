"""VGG with batch norm for 32x32 images.

Source: Simonyan & Zisserman 2015, "Very Deep Convolutional Networks for Large-Scale Image Recognition",
arXiv:1409.1556, with the head of the CIFAR versions used by Li et al. 2017 (arXiv:1608.08710) and
Liu et al. 2017 (arXiv:1708.06519): average pooling and one or two linear layers in place of three.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from ._init import initialise_

POOL = 0  # stands for a 2x2 maximum pooling in a list of widths

VGG16_WIDTHS = (64, 64, POOL, 128, 128, POOL, *(256,) * 3, POOL, *(512,) * 3, POOL, *(512,) * 3)
VGG19_WIDTHS = (64, 64, POOL, 128, 128, POOL, *(256,) * 4, POOL, *(512,) * 4, POOL, *(512,) * 4)
# Li et al. 2017, section 4.1: half of the filters of the first and of the last six convolutions are gone.
VGG16_A_WIDTHS = (32, 64, POOL, 128, 128, POOL, *(256,) * 3, POOL, *(256,) * 3, POOL, *(256,) * 3)


class VGG(nn.Module):
    """A chain of 3x3 convolutions with batch norm, then average pooling and a linear classifier.

    Args:
        widths: output channels of each convolution in order; `POOL` (0) halves the height and width.
        class_count: number of outputs.
        in_channels: channels of the images.
        conv_bias: give the convolutions a bias (a batch norm follows, so it changes counts, not functions).
        hidden_width: width of a hidden linear layer with batch norm before the classifier; 0 for none.

    >>> import torch
    >>> model = VGG((8, POOL, 16), class_count=10, in_channels=1)
    >>> model(torch.zeros(2, 1, 8, 8)).shape
    torch.Size([2, 10])
    """

    def __init__(
        self,
        widths: Sequence[int] = VGG16_WIDTHS,
        *,
        class_count: int = 10,
        in_channels: int = 3,
        conv_bias: bool = False,
        hidden_width: int = 0,
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        width_in = in_channels
        for width in widths:
            if width == POOL:
                layers.append(nn.MaxPool2d(2))
                continue
            layers += [nn.Conv2d(width_in, width, 3, padding=1, bias=conv_bias), nn.BatchNorm2d(width), nn.ReLU()]
            width_in = width
        self.features = nn.Sequential(*layers)
        self.pool = nn.AdaptiveAvgPool2d(1)
        head: list[nn.Module] = []
        if hidden_width:
            head = [nn.Linear(width_in, hidden_width), nn.BatchNorm1d(hidden_width), nn.ReLU()]
        self.classifier = nn.Sequential(*head, nn.Linear(hidden_width or width_in, class_count))
        initialise_(self, norm_scale=0.5)

    def forward(self, images: Tensor) -> Tensor:
        """Map (batch, in_channels, height, width) to logits (batch, class_count)."""
        features: Tensor = self.pool(self.features(images))
        logits: Tensor = self.classifier(features.flatten(1))
        return logits


def vgg16_bn(class_count: int = 10, in_channels: int = 3, *, conv_bias: bool = False, hidden_width: int = 0) -> VGG:
    """Build VGG-16: 13 convolutions; `hidden_width=512` gives the two-layer head of Li et al. 2017."""
    return VGG(
        VGG16_WIDTHS,
        class_count=class_count,
        in_channels=in_channels,
        conv_bias=conv_bias,
        hidden_width=hidden_width,
    )


def vgg16_bn_a(class_count: int = 10, in_channels: int = 3, *, conv_bias: bool = False, hidden_width: int = 0) -> VGG:
    """Build VGG-16-A, the network that L1 filter pruning leaves of VGG-16 (Li et al. 2017, section 4.1)."""
    return VGG(
        VGG16_A_WIDTHS,
        class_count=class_count,
        in_channels=in_channels,
        conv_bias=conv_bias,
        hidden_width=hidden_width,
    )


def vgg19_bn(class_count: int = 10, in_channels: int = 3, *, conv_bias: bool = False, hidden_width: int = 0) -> VGG:
    """Build VGG-19: 16 convolutions, the network of network slimming (Liu et al. 2017)."""
    return VGG(
        VGG19_WIDTHS,
        class_count=class_count,
        in_channels=in_channels,
        conv_bias=conv_bias,
        hidden_width=hidden_width,
    )
