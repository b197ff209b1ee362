"""Blocks over feature maps (batch, channels, size, size), one builder per kind.

A builder takes the channels and size that come in and a width to play with, and returns a module. Integers that a
forward needs are attributes of its module, as in the models people write.
"""

from __future__ import annotations

import re
from collections.abc import Callable

import torch
from torch import nn
from torch.nn import functional as F

IMAGE_KINDS: dict[str, Callable[[int, int, int], nn.Module]] = {}


def snake_case(name: str) -> str:
    return re.sub(r"(?<!^)(?=[A-Z])", "_", name).lower()


def kind(build):
    """Register a function or module class under its name in snake case."""
    IMAGE_KINDS[snake_case(build.__name__)] = build
    return build


def multiple(width: int, step: int) -> int:
    """Return the first multiple of `step` that is not below `width`."""
    return -(-width // step) * step


def conv_bn(inputs: int, outputs: int, kernel: int = 3, **options) -> list[nn.Module]:
    return [nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, bias=False, **options), nn.BatchNorm2d(outputs)]


class Sum(nn.Module):
    """Add the results of two branches."""

    def __init__(self, body, shortcut):
        super().__init__()
        self.body, self.shortcut = body, shortcut

    def forward(self, x):
        return self.body(x) + self.shortcut(x)


@kind
def conv_bn_relu(channels, size, width):
    return nn.Sequential(*conv_bn(channels, width), nn.ReLU())


@kind
def conv_with_bias(channels, size, width):
    return nn.Sequential(nn.Conv2d(channels, width, 3, padding=1, stride=2 if size > 4 else 1), nn.GELU())


@kind
def preactivation(channels, size, width):
    return nn.Sequential(nn.BatchNorm2d(channels), nn.ReLU(), nn.Conv2d(channels, width, 3, padding=1))


@kind
def residual_add(channels, size, width):
    body = nn.Sequential(*conv_bn(channels, width), nn.ReLU(), *conv_bn(width, channels))
    return nn.Sequential(Sum(body, nn.Identity()), nn.ReLU())


@kind
def bottleneck(channels, size, width):
    inner = [*conv_bn(channels, width, 1), nn.ReLU(), *conv_bn(width, width), nn.ReLU()]
    body = nn.Sequential(*inner, *conv_bn(width, 2 * width, 1))
    return nn.Sequential(Sum(body, nn.Sequential(*conv_bn(channels, 2 * width, 1))), nn.ReLU())


@kind
def inverted_residual(channels, size, width):
    spread = [*conv_bn(channels, 2 * width, 1), nn.SiLU(), *conv_bn(2 * width, 2 * width, groups=2 * width), nn.SiLU()]
    return Sum(nn.Sequential(*spread, *conv_bn(2 * width, channels, 1)), nn.Identity())


