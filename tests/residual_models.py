"""Small hand-made residual networks of every common form."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn


class PostActivation(nn.Module):
    """A basic block: relu(shortcut + bn2(conv2(relu(bn1(conv1))))), added in place, one ReLU module for all."""

    def __init__(self, inputs: int = 4, outputs: int = 4, stride: int = 1):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(inputs, 6, 3, stride=stride, padding=1, bias=False), nn.BatchNorm2d(6)
        self.conv2, self.bn2 = nn.Conv2d(6, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs)
        self.relu = nn.ReLU(inplace=True)
        self.project = nn.Conv2d(inputs, outputs, 1, stride=stride) if stride > 1 or inputs != outputs else None

    def forward(self, x):
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        out += x if self.project is None else self.project(x)
        return self.relu(out)


class PreActivation(nn.Module):
    """conv2(relu(bn2(conv1(relu(bn1(x)))))); a projection reads relu(bn1(x)) too."""

    def __init__(self, inputs: int = 4, outputs: int = 4, stride: int = 1):
        super().__init__()
        self.bn1, self.conv1 = nn.BatchNorm2d(inputs), nn.Conv2d(inputs, 6, 3, stride=stride, padding=1, bias=False)
        self.bn2, self.conv2 = nn.BatchNorm2d(6), nn.Conv2d(6, outputs, 3, padding=1, bias=False)
        self.project = nn.Conv2d(inputs, outputs, 1, stride=stride) if stride > 1 or inputs != outputs else None

    def forward(self, x):
        activated = F.relu(self.bn1(x))
        around = x if self.project is None else self.project(activated)
        return around + self.conv2(F.relu(self.bn2(self.conv1(activated))))


class ResNeXt(nn.Module):
    """1x1, grouped 3x3 and 1x1 convolutions, as one module."""

    def __init__(self, width: int = 4):
        super().__init__()
        self.branch = nn.Sequential(
            *(nn.Conv2d(width, 8, 1, bias=False), nn.BatchNorm2d(8), nn.ReLU()),
            *(nn.Conv2d(8, 8, 3, padding=1, groups=4, bias=False), nn.BatchNorm2d(8), nn.ReLU()),
            *(nn.Conv2d(8, width, 1, bias=False), nn.BatchNorm2d(width)),
        )

    def forward(self, x):
        return F.relu(x + self.branch(x))


class ConvNeXt(nn.Module):
    """A depthwise convolution, then channels last, with a scale of the block's own on the branch."""

    def __init__(self, width: int = 4):
        super().__init__()
        self.depthwise, self.norm = nn.Conv2d(width, width, 3, padding=1, groups=width), nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, 10), nn.GELU(), nn.Linear(10, width))
        self.scale = nn.Parameter(torch.ones(width))

    def forward(self, x):
        out = self.scale * self.mlp(self.norm(self.depthwise(x).permute(0, 2, 3, 1)))
        return x + out.permute(0, 3, 1, 2)


class Images(nn.Module):
    """A stem, blocks and a classifier."""

    def __init__(self, *blocks: nn.Module, width: int = 4):
        super().__init__()
        self.stem, self.blocks = nn.Conv2d(3, width, 3, padding=1), nn.Sequential(*blocks)
        last = blocks[-1]
        project = getattr(last, "project", None)
        self.head = nn.Linear(width if project is None else project.out_channels, 3)

    def forward(self, x):
        return self.head(self.blocks(self.stem(x)).mean((2, 3)))


def post_activation() -> nn.Module:
    return Images(PostActivation(), PostActivation(4, 8, stride=2))


def pre_activation() -> nn.Module:
    return Images(PreActivation(), PreActivation(4, 8, stride=2))


def resnext() -> nn.Module:
    return Images(ResNeXt(), ResNeXt())


def convnext() -> nn.Module:
    return Images(ConvNeXt(), ConvNeXt())


class Tokens(nn.Module):
    """Encoder layers behind an embedding."""

    def __init__(self, *, is_norm_first: bool):
        super().__init__()
        self.embed = nn.Linear(5, 8)
        layer = nn.TransformerEncoderLayer(8, 2, 12, batch_first=True, norm_first=is_norm_first, dropout=0.1)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=not is_norm_first)
        self.head = nn.Linear(8, 3)

    def forward(self, x):
        return self.head(self.encoder(self.embed(x)).mean(1))


def norm_last() -> nn.Module:
    return Tokens(is_norm_first=False)


def norm_first() -> nn.Module:
    return Tokens(is_norm_first=True)


EVERY = [post_activation, pre_activation, resnext, convnext, norm_last, norm_first]


def made(build, seed: int = 0):
    """A model in evaluation mode with random statistics, and its example input; 7 x 7 pixels show wrong strides."""
    torch.manual_seed(seed)
    model = build().eval()
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                for tensor in (module.weight, module.bias, module.running_mean):
                    tensor.normal_()
                module.running_var.uniform_(0.5, 2)
    return model, torch.randn(2, 3, 7, 7) if isinstance(model, Images) else torch.randn(2, 6, 5)
