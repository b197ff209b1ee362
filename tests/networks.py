"""Random small networks: hypothesis draws a specification (plain data), `build` makes the network.

    @QUICK
    @given(networks())
    def test_something(spec):
        network = build(spec)
        network.model(*network.args)

A failing specification prints as the call that makes it again. Its tensors are numbered: 0 is the input (or the
embedded tokens), i + 1 the output of block i; the head reads the last one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from .image_blocks import IMAGE_KINDS
from .sequence_blocks import SEQUENCE_KINDS

QUICK = settings(max_examples=50, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
THOROUGH = settings(QUICK, max_examples=1000, derandomize=False, database=None, print_blob=True)

IMAGE_SIZE, LONGEST_SEQUENCE, VOCABULARY, BATCH, OUTPUTS = 8, 16, 11, 2, 3
IMAGE_HEADS = ("pooled linear", "flattened linear", "conv")
TOKEN_HEADS = ("pooled linear", "flattened linear", "linear", "tied embedding")
ALL_KINDS: dict[str, Any] = IMAGE_KINDS | SEQUENCE_KINDS


@dataclass(frozen=True)
class Block:
    """One block, and what its input is: the tensor before it, alone or joined with an earlier one.

    Attributes:
        kind: key of `ALL_KINDS`.
        width: what the block makes of it is the block's affair; 2 to 12.
        join: "" = none, "add" or "concat".
        other: number of the earlier tensor to join, taken modulo how many there are.
    """

    kind: str
    width: int
    join: str = ""
    other: int = 0


@dataclass(frozen=True)
class NetworkSpec:
    """Everything that determines a network, its weights and its example input.

    Attributes:
        blocks: in order.
        channels: of the input image, or of the embedding.
        head: one of `IMAGE_HEADS` or `TOKEN_HEADS`.
        seed: of the weights and the example.
        length: number of tokens; 0 = the input is an image.
    """

    blocks: tuple[Block, ...]
    channels: int = 3
    head: str = "pooled linear"
    seed: int = 0
    length: int = 0


@dataclass(frozen=True)
class Network:
    """A network in evaluation mode, in float64, with example arguments: ``model(*args)``."""

    model: nn.Module
    args: tuple[Tensor, ...]
    spec: NetworkSpec


@st.composite
def networks(draw, kinds: tuple[str, ...] = tuple(ALL_KINDS), max_blocks: int = 8) -> NetworkSpec:
    """Draw a network over images; blocks over sequences see its positions as a sequence."""
    return NetworkSpec(
        blocks=draw(_blocks(kinds, max_blocks)),
        channels=draw(st.integers(1, 4)),
        head=draw(st.sampled_from(IMAGE_HEADS)),
        seed=draw(st.integers(0, 9999)),
    )


@st.composite
def token_networks(draw, kinds: tuple[str, ...] = tuple(SEQUENCE_KINDS), max_blocks: int = 8) -> NetworkSpec:
    """Draw a network over token ids."""
    return NetworkSpec(
        blocks=draw(_blocks(kinds, max_blocks)),
        channels=draw(st.integers(2, 8)),
        head=draw(st.sampled_from(TOKEN_HEADS)),
        seed=draw(st.integers(0, 9999)),
        length=draw(st.integers(2, LONGEST_SEQUENCE)),
    )


def _blocks(kinds: tuple[str, ...], max_blocks: int):
    block = st.builds(
        Block,
        kind=st.sampled_from(kinds),
        width=st.integers(2, 12),
        join=st.sampled_from(["", "", "add", "concat"]),
        other=st.integers(0, max_blocks - 1),
    )
    return st.lists(block, min_size=1, max_size=max_blocks).map(tuple)


def build(spec: NetworkSpec) -> Network:
    """Build the network of a specification: the same specification gives the same weights, bit for bit."""
    generator = torch.Generator().manual_seed(spec.seed)
    with torch.random.fork_rng(devices=[]):
        model = _Tokens(spec) if spec.length else _Images(spec)
    model = model.double().eval().requires_grad_(True)
    randomise(model, generator)
    if spec.length:
        example = torch.randint(VOCABULARY, (BATCH, spec.length), generator=generator)
        example[1, 0] = (example[0, 0] + 1) % VOCABULARY  # two short sequences may come out equal
    else:
        example = torch.randn(BATCH, spec.channels, IMAGE_SIZE, IMAGE_SIZE, generator=generator, dtype=torch.float64)
    return Network(model, (example,), spec)


@torch.no_grad()
def randomise(model: nn.Module, generator: torch.Generator) -> None:
    """Give every parameter and statistic a value of its own, so that a wrong cut shows, and none that explodes."""
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        last = name.rpartition(".")[2]
        if last in ("cos", "sin", "num_batches_tracked"):
            continue
        if last in ("running_var", "original0") or (last == "weight" and tensor.dim() == 1):
            tensor.uniform_(0.5, 1.5, generator=generator)
        elif tensor.dim() > 1:
            fan_in = max(1, tensor[0].numel())
            tensor.normal_(0, fan_in**-0.5, generator=generator)
        else:
            tensor.normal_(0.1, 0.4, generator=generator)


class _Join(nn.Module):
    """Bring an earlier tensor to the size of another one, then add or concatenate."""

    def __init__(self, x: Tensor, earlier: Tensor, how: str):
        super().__init__()
        self.how, self.channel_dim = how, 1 if x.dim() == 4 else 2
        channels, wanted = earlier.shape[self.channel_dim], x.shape[self.channel_dim]
        self.project: nn.Module = nn.Identity()
        if how == "add" and channels != wanted:
            self.project = nn.Conv2d(channels, wanted, 1) if x.dim() == 4 else nn.Linear(channels, wanted)

    def forward(self, x: Tensor, earlier: Tensor) -> Tensor:
        earlier = self.project(earlier)
        if x.dim() == 4 and x.shape[2:] != earlier.shape[2:]:
            earlier = F.adaptive_avg_pool2d(earlier, x.shape[2:])
        return x + earlier if self.how == "add" else torch.cat([x, earlier], dim=self.channel_dim)


class _OverPositions(nn.Module):
    """Run a block over sequences on the positions of a feature map, at most 4 x 4 of them."""

    def __init__(self, channels: int, size: int, block):
        super().__init__()
        self.size, self.small = size, min(size, 4)
        self.block = block(channels, self.small**2)

    def forward(self, x: Tensor) -> Tensor:
        if self.size > self.small:
            x = F.adaptive_avg_pool2d(x, self.small)
        x = self.block(x.flatten(2).transpose(1, 2)).transpose(1, 2)
        x = x.reshape(x.shape[0], -1, self.small, self.small)
        return F.interpolate(x, size=(self.size, self.size)) if self.size > self.small else x


class _Graph(nn.Module):
    """A chain of blocks with joins; `first` is tensor number 0, from which every shape follows."""

    def __init__(self, spec: NetworkSpec, first: Tensor):
        super().__init__()
        self.others = [block.other % (i + 1) for i, block in enumerate(spec.blocks)]
        self.joins, self.blocks = nn.ModuleList(), nn.ModuleList()
        tensors = [first]
        for block, other in zip(spec.blocks, self.others, strict=True):
            x = tensors[-1]
            join = _Join(x, tensors[other], block.join) if block.join else nn.Identity()
            x = join(x, tensors[other]) if block.join else x
            module = _make(block, x).eval()
            tensors.append(module(x))
            self.joins.append(join)
            self.blocks.append(module)

    def forward(self, first: Tensor) -> Tensor:
        tensors = [first]
        for join, block, other in zip(self.joins, self.blocks, self.others, strict=True):
            x = tensors[-1]
            x = join(x, tensors[other]) if isinstance(join, _Join) else x
            tensors.append(block(x))
        return tensors[-1]


def _make(block: Block, x: Tensor) -> nn.Module:
    if x.dim() == 3:
        return SEQUENCE_KINDS[block.kind](x.shape[2], x.shape[1], block.width)
    if block.kind in IMAGE_KINDS:
        return IMAGE_KINDS[block.kind](x.shape[1], x.shape[2], block.width)
    return _OverPositions(x.shape[1], x.shape[2], lambda c, length: SEQUENCE_KINDS[block.kind](c, length, block.width))


class _Images(nn.Module):
    def __init__(self, spec: NetworkSpec):
        super().__init__()
        first = torch.zeros(BATCH, spec.channels, IMAGE_SIZE, IMAGE_SIZE)
        self.body = _Graph(spec, first)
        channels, size = self.body(first).shape[1:3]
        self.head = {
            "pooled linear": lambda: nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, OUTPUTS)),
            "flattened linear": lambda: nn.Sequential(nn.Flatten(), nn.Linear(channels * size**2, OUTPUTS)),
            "conv": lambda: nn.Conv2d(channels, OUTPUTS, 1),
        }[spec.head]()

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x))


class _Tokens(nn.Module):
    def __init__(self, spec: NetworkSpec):
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, spec.channels)
        first = torch.zeros(BATCH, spec.length, spec.channels)
        self.body = _Graph(spec, first)
        channels = self.body(first).shape[2]
        self.is_pooled, self.is_flattened = spec.head == "pooled linear", spec.head == "flattened linear"
        if spec.head == "tied embedding":
            self.head = nn.Sequential(nn.Linear(channels, spec.channels), nn.Linear(spec.channels, VOCABULARY))
            self.head[1].weight = self.embedding.weight
        else:
            self.head = nn.Linear(channels * spec.length if self.is_flattened else channels, OUTPUTS)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.body(self.embedding(ids))
        if self.is_pooled:
            x = x.mean(1)
        return self.head(x.flatten(1) if self.is_flattened else x)