@kind
class DenseConcat(nn.Module):
    def __init__(self, channels, size, width):
        super().__init__()
        growth = max(2, width // 2)
        self.layers = nn.ModuleList(
            nn.Sequential(
                nn.BatchNorm2d(channels + i * growth), nn.ReLU(), nn.Conv2d(channels + i * growth, growth, 3, padding=1)
            )
            for i in range(2)
        )

    def forward(self, x):
        features = [x]
        for layer in self.layers:
            features.append(layer(torch.cat(features, 1)))
        return torch.cat(features, 1)


@kind
class ChannelShuffle(nn.Module):
    def __init__(self, channels, size, width):
        super().__init__()
        even = multiple(width, 2)
        self.groups = 2
        self.enter = nn.Sequential(*conv_bn(channels, even, 1), nn.ReLU())
        self.branch = nn.Sequential(*conv_bn(even // 2, even // 2), nn.ReLU())

    def forward(self, x):
        left, right = self.enter(x).chunk(2, dim=1)
        x = torch.cat([left, self.branch(right)], dim=1)
        batch, channels, height, width = x.shape
        x = x.view(batch, self.groups, channels // self.groups, height, width).transpose(1, 2)
        return x.reshape(batch, channels, height, width)


@kind
class UnevenSplit(nn.Module):
    def __init__(self, channels, size, width):
        super().__init__()
        self.sizes = [1 + width // 3, 1 + width]
        self.enter = nn.Conv2d(channels, sum(self.sizes), 1)

    def forward(self, x):
        short, long = torch.split(self.enter(x), self.sizes, dim=1)
        return torch.cat([torch.tanh(long), F.gelu(short)], dim=1)


@kind
class ChannelSlices(nn.Module):
    def __init__(self, channels, size, width):
        super().__init__()
        self.half = max(1, width // 2)
        self.enter, self.low = nn.Conv2d(channels, 2 * self.half, 1), nn.Conv2d(self.half, width, 3, padding=1)
        self.high = nn.Conv2d(self.half, width, 1)

    def forward(self, x):
        x = self.enter(x)
        return self.low(x[:, : self.half]) + self.high(x[:, self.half :])


@kind
def depthwise_separable(channels, size, width):
    depthwise = [*conv_bn(channels, channels, groups=channels), nn.ReLU()]
    return nn.Sequential(*conv_bn(channels, channels, 1), *depthwise, *conv_bn(channels, width, 1), nn.ReLU())


@kind
def depth_multiplier(channels, size, width):
    return nn.Sequential(
        nn.Conv2d(channels, width, 1),
        nn.Conv2d(width, 2 * width, 3, padding=1, groups=width),
        nn.LeakyReLU(),
        nn.Conv2d(2 * width, width, 1),
    )


@kind
def grouped_conv(channels, size, width):
    even = multiple(width, 2)
    grouped = conv_bn(even, 2 * multiple(width, 2), groups=2)
    return nn.Sequential(*conv_bn(channels, even, 1), nn.ReLU(), *grouped, nn.ReLU())


@kind
def three_groups(channels, size, width):
    inner = multiple(width, 3)
    return nn.Sequential(
        nn.Conv2d(channels, inner, 1),
        nn.Conv2d(inner, inner, 3, padding=1, groups=3),
        nn.Tanh(),
        nn.Conv2d(inner, width, 1),
    )


@kind
def transposed_conv(channels, size, width):
    up = {"kernel_size": 2, "stride": 2} if size <= 8 else {"kernel_size": 3, "padding": 1}
    return nn.Sequential(nn.ConvTranspose2d(channels, width, **up), nn.BatchNorm2d(width), nn.ReLU())


@kind
def grouped_transposed_conv(channels, size, width):
    even = multiple(width, 2)
    return nn.Sequential(
        nn.Conv2d(channels, even, 1), nn.ConvTranspose2d(even, even + 2, 3, padding=1, groups=2), nn.SiLU()
    )


@kind
class SqueezeExcite(nn.Module):
    def __init__(self, channels, size, width):
        super().__init__()
        self.conv = nn.Sequential(*conv_bn(channels, width), nn.SiLU())
        self.squeeze, self.excite = nn.Conv2d(width, max(1, width // 2), 1), nn.Conv2d(max(1, width // 2), width, 1)

    def forward(self, x):
        x = self.conv(x)
        return x * torch.sigmoid(self.excite(F.relu(self.squeeze(x.mean((2, 3), keepdim=True)))))


@kind
class SqueezeExciteLinear(nn.Module):
    def __init__(self, channels, size, width):
        super().__init__()
        self.conv, self.gate = nn.Conv2d(channels, width, 1), nn.Sequential(nn.Linear(width, 3), nn.Linear(3, width))

    def forward(self, x):
        x = self.conv(x)
        batch, channels = x.shape[:2]
        pooled = F.adaptive_avg_pool2d(x, 1).view(batch, channels)
        return x * self.gate(pooled).sigmoid().view(batch, channels, 1, 1).expand_as(x)


@kind
class PoolAndUpsample(nn.Module):
    def __init__(self, channels, size, width):
        super().__init__()
        self.conv, self.low = nn.Conv2d(channels, width, 3, padding=1), nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x):
        x = self.conv(x)
        low = F.relu(self.low(F.max_pool2d(x, 2))) + F.avg_pool2d(x, 2)
        return x + F.interpolate(low, scale_factor=2, mode="nearest")


@kind
def group_norm(channels, size, width):
    even = multiple(width, 2)
    return nn.Sequential(nn.Conv2d(channels, even, 3, padding=1), nn.GroupNorm(2, even), nn.SiLU())


@kind
def instance_norm(channels, size, width):
    return nn.Sequential(nn.Conv2d(channels, width, 3, padding=1), nn.InstanceNorm2d(width, affine=True), nn.ReLU())


@kind
class LayerNormOverChannels(nn.Module):
    def __init__(self, channels, size, width):
        super().__init__()
        self.depthwise = nn.Conv2d(channels, channels, 3, padding=1, groups=channels)
        self.norm = nn.LayerNorm(channels)
        self.up, self.down = nn.Linear(channels, 2 * width), nn.Linear(2 * width, channels)
        self.gamma = nn.Parameter(torch.empty(channels))

    def forward(self, x):
        y = self.norm(self.depthwise(x).permute(0, 2, 3, 1))
        return x + (self.gamma * self.down(F.gelu(self.up(y)))).permute(0, 3, 1, 2)


@kind
class ChannelScale(nn.Module):
    def __init__(self, channels, size, width):
        super().__init__()
        self.conv = nn.Conv2d(channels, width, 3, padding=1, bias=False)
        self.scale, self.shift = nn.Parameter(torch.empty(width, 1, 1)), nn.Parameter(torch.empty(1, width, 1, 1))

    def forward(self, x):
        return F.silu(self.scale * self.conv(x) + self.shift)


@kind
def pixel_shuffle(channels, size, width):
    tail = nn.Identity() if size <= 8 else nn.AvgPool2d(2)
    return nn.Sequential(nn.Conv2d(channels, 4 * width, 3, padding=1), nn.PixelShuffle(2), nn.GELU(), tail)


@kind
def pixel_unshuffle(channels, size, width):
    narrow = max(1, width // 2)
    return nn.Sequential(
        nn.Conv2d(channels, narrow, 1),
        nn.PixelUnshuffle(2),
        nn.Conv2d(4 * narrow, width, 1),
        nn.Upsample(scale_factor=2),
    )


@kind
def weight_norm(channels, size, width):
    conv = nn.utils.parametrizations.weight_norm(nn.Conv2d(channels, width, 3, padding=1))
    return nn.Sequential(conv, nn.ReLU(), nn.Conv2d(width, width, 1))


@kind
class StandardisedWeight(nn.Module):
    def __init__(self, channels, size, width):
        super().__init__()
        self.conv, self.out = nn.Conv2d(channels, width, 3, padding=1), nn.Conv2d(width, width, 1)

    def forward(self, x):
        weight = self.conv.weight
        weight = (weight - weight.mean((1, 2, 3), keepdim=True)) / (weight.std((1, 2, 3), keepdim=True) + 1e-5)
        return self.out(F.relu(F.conv2d(x, weight, self.conv.bias, padding=1)))


@kind
class SharedConvTwice(nn.Module):
    def __init__(self, channels, size, width):
        super().__init__()
        self.enter, self.shared = nn.Conv2d(channels, width, 1), nn.Conv2d(width, width, 3, padding=1)
        self.norms = nn.ModuleList([nn.BatchNorm2d(width), nn.BatchNorm2d(width)])

    def forward(self, x):
        x = self.enter(x)
        for norm in self.norms:
            x = F.silu(norm(self.shared(x)))
        return x


@kind
class ReshapeAndBack(nn.Module):
    def __init__(self, channels, size, width):
        super().__init__()
        self.halves = 2
        self.enter = nn.Conv2d(channels, multiple(width, 2), 3, padding=1)
        self.scale = nn.Parameter(torch.empty(self.halves, 1, 1))

    def forward(self, x):
        x = self.enter(x)
        batch, channels, height, width = x.shape
        x = x.reshape(batch, self.halves, channels // self.halves, height * width)
        return F.leaky_relu(x * self.scale).view(batch, -1, height, width)


@kind
class FlattenLinear(nn.Module):
    def __init__(self, channels, size, width):
        super().__init__()
        self.width, self.pool = width, nn.AdaptiveAvgPool2d(4)
        self.up, self.down = nn.Linear(channels * 16, 2 * width), nn.Linear(2 * width, width * 16)

    def forward(self, x):
        hidden = F.gelu(self.up(self.pool(x).flatten(1)))
        return self.down(hidden).view(-1, self.width, 4, 4)


@kind
class FlattenChannelsLast(nn.Module):
    def __init__(self, channels, size, width):
        super().__init__()
        self.conv, self.pool = nn.Conv2d(channels, width, 3, padding=1), nn.AdaptiveMaxPool2d(2)
        self.linear = nn.Linear(4 * width, width)

    def forward(self, x):
        x = self.conv(x)
        context = self.linear(self.pool(x).permute(0, 2, 3, 1).flatten(1))
        return x * torch.tanh(context)[:, :, None, None]


@kind
class ChannelFlip(nn.Module):
    def __init__(self, channels, size, width):
        super().__init__()
        self.enter, self.out = nn.Conv2d(channels, width, 1), nn.Conv2d(2 * width, width, 3, padding=1)

    def forward(self, x):
        x = self.enter(x)
        return self.out(torch.cat([F.relu(x), x.flip(1)], dim=1))


@kind
class ChannelRoll(nn.Module):
    def __init__(self, channels, size, width):
        super().__init__()
        self.enter, self.out = nn.Conv2d(channels, width, 1), nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x):
        return self.out(F.gelu(torch.roll(self.enter(x), 1, 1)))


@kind
class RepeatedChannels(nn.Module):
    def __init__(self, channels, size, width):
        super().__init__()
        self.enter, self.out = nn.Conv2d(channels, width, 1), nn.Conv2d(4 * width, width, 3, padding=1)

    def forward(self, x):
        x = F.silu(self.enter(x))
        return self.out(torch.cat([x.repeat(1, 2, 1, 1), x.repeat_interleave(2, dim=1)], dim=1))


@kind
class Maxout(nn.Module):
    def __init__(self, channels, size, width):
        super().__init__()
        self.pieces = 2
        self.conv = nn.Conv2d(channels, self.pieces * width, 3, padding=1)

    def forward(self, x):
        x = self.conv(x)
        return x.view(x.shape[0], -1, self.pieces, *x.shape[2:]).amax(2)


@kind
class SpatialGate(nn.Module):
    def __init__(self, channels, size, width):
        super().__init__()
        self.conv, self.gate = nn.Conv2d(channels, width, 1), nn.Conv2d(2, 1, 3, padding=1)

    def forward(self, x):
        x = self.conv(x)
        summary = torch.cat([x.mean(1, keepdim=True), x.amax(1, keepdim=True)], dim=1)
        return x * torch.sigmoid(self.gate(summary))


@kind
class ConvAcrossChannels(nn.Module):
    def __init__(self, channels, size, width):
        super().__init__()
        self.conv, self.across = nn.Conv2d(channels, width, 1), nn.Conv1d(1, 1, 3, padding=1, bias=False)

    def forward(self, x):
        x = self.conv(x)
        gate = self.across(x.mean((2, 3)).unsqueeze(1)).squeeze(1)
        return x * torch.sigmoid(gate)[:, :, None, None]


@kind
def prelu(channels, size, width):
    return nn.Sequential(nn.Conv2d(channels, width, 3, padding=1), nn.PReLU(width), nn.BatchNorm2d(width, affine=False))


@kind
class InPlace(nn.Module):
    def __init__(self, channels, size, width):
        super().__init__()
        self.first, self.second = nn.Sequential(*conv_bn(channels, width)), nn.Conv2d(channels, width, 1)
        self.act = nn.ReLU(inplace=True)

    def forward(self, x):
        y = self.first(x)
        y += self.second(x)
        y[:, :1].mul_(0.5)
        return self.act(y.add_(0.1))


@kind
class Fire(nn.Module):
    def __init__(self, channels, size, width):
        super().__init__()
        self.squeeze = nn.Sequential(nn.Conv2d(channels, max(2, width // 2), 1), nn.ReLU())
        self.small, self.large = (nn.Conv2d(max(2, width // 2), width, k, padding=k // 2) for k in (1, 3))

    def forward(self, x):
        x = self.squeeze(x)
        return F.relu(torch.cat([self.small(x), self.large(x)], dim=1))


@kind
class EinsumMixing(nn.Module):
    def __init__(self, channels, size, width):
        super().__init__()
        self.weight, self.out = nn.Parameter(torch.empty(channels, width)), nn.Conv2d(width, width, 1)

    def forward(self, x):
        return self.out(F.gelu(torch.einsum("bchw,cd->bdhw", x, self.weight)))


@kind
class StackedBranches(nn.Module):
    def __init__(self, channels, size, width):
        super().__init__()
        self.branches = nn.ModuleList(nn.Sequential(*conv_bn(channels, width, k), nn.ReLU()) for k in (1, 3))
        self.choose = nn.Linear(width, 2 * width)

    def forward(self, x):
        stacked = torch.stack([branch(x) for branch in self.branches], dim=1)  # (batch, 2, width, size, size)
        votes = self.choose(stacked.sum(1).mean((2, 3)))
        weights = votes.view(votes.shape[0], 2, -1).softmax(1)
        return (stacked * weights[..., None, None]).sum(1)
