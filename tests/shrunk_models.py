"""Small models of every kind that surgery treats in its own way; a child process builds them again by name."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

from secateur import Plan, trace
from secateur.surgery.shrink import shrink


class ConvNet(nn.Module):
    """A residual stem, a depthwise convolution and a head."""

    def __init__(self, width: int = 12) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU())
        self.block = nn.Sequential(
            nn.Conv2d(width, 10, 1), nn.BatchNorm2d(10), nn.ReLU(), nn.Conv2d(10, width, 3, padding=1)
        )
        self.depthwise = nn.Conv2d(width, width, 3, groups=width)
        self.head = nn.Linear(width, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.head(self.depthwise(x + self.block(x)).relu().mean((2, 3)))


class Attend(nn.Module):
    """``nn.MultiheadAttention``, which is swapped for a drop-in."""

    def __init__(self) -> None:
        super().__init__()
        self.inward = nn.Linear(6, 16)
        self.attention = nn.MultiheadAttention(16, 4, batch_first=True)
        self.head = nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.inward(x)
        return self.head(x + self.attention(x, x, x)[0])


class Encoder(nn.Module):
    """``nn.TransformerEncoder``, whose shortcut for padded batches has to be switched off."""

    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(16, 4, 24, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2)

    def forward(self, x: Tensor, padding: Tensor | None = None) -> Tensor:
        return self.encoder(x, src_key_padding_mask=padding)


class Recurrent(nn.Module):
    """An embedding into an LSTM."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(11, 8)
        self.lstm = nn.LSTM(8, 12, 2, batch_first=True)
        self.head = nn.Linear(12, 3)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.lstm(self.embedding(tokens))[0])


class Normalised(nn.Sequential):
    """Weight-normalised convolutions."""

    def __init__(self) -> None:
        super().__init__(
            weight_norm(nn.Conv2d(3, 8, 3)), nn.ReLU(), weight_norm(nn.Conv2d(8, 6, 3)), nn.ReLU(), nn.Conv2d(6, 2, 1)
        )


class TiedEmbedding(nn.Module):
    """A language model's head that is its embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(11, 8)
        self.hidden = nn.Linear(8, 8)
        self.head = nn.Linear(8, 11, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embedding(tokens)
        return self.head(x + self.hidden(x).relu())


class Grouped(nn.Sequential):
    """A convolution in groups, each of which keeps the same number."""

    def __init__(self) -> None:
        super().__init__(
            nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 12, 3, groups=2), nn.GroupNorm(2, 12), nn.Conv2d(12, 2, 1)
        )


class OwnAttention(nn.Module):
    """Attention written by hand: its number of heads is an attribute that inference has to find."""

    def __init__(self) -> None:
        super().__init__()
        self.heads, self.head_width = 4, 5
        self.qkv = nn.Linear(7, 60)
        self.out = nn.Linear(20, 3)
        self.register_buffer("scale", torch.tensor(0.3))
        self.register_buffer("steps", torch.tensor([3, 1]), persistent=False)
        self.register_buffer("nothing", None)

    def forward(self, x: Tensor) -> Tensor:
        batch, length, _ = x.shape
        qkv = self.qkv(x).view(batch, length, 3, self.heads, self.head_width)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        mixed = (q @ k.transpose(-2, -1) * self.scale).softmax(-1) @ v
        return self.out(mixed.transpose(1, 2).flatten(2))


EXAMPLES = {
    ConvNet: (2, 3, 8, 8),
    Attend: (2, 5, 6),
    Encoder: (2, 5, 16),
    Recurrent: (2, 5),
    Normalised: (2, 3, 8, 8),
    TiedEmbedding: (2, 5),
    Grouped: (2, 3, 8, 8),
    OwnAttention: (2, 5, 7),
}
BY_NAME = {kind.__name__: kind for kind in EXAMPLES}


def example(kind: type[nn.Module]) -> Tensor:
    """An input of the model: token ids where it has an embedding, else noise; the same each time."""
    generator = torch.Generator().manual_seed(7)
    shape = EXAMPLES[kind]
    if len(shape) == 2:
        return torch.randint(0, 11, shape, generator=generator)
    return torch.randn(shape, generator=generator)


def fresh(kind: type[nn.Module], seed: int = 1) -> nn.Module:
    """A new instance with random weights and statistics, in evaluation mode."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = kind()
        for name, buffer in model.named_buffers():
            if name.endswith(("running_mean", "running_var")):
                buffer.uniform_(0.5, 1.5)
    return model.eval()


def half(widths: dict[str, int], skip: int = 0) -> Plan:
    """A plan that removes every second channel: the odd ones, or with skip=1 the even ones."""
    return Plan.from_removed({n: list(range(w))[1 - skip :: 2] for n, w in widths.items() if w > 1}, widths)


def halved(model: nn.Module, example: Tensor, skip: int = 0) -> nn.Module:
    """The model with half of every group's channels."""
    graph = trace(model, example)
    return shrink(model, graph, half(graph.widths, skip))
