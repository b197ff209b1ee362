"""Coding layers: codes of channels, made from what a batch's activations look like on average, that gate the layers.

They work through hooks on the modules that read the channels, and leave nothing behind when these are taken off.
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..errors import MethodError
from ..graph.groups import ChannelGraph, ChannelGroup
from ..graph.products import Product, products, readers
from ..graph.tape import Op, Ref
from ..train.points import averaged_over_processes
from ._channel_sides import Sides

RESHAPES = frozenset(("view", "_unsafe_view", "reshape", "unsqueeze", "squeeze", "expand", "alias", "contiguous"))
POOLS: tuple[Callable[..., Tensor], ...] = (F.adaptive_max_pool1d, F.adaptive_max_pool2d, F.adaptive_max_pool3d)
WHOLE = 7  # maps up to this size are not pooled
FULL = 0.95  # fraction of a code at 0 above which alpha is lifted; falls by STEP_DOWN each time
STEP_DOWN = 0.05
BINARY_ENOUGH = 0.9


@dataclass(frozen=True, eq=False)
class Reader:
    """A module that reads channels of one group or more, by its first input.

    Attributes:
        path: of the module.
        axis: where the channels are, counted from the end.
        width: size of that axis.
        places: group -> (width of the group, places per channel) where on that axis its channels are.
        sizes: of the axes besides samples and channels.
    """

    path: str
    axis: int
    width: int
    places: dict[str, Tensor]
    sizes: tuple[int, ...]

    def mean(self, activation: Tensor) -> Tensor:
        """Return (width, *other axes) the mean over samples, in float32 or better, over all processes."""
        dtype = torch.float64 if activation.dtype == torch.float64 else torch.float32
        whole = activation.movedim(self.axis, 1) if self.axis == -1 and activation.ndim > 2 else activation
        found: Tensor = _MeanOverProcesses.apply(whole.mean(dim=0, dtype=dtype))  # type: ignore[no-untyped-call]
        return found


class _MeanOverProcesses(torch.autograd.Function):
    """The mean over all processes; so is its gradient, since those of the weights below are averaged once more."""

    @staticmethod
    def forward(ctx: Any, own: Tensor) -> Tensor:
        return averaged_over_processes([own])[0].view_as(own)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return averaged_over_processes([gradient])[0]


def readers_of(graph: ChannelGraph, names: Sequence[str]) -> tuple[dict[str, list[Reader]], dict[str, str]]:
    """Return for each group the modules that read it, the first one first; and why others cannot be gated.

    A gate can stand before a module that does nothing with its input but multiply it by the weight that reads it.
    """
    known = products(graph)
    found: dict[str, list[Reader]] = {}
    why: dict[str, str] = {}
    made: dict[str, Reader] = {}
    for name in names:
        reading = readers(graph, graph.groups[name], known)
        inputs = {product.op.index: _only_input(graph, product, known) for product in reading}
        if bad := [product for product in reading if inputs[product.op.index] is None]:
            why[name] = f"{bad[0].module or 'the model'!r} does more with its input than multiply it by one weight"
            continue
        for product in reading:
            ref = inputs[product.op.index]
            assert ref is not None
            made.setdefault(product.module, _reader(product, ref))
        found[name] = [made[path] for path in dict.fromkeys(product.module for product in reading)]
        for product in reading:
            made[product.module].places[name] = _places(graph, graph.groups[name], product)
    return found, why


def _reader(product: Product, ref: Ref) -> Reader:
    rank = len(product.weight.shape) - 2 if product.is_convolution else 0
    axis = -1 - rank if product.is_convolution else -1
    return Reader(
        product.module, axis, ref.shape[axis], {}, ref.shape[2:] if product.is_convolution else ref.shape[1:-1]
    )


def _places(graph: ChannelGraph, group: ChannelGroup, product: Product) -> Tensor:
    line = torch.from_numpy(product.channels_of(graph, group).reshape(-1))
    order = torch.argsort(line, stable=True)[int((line < 0).sum()) :]
    return order.view(group.width, -1)


def _only_input(graph: ChannelGraph, product: Product, known: Sequence[Product]) -> Ref | None:
    """Return the activation that a product's module is called with, if the product is all that reads it there."""
    own = [op for op in graph.tape.ops if op.module == product.module and product.module]
    source = product.source
    makers = {ref.number: op for op in own for ref in op.outs() if op.index < product.op.index}
    while (maker := makers.get(source.number)) is not None:
        if not _only_moves(maker):
            return None
        source = maker.refs()[0]
    again = {p.op.index for p in known if p.module == product.module and p.site.weight == product.site.weight}
    carried = {source.number}
    for op in own:
        if op.index not in again and any(ref.number in carried for ref in op.refs()):
            if not _only_moves(op):
                return None
            carried |= {ref.number for ref in op.outs()}
    rank = len(product.source.shape) - 2 if product.is_convolution else len(source.shape) - 2
    axis = 1 if product.is_convolution else -1
    has_samples = not product.is_weight_first and rank >= 0 and len(source.shape) == rank + 2
    fits = has_samples and source.shape[axis] == product.source.shape[axis]
    return source if fits and source.number not in graph.tape.state else None


