"""Blocks over sequences (batch, length, channels), one builder per kind; see `image_blocks`."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import nn
from torch.nn import functional as F

from .image_blocks import Sum, multiple, snake_case

SEQUENCE_KINDS: dict[str, Callable[[int, int, int], nn.Module]] = {}


def kind(build):
    SEQUENCE_KINDS[snake_case(build.__name__)] = build
    return build


class Attention(nn.Module):
    """Self-attention with q, k and v of their own; variants override `scores` or `prepare`."""

    def __init__(self, channels, length, width):
        super().__init__()
        self.heads, self.head_dim = (3 if width > 6 else 2), 2 + 2 * (width % 2)
        inner = self.heads * self.head_dim
        self.q, self.k, self.v = (nn.Linear(channels, inner) for _ in range(3))
        self.out = nn.Linear(inner, channels)

    def prepare(self, q, k):
        return q, k

    def scores(self, q, k):
        return q @ k.transpose(-2, -1) / math.sqrt(self.head_dim)

    def forward(self, x):
        batch, length, _ = x.shape
        q, k, v = (
            f(x).view(batch, length, self.heads, self.head_dim).transpose(1, 2) for f in (self.q, self.k, self.v)
        )
        mixed = self.scores(*self.prepare(q, k)).softmax(-1) @ v
        return x + self.out(mixed.transpose(1, 2).reshape(batch, length, self.heads * self.head_dim))


@kind
def attention_separate(channels, length, width):
    return Attention(channels, length, width)


@kind
class AttentionFusedQkv(nn.Module):
    def __init__(self, channels, length, width):
        super().__init__()
        self.heads, self.head_dim = (3 if width > 6 else 2), 2 + width % 3
        self.norm = nn.LayerNorm(channels)
        self.qkv = nn.Linear(channels, 3 * self.heads * self.head_dim)
        self.out = nn.Linear(self.heads * self.head_dim, channels)

    def forward(self, x):
        batch, length, _ = x.shape
        qkv = self.qkv(self.norm(x)).reshape(batch, length, 3, self.heads, self.head_dim).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(*qkv.unbind(0))
        return x + self.out(mixed.transpose(1, 2).flatten(2))


@kind
class AttentionChunkedQkv(nn.Module):
    def __init__(self, channels, length, width):
        super().__init__()
        self.heads, self.head_dim = 2, 2 + width % 3
        self.inner = self.heads * self.head_dim
        self.qkv, self.out = nn.Linear(channels, 3 * self.inner, bias=False), nn.Linear(self.inner, channels)

    def forward(self, x):
        batch, length, _ = x.shape
        split = self.qkv(x).split(self.inner, dim=2)
        q, k, v = (t.view(batch, length, self.heads, self.head_dim).transpose(1, 2) for t in split)
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return x + self.out(mixed.transpose(1, 2).contiguous().view(batch, length, self.inner))


@kind
class AttentionGroupedQueries(nn.Module):
    def __init__(self, channels, length, width):
        super().__init__()
        self.kv_heads, self.repeats, self.head_dim = 2, 1 + width % 3, 2
        self.q = nn.Linear(channels, self.kv_heads * self.repeats * self.head_dim)
        self.k, self.v = (nn.Linear(channels, self.kv_heads * self.head_dim) for _ in range(2))
        self.out = nn.Linear(self.kv_heads * self.repeats * self.head_dim, channels)

    def forward(self, x):
        batch, length, _ = x.shape
        q, k, v = (f(x).view(batch, length, -1, self.head_dim).transpose(1, 2) for f in (self.q, self.k, self.v))
        k, v = (t.repeat_interleave(self.repeats, dim=1) for t in (k, v))
        mixed = F.scaled_dot_product_attention(q, k, v)
        return x + self.out(mixed.transpose(1, 2).reshape(batch, length, -1))


@kind
class AttentionModule(nn.Module):
    def __init__(self, channels, length, width):
        super().__init__()
        even = multiple(width, 2)
        self.enter, self.attention = nn.Linear(channels, even), nn.MultiheadAttention(even, 2, batch_first=True)

    def forward(self, x):
        x = self.enter(x)
        return x + self.attention(x, x, x, need_weights=False)[0]


@kind
class AttentionToMemory(nn.Module):
    def __init__(self, channels, length, width):
        super().__init__()
        even = multiple(width, 2)
        self.enter = nn.Linear(channels, even)
        self.memory = nn.Parameter(torch.empty(1, 3, width + 1))
        self.attention = nn.MultiheadAttention(even, 2, kdim=width + 1, vdim=width + 1, batch_first=True)

    def forward(self, x):
        x, memory = self.enter(x), self.memory.expand(x.shape[0], -1, -1)
        mixed, weights = self.attention(x, memory, memory)
        return x + mixed * weights.amax(-1, keepdim=True)


@kind
def encoder_layer(channels, length, width):
    even = multiple(width, 2)
    layer = nn.TransformerEncoderLayer(even, 2, 2 * width, batch_first=True, norm_first=width % 2 == 0)
    return nn.Sequential(nn.Linear(channels, even), layer)


@kind
class AttentionPositionBias(Attention):
    def __init__(self, channels, length, width):
        super().__init__(channels, length, width)
        self.bias = nn.Parameter(torch.empty(self.heads, length, length))

    def scores(self, q, k):
        return super().scores(q, k) + self.bias


@kind
class AttentionRotary(Attention):
    def __init__(self, channels, length, width):
        super().__init__(channels, length, width)
        angle = torch.arange(length)[:, None] / 3.0 ** torch.arange(self.head_dim // 2)
        self.register_buffer("cos", torch.cat([angle.cos()] * 2, -1), persistent=False)
        self.register_buffer("sin", torch.cat([angle.sin()] * 2, -1), persistent=False)

    def turn(self, x):
        left, right = x.chunk(2, dim=-1)
        return x * self.cos + torch.cat([-right, left], dim=-1) * self.sin

    def prepare(self, q, k):
        return self.turn(q), self.turn(k)


@kind
class AttentionQkNorm(Attention):
    def __init__(self, channels, length, width):
        super().__init__(channels, length, width)
        self.q_norm, self.k_norm = nn.LayerNorm(self.head_dim), nn.LayerNorm(self.head_dim)

    def prepare(self, q, k):
        return self.q_norm(q), self.k_norm(k)


@kind
class AttentionEinsum(nn.Module):
    def __init__(self, channels, length, width):
        super().__init__()
        self.to_q, self.to_k, self.to_v = (nn.Parameter(torch.empty(channels, 2, 2 + width % 3)) for _ in range(3))
        self.to_out = nn.Parameter(torch.empty(2, 2 + width % 3, channels))

    def forward(self, x):
        q, k, v = (torch.einsum("blc,chd->bhld", x, weight) for weight in (self.to_q, self.to_k, self.to_v))
        weights = torch.einsum("bhld,bhmd->bhlm", q, k).softmax(-1)
        return x + torch.einsum("bhlm,bhmd,hdc->blc", weights, v, self.to_out)


@kind
class ClassToken(nn.Module):
    def __init__(self, channels, length, width):
        super().__init__()
        self.token, self.attention = nn.Parameter(torch.empty(1, 1, channels)), Attention(channels, length + 1, width)

    def forward(self, x):
        x = self.attention(torch.cat([self.token.expand(x.shape[0], -1, -1), x], dim=1))
        return x[:, 1:] * torch.sigmoid(x[:, :1])


@kind
class PositionEmbedding(nn.Module):
    def __init__(self, channels, length, width):
        super().__init__()
        self.linear, self.position = nn.Linear(channels, width), nn.Parameter(torch.empty(1, length, width))

    def forward(self, x):
        return self.linear(x) + self.position


@kind
class GluChunk(nn.Module):
    def __init__(self, channels, length, width):
        super().__init__()
        self.norm, self.up, self.down = (
            nn.LayerNorm(channels),
            nn.Linear(channels, 2 * width),
            nn.Linear(width, channels),
        )

    def forward(self, x):
        value, gate = self.up(self.norm(x)).chunk(2, dim=-1)
        return x + self.down(value * F.silu(gate))


@kind
class GatedMlp(nn.Module):
    def __init__(self, channels, length, width):
        super().__init__()
        self.norm = nn.RMSNorm(channels, eps=1e-6)
        self.gate, self.up = (nn.Linear(channels, width, bias=False) for _ in range(2))
        self.down = nn.Linear(width, channels, bias=False)

    def forward(self, x):
        y = self.norm(x)
        return x + self.down(F.silu(self.gate(y)) * self.up(y))


@kind
def mlp(channels, length, width):
    body = nn.Sequential(
        nn.LayerNorm(channels), nn.Linear(channels, 2 * width), nn.GELU(), nn.Linear(2 * width, channels)
    )
    return Sum(body, nn.Identity())


@kind
class TokenMixer(nn.Module):
    def __init__(self, channels, length, width):
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(channels), nn.Linear(length, width), nn.Linear(width, length)

    def forward(self, x):
        return x + self.down(F.gelu(self.up(self.norm(x).transpose(1, 2)))).transpose(1, 2)


@kind
class TiedLinear(nn.Module):
    def __init__(self, channels, length, width):
        super().__init__()
        self.encode, self.decode = nn.Linear(channels, width), nn.Linear(width, channels, bias=False)
        self.tied = nn.Linear(channels, width, bias=False)
        self.tied.weight = self.encode.weight

    def forward(self, x):
        hidden = F.gelu(self.encode(x)) * torch.tanh(self.tied(x))
        return x + self.decode(hidden) + F.linear(hidden, self.encode.weight.t())


@kind
class SharedLinearTwice(nn.Module):
    def __init__(self, channels, length, width):
        super().__init__()
        self.enter, self.shared = nn.Linear(channels, width), nn.Linear(width, width)

    def forward(self, x):
        return self.shared(F.silu(self.shared(F.silu(self.enter(x)))))


@kind
class Lstm(nn.Module):
    def __init__(self, channels, length, width):
        super().__init__()
        self.enter, self.rnn = nn.Linear(channels, width), nn.LSTM(width, width + 1, batch_first=True)

    def forward(self, x):
        return self.rnn(self.enter(x))[0]


@kind
class LstmBothWays(nn.Module):
    def __init__(self, channels, length, width):
        super().__init__()
        self.rnn = nn.LSTM(channels, max(2, width // 2), num_layers=2, bidirectional=True, batch_first=True)
        self.out = nn.Linear(2 * max(2, width // 2), width)

    def forward(self, x):
        return self.out(self.rnn(x)[0])


@kind
class Gru(nn.Module):
    def __init__(self, channels, length, width):
        super().__init__()
        self.rnn, self.out = nn.GRU(channels, width, batch_first=True), nn.Linear(width, width)

    def forward(self, x):
        outputs, last = self.rnn(x)
        return self.out(outputs) + last[-1][:, None]


@kind
class ConvOverPositions(nn.Module):
    def __init__(self, channels, length, width):
        super().__init__()
        self.enter, self.depthwise = nn.Linear(channels, 2 * width), nn.Conv1d(width, width, 3, padding=1, groups=width)
        self.norm, self.out = nn.BatchNorm1d(width), nn.Linear(width, channels)

    def forward(self, x):
        hidden = F.glu(self.enter(x), dim=-1).transpose(1, 2)
        return x + self.out(F.silu(self.norm(self.depthwise(hidden))).transpose(1, 2))


@kind
class SoftExperts(nn.Module):
    def __init__(self, channels, length, width):
        super().__init__()
        self.router = nn.Linear(channels, 3)
        self.experts = nn.ModuleList(
            nn.Sequential(nn.Linear(channels, width), nn.ReLU(), nn.Linear(width, channels)) for _ in range(3)
        )

    def forward(self, x):
        weights = self.router(x).softmax(-1)
        stacked = torch.stack([expert(x) for expert in self.experts], dim=-1)
        return x + (stacked * weights.unsqueeze(-2)).sum(-1)


@kind
class BilinearGate(nn.Module):
    def __init__(self, channels, length, width):
        super().__init__()
        self.left, self.right, self.out = (
            nn.Linear(channels, width),
            nn.Linear(channels, width),
            nn.Linear(length, width),
        )

    def forward(self, x):
        relation = torch.bmm(F.silu(self.left(x)), self.right(x).transpose(1, 2))  # (batch, length, length)
        return self.out(torch.tanh(relation / self.left.out_features))


@kind
def linear_layer_norm(channels, length, width):
    inner = width + 2  # normalised over two channels, nothing but a sign would be left
    return nn.Sequential(nn.Linear(channels, inner), nn.LayerNorm(inner), nn.LeakyReLU(), nn.Linear(inner, width))
