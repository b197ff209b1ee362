"""Which operations multiply an activation by a weight, and which channel each of the columns that they read is.

Such a product reads channels that others made: a convolution, a linear layer, the projection behind attention. It is
known by its *site*, the weight and how often that weight was used before, since positions on a tape change with the
batch size and the kernels. A weight may also be computed from parameters (standardised, normalised): it keeps the name
of the first one.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from .labels import axes, compact
from .tape import Op, Ref, op_name
from .walk import state_of

if TYPE_CHECKING:
    from .groups import ChannelGraph, ChannelGroup

Array = np.ndarray[Any, Any]
CONVOLUTION = "convolution"
MATRIX_PRODUCTS = frozenset(("addmm", "mm", "bmm", "baddbmm", "_addmm_activation"))
K = TypeVar("K", bound=Hashable)


class Site(NamedTuple):
    """One use of one weight: its parameter's name, and how many products used it before in the same pass."""

    weight: str
    use: int = 0


@dataclass(frozen=True, eq=False)
class Product:
    """A product of an activation with a weight, as it stands on the tape.

    Attributes:
        site: by which it is found again when the model runs.
        op: position on the tape.
        module: path of the module that ran it.
        bias: name of the parameter that is added, if it is part of the operation.
        source: the activation.
        weight: the weight as the operation takes it.
        groups: number of blocks that read channels of their own: a grouped convolution's groups, the matrices of a
            stack; 1 for a dense product.
        is_weight_first: the weight is the left factor of a matrix product.
        columns: (groups, in-channels per group) channel number (component) of every column that it reads, one array for
            each layer of labels; empty if the activation is not labelled there.
        outputs: (groups, outputs per group) channel number of everything that it makes, likewise.
        is_whole: a grouped convolution whose groups go one by one, each of them one channel.
    """

    site: Site
    op: Op
    module: str
    bias: str | None
    source: Ref
    weight: Ref
    groups: int
    is_weight_first: bool
    columns: tuple[Array, ...]
    outputs: tuple[Array, ...]
    is_whole: bool = False

    @property
    def is_convolution(self) -> bool:
        """Whether it is a convolution, of any rank, transposed or not."""
        return self.op.name == CONVOLUTION

    @property
    def reads_one(self) -> bool:
        """Whether every output reads one channel, so that nothing is summed over channels.

        So does a depthwise convolution, and a grouped one whose groups go whole: each reads the channel that it makes.
        """
        return self.is_whole or (self.is_convolution and self.groups > 1 and self.source.shape[1] == self.groups)

    @property
    def layout(self) -> dict[str, bool]:
        """How the operation lays its weight out, as `secateur.train.watching.kernel_of` asks."""
        return {
            "transposed": self.is_convolution and bool(self.op.args[6]),
            "is_convolution": self.is_convolution,
            "is_weight_first": self.is_weight_first,
        }

    def channels_of(self, graph: ChannelGraph, group: ChannelGroup) -> Array:
        """Return (groups, in-channels per group) which of a group's channels each column is, 0 to width - 1; -1 = none.

        One channel may take several columns: a flattened map, the dimensions of a head.
        """
        position = np.full(int(graph.component.max(initial=0)) + 1, -1)
        position[group.channels] = np.arange(group.width)
        found = [position[numbers] for numbers in self.columns]
        return next((f for f in found if (f >= 0).any()), np.full(self._shape, -1))

    def alive_columns(self, alive: Array) -> Array:
        """Return (groups, in-channels per group) bool: which columns stay; `alive` as of `ChannelGraph.alive`."""
        result = np.ones(self._shape, dtype=bool)
        for numbers in self.columns:
            result &= alive[numbers]
        return result

    def alive_outputs(self, alive: Array) -> Array:
        """Return (groups, outputs per group) bool: which outputs stay."""
        out: Ref = self.op.out
        size = out.shape[1] if self.is_convolution else out.shape[-2 if self.is_weight_first else -1]
        is_stack = not self.is_convolution and self.groups > 1
        result = np.ones((self.groups, size if is_stack else size // self.groups), dtype=bool)
        for numbers in self.outputs:
            result &= alive[numbers]
        return result

    @property
    def _shape(self) -> tuple[int, int]:
        if self.is_convolution:
            return self.groups, self.source.shape[1] // self.groups
        return self.groups, self.weight.shape[-1 if self.is_weight_first else -2]


class Uses(Generic[K]):
    """Follows which tensors come from parameters alone, and names each product of an activation with one of them.

    Used on the tape with tensor numbers and on a running model with tensor identities.
    """

    def __init__(self, names: Mapping[K, str]) -> None:
        self.names: dict[K, str] = dict(names)
        self._count: Counter[str] = Counter()

    def follow(self, arguments: Sequence[K], results: Iterable[K]) -> None:
        """Take an operation into account that is no product: what is made of parameters alone keeps a name."""
        if arguments and all(key in self.names for key in arguments):
            self.names.update((key, self.names[arguments[0]]) for key in results)
        else:
            for key in results:
                self.names.pop(key, None)

    def site(self, factors: tuple[K, K]) -> tuple[Site, bool] | None:
        """Name a product of two factors: its site, and whether the weight comes first; None if it is none."""
        first, second = (self.names.get(key) for key in factors)
        if (first is None) == (second is None):
            return None
        name = second if second is not None else str(first)
        self._count[name] += 1
        return Site(name, self._count[name] - 1), second is None


def factors_of(name: str, args: Sequence[Any]) -> tuple[Any, Any] | None:
    """Return the two factors of a product, activation usually first; None for any other operation."""
    if name == CONVOLUTION:
        return args[0], args[1]
    return (args[-2], args[-1]) if name in ("mm", "bmm") else (args[1], args[2]) if name in MATRIX_PRODUCTS else None


def products(graph: ChannelGraph) -> list[Product]:
    """Return every product of an activation with a weight, in the order of the forward pass.

    >>> from secateur.graph import trace
    >>> net = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.Flatten(), nn.Linear(16, 2))
    >>> [product.site.weight for product in products(trace(net, torch.zeros(1, 3, 2, 2)))]
    ['0.weight', '3.weight']
    """
    state = graph.tape.state
    uses = Uses(state)
    layers: dict[int, list[Tensor]] = {}
    result = []
    for op, own in zip(graph.tape.ops, graph.op_layers, strict=True):
        outs = op.outs()
        factors = factors_of(op.name, op.args)
        site = None
        if factors is not None and all(isinstance(f, Ref) for f in factors):
            site = uses.site((factors[0].number, factors[1].number))
        if site is None:
            uses.follow([ref.number for ref in op.refs()], [ref.number for ref in outs])
        else:
            result.append(_product(op, *site, layers, own[0] if own else [], graph))
        layers.update((ref.number, found) for ref, found in zip(outs, own, strict=False))
    return result


def _product(
    op: Op,
    site: Site,
    is_weight_first: bool,
    layers: Mapping[int, list[Tensor]],
    made: list[Tensor],
    graph: ChannelGraph,
) -> Product:
    factors = factors_of(op.name, op.args)
    assert factors is not None
    weight, source = factors if is_weight_first else factors[::-1]
    is_convolution = op.name == CONVOLUTION
    is_stack = not is_convolution and len(weight.shape) == 3 and len(graph.shapes[site.weight]) == 3
    groups = int(op.args[8]) if is_convolution else weight.shape[0] if is_stack else 1

    def numbers(found: list[Tensor], rank: int) -> tuple[Array, ...]:
        axis = 1 if is_convolution else rank - (2 if is_weight_first else 1)
        lines = [line for k in found if (line := _line(graph.component, k, axis)) is not None]
        return tuple(np.tile(line, (groups, 1)) if is_stack else line.reshape(groups, -1) for line in lines)

    bias = op.args[2] if is_convolution else op.args[0] if op.name in ("addmm", "_addmm_activation") else None
    name = graph.tape.state.get(bias.number) if isinstance(bias, Ref) else None
    columns = numbers(layers.get(source.number, []), len(source.shape))
    outputs = numbers(made, len(op.out.shape))
    is_whole = graph.labels.whole_groups and is_convolution and groups > 1 and any(map(_is_whole, columns))
    return Product(site, op, op.module, name, source, weight, groups, is_weight_first, columns, outputs, is_whole)


def _is_whole(columns: Array) -> bool:
    """Whether each group's columns are one channel, another than its neighbours'."""
    return bool((columns == columns[:, :1]).all() and (columns[:, 0] != columns[0, 0]).any())


def _line(component: Array, layer: Tensor, axis: int) -> Array | None:
    """Return the channel number of each place of one axis; None if it is not this axis alone that tells channels apart.

    A layer of a flat vector that was reshaped into a map varies along every axis; its channels may not.
    """
    if axis not in axes(layer):
        return None
    numbers: Array = np.moveaxis(component[compact(layer).numpy()], axis, 0).reshape(layer.shape[axis], -1)
    first = numbers[:, 0]
    return first if (numbers == first[:, None]).all() else None


def readers(graph: ChannelGraph, group: ChannelGroup, among: Iterable[Product] | None = None) -> list[Product]:
    """Return the products that sum over a group's channels; those that read one alone (depthwise) are left out.

    Args:
        graph: the channel graph.
        group: whose channels.
        among: what `products` returned, if you have it.
    """
    found = products(graph) if among is None else among
    return [p for p in found if not p.reads_one and (p.channels_of(graph, group) >= 0).any()]


def weight_view(model: nn.Module, graph: ChannelGraph, product: Product) -> Tensor | None:
    """Return the product's weight as a view into the model's own parameter, to be read or written in place.

    Its shape is what the operation takes. None if the weight is computed, so that no parameter holds it.
    """
    return as_used(graph, product, state_of(model, shared=True)[product.site.weight].detach())


def as_used(graph: ChannelGraph, product: Product, like_parameter: Tensor) -> Tensor | None:
    """Return the view of a tensor, shaped like the product's parameter, that the operation takes of its weight.

    Args:
        graph: the channel graph.
        product: whose weight.
        like_parameter: a tensor in the parameter's shape, such as its gradient.

    Returns:
        A view in the shape that the operation takes; None if the weight is computed, so that no parameter holds it.
    """
    makers = {ref.number: op for op in graph.tape.ops[: product.op.index] for ref in op.outs()}
    chain: list[Op] = []
    number = product.weight.number
    while number not in graph.tape.state:
        op = makers[number]
        if len(op.refs()) != 1 or op.func._schema.is_mutable:
            return None
        chain.append(op)
        number = op.refs()[0].number
    value, wanted = like_parameter, product.weight.number
    with torch.no_grad():
        for op in reversed(chain):
            if op_name(op.func) == "expand":
                break
            out = op.func(value, *op.args[1:], **op.kwargs)
            numbers = [ref.number for ref in op.outs()]
            following = {ref.number for later in chain for ref in later.refs()} | {wanted}
            value = out if isinstance(out, Tensor) else out[next(i for i, n in enumerate(numbers) if n in following)]
    return value if value.untyped_storage().data_ptr() == like_parameter.untyped_storage().data_ptr() else None