def _only_moves(op: Op) -> bool:
    return op.name in RESHAPES or "pad" in op.name


class CodingLayer:
    """Batch mean, max pooling, a fully connected layer and a scaled sigmoid: one code in (0, 1) for every channel.

    Source: Luo & Wu 2018, section 3.2.

    Args:
        reader: whose input it sees.
        group: name of the group that it codes.
        pool: largest size along each axis of what is left of a map; None = half its size, or all up to 7.
        spread: weights are drawn with this times the deviation that He et al. 2015 use.
        seed: of the weights.
        dtype: of the weights.
    """

    def __init__(
        self, reader: Reader, group: str, *, pool: int | None, spread: float, seed: int, dtype: torch.dtype
    ) -> None:
        self.reader, self.group = reader, group
        self.places = reader.places[group]
        self.target = () if reader.axis == -1 else tuple(pooled(size, pool) for size in reader.sizes)
        count = self.places.numel() * math.prod(self.target)
        weight = torch.randn(
            len(self.places), count, generator=torch.Generator().manual_seed(seed), dtype=torch.float64
        )
        self.weight = (spread * math.sqrt(2 / count) * weight).to(dtype).requires_grad_()
        self.bias = torch.zeros(len(self.places), dtype=dtype, requires_grad=True)

    def __call__(self, mean: Tensor) -> Tensor:
        """Return (channels,) what the fully connected layer makes of what `Reader.mean` gave."""
        own = mean[self.places.to(mean.device)]  # (channels, places, *map)
        if self.target:
            own = POOLS[len(self.target) - 1](own.flatten(end_dim=1)[None], self.target)
        elif own.ndim > 2:
            own = own.flatten(start_dim=2).amax(dim=2)
        with torch.autocast(own.device.type, enabled=False):
            return torch.addmv(self.bias, self.weight, own.reshape(-1).to(self.weight.dtype))


def pooled(size: int, pool: int | None) -> int:
    """Return the size of a map along one axis after pooling.

    >>> pooled(14, None), pooled(7, None), pooled(112, 7)
    (7, 7, 7)
    """
    half = size // 2 if size > WHOLE else size
    return half if pool is None else min(half, pool)


def code_loss(code: Tensor, keep: float) -> Tensor:
    """Return (||v||_1 / C - r)^2, zero where the mean of a code is the fraction to keep.

    Source: Luo & Wu 2018, equation 4.

    Args:
        code: v, (channels,), in (0, 1).
        keep: r.

    >>> code_loss(torch.tensor([1.0, 0.0, 0.5, 0.5]), keep=0.25).item()
    0.0625
    """
    return (code.mean() - keep).square()


def adapted_penalty(binary_keep: float, keep: float, strength: float = 100.0) -> float:
    """Return lambda = 100 |r_b - r|.

    Source: the authors' repository, main.py.

    >>> adapted_penalty(0.75, 0.5)
    25.0
    """
    return strength * abs(binary_keep - keep)


