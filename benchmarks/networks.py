"""Networks that only the benchmarks need, for `secateur train benchmarks/networks.py:NAME`."""

from __future__ import annotations

from secateur.models.vgg import VGG, VGG16_WIDTHS


def vgg16_bn_quarter() -> VGG:
    """Build VGG-16 with batch norm and a quarter of each width: 20 million multiply-adds an image against 313.

    At full width a training takes days on two cores. The chain of thirteen convolutions is the same.
    """
    return VGG([width // 4 for width in VGG16_WIDTHS])