@dataclass(eq=False)
class Code:
    """The code of one group while it is learned.

    Attributes:
        layer: its coding layer.
        sides: what reads the group's channels.
        keep: r.
        penalty: lambda.
        lift: what is added to alpha.
        full: fraction of zeros above which alpha is lifted.
        value: v of this pass; None = not seen.
        output: what the sigmoid was given, before alpha.
        sums: (4, channels) over `window` steps: code above 1/2, code, output, distance of the code from 0 or 1.
        recent: means of the last window that is over.
    """

    layer: CodingLayer
    sides: Sides
    keep: float
    penalty: float
    lift: float = 0.0
    full: float = FULL
    value: Tensor | None = None
    output: Tensor | None = None
    window: int = 0
    sums: Tensor | None = None
    recent: Tensor | None = None

    def see(self, mean: Tensor, alpha: float) -> None:
        """Make the code of this pass."""
        self.output = self.layer(mean)
        self.value = torch.sigmoid((alpha + self.lift) * self.output)

    def count_(self) -> None:
        """Take this step's code into the sums, and let go of it."""
        if self.value is not None and self.output is not None:
            value, output = self.value.detach(), self.output.detach()
            seen = torch.stack([(value > 0.5).to(value), value, output, torch.minimum(value, 1 - value)])
            self.sums, self.window = seen if self.sums is None else self.sums + seen, self.window + 1
        self.value = self.output = None

    def lately(self) -> Tensor | None:
        """Return (4, channels) means over the last steps; None before the first."""
        if self.sums is None:
            return self.recent
        if self.recent is None:
            return self.sums / self.window
        return (self.recent + self.sums / self.window) / 2

    def adapt_(self, strength: float, lift: float) -> None:
        """Set lambda by how much of the code was on (strength 0: leave it), and lift alpha where too little was."""
        if self.sums is None:
            return
        self.recent, self.sums, self.window = self.sums / self.window, None, 0
        on = float((self.recent[0] > 0.5).double().mean())
        if strength:
            self.penalty = adapted_penalty(on, self.keep, strength)
        if 1 - on >= self.full and 1 - on > 1 - self.keep:
            self.lift += lift
            self.full = max(self.full - STEP_DOWN, 1 - self.keep)

    def is_binary(self, margin: float) -> bool:
        """Whether nine tenths of the code were within a margin of 0 or 1 lately."""
        found = self.lately()
        return found is not None and float((found[3] < margin).double().mean()) >= BINARY_ENOUGH

    def state(self) -> dict[str, Any]:
        """Return all that is remembered between steps, besides what the optimizer does."""
        kept = ("penalty", "lift", "full", "window", "sums", "recent")
        weights = {"weight": self.layer.weight.detach().clone(), "bias": self.layer.bias.detach().clone()}
        return {**weights, **{name: getattr(self, name) for name in kept}}

    def load(self, state: Mapping[str, Any]) -> None:
        """Take up what `state` returned."""
        with torch.no_grad():
            self.layer.weight.copy_(state["weight"])
            self.layer.bias.copy_(state["bias"])
        self.penalty, self.lift, self.full, self.window = (state[k] for k in ("penalty", "lift", "full", "window"))
        device = self.layer.bias.device
        self.sums, self.recent = (None if (t := state[k]) is None else t.to(device) for k in ("sums", "recent"))


class Gates:
    """Multiplies what modules read, through hooks that are gone after `remove`, or when this object is.

    Args:
        model: whose modules.
        reading: the modules.
        gate: called with a reader and its input; returns (width,) factors, or None to leave it.
    """

    def __init__(self, model: nn.Module, reading: Sequence[Reader], gate: Callable[[Reader, Tensor], Tensor | None]):
        owner, handles = weakref.WeakMethod(gate), []
        for reader in reading:
            module = model.get_submodule(reader.path)
            hook = _hook(owner, reader, weakref.ref(module))
            handles.append(module.register_forward_pre_hook(hook, with_kwargs=True))
        self._end = weakref.finalize(self, _take_off, handles)

    def remove(self) -> None:
        """Take all hooks off."""
        self._end()


def _take_off(handles: Sequence[Any]) -> None:
    for handle in handles:
        handle.remove()


def _hook(owner: Any, reader: Reader, known: Any) -> Callable[..., Any]:
    def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        gate = owner()
        if gate is None or module is not known():  # a copy of the model is not attached
            return None
        key = next((k for k, value in kwargs.items() if isinstance(value, Tensor)), "") if not args else ""
        activation = args[0] if args else kwargs[key]
        if activation.ndim != len(reader.sizes) + 2 or activation.shape[reader.axis] != reader.width:
            raise MethodError(
                f"{reader.path!r} was given a tensor of shape {tuple(activation.shape)}; on the example it had "
                f"{len(reader.sizes) + 2} axes and {reader.width} channels. Attach with an example like the data."
            )
        factors = gate(reader, activation)
        if factors is None:
            return None
        gated = activation * factors.to(activation.dtype).view(-1, *[1] * (-1 - reader.axis))
        return ((gated, *args[1:]), kwargs) if args else ((), {**kwargs, key: gated})

    return hook
