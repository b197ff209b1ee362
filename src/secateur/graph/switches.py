"""Which parameters turn a residual branch off: the last ones that scale its result."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, Protocol

from .norms import Flow
from .tape import Op, Ref

if TYPE_CHECKING:
    from .groups import ChannelGraph

Version = tuple[int, int]
LINEAR = frozenset(  # twice the input gives twice the result
    "view _unsafe_view reshape _reshape_alias permute transpose t squeeze unsqueeze expand slice select clone alias "
    "contiguous detach _to_copy flatten unflatten roll flip pixel_shuffle pixel_unshuffle neg mean sum native_dropout "
    "dropout avg_pool1d avg_pool2d avg_pool3d _adaptive_avg_pool2d upsample_nearest2d upsample_bilinear2d".split()
)
THROUGH_ZERO = frozenset(  # zero gives zero
    "relu leaky_relu elu celu selu gelu silu mish tanh hardswish softsign hardshrink softshrink abs square sin asinh "
    "max_pool2d_with_indices max_pool2d hardtanh relu6".split()
)


class NoSwitch(Exception):
    """No parameter turns the branch off; says why."""


class Switch(NamedTuple):
    """Names of parameters, and whether the result is proportional to them."""

    names: tuple[str, ...]
    is_proportional: bool


class Reads(Protocol):
    """What `secateur.graph.branches.Versions` knows of who read what."""

    def read(self, op: Op, number: int) -> Version:
        """Return which version of a tensor an operation read."""


def switch_of(graph: ChannelGraph, flow: Flow, uses: Reads, ops: frozenset[int], result: Version) -> Switch:
    """Walk back from a branch's result to the parameters that scale it last.

    Args:
        graph: the channel graph.
        flow: its products and normalisations.
        uses: who read what.
        ops: the branch's operations.
        result: what the branch computes.

    Raises:
        NoSwitch: an operation on the way gives something else than zero for zero.
    """
    return _Walk(graph, flow, uses, ops).back(result)


class _Walk:
    def __init__(self, graph: ChannelGraph, flow: Flow, uses: Reads, ops: frozenset[int]) -> None:
        self.graph, self.uses, self.ops = graph, uses, ops
        self.norms = {norm.op: norm for norm in flow.norms}
        self.products = {product.op.index: product for product in flow.products}

    def back(self, version: Version) -> Switch:
        index = version[0]
        if index not in self.ops:
            raise NoSwitch("its result holds what others compute too, with no parameter between")
        op = self.graph.tape.ops[index]
        found = self.norms.get(index)
        if found is not None:
            return Switch(tuple(n for n in (found.gain, found.shift) if n is not None), True)
        product = self.products.get(index)
        if product is not None:
            return Switch(tuple(n for n in (product.site.weight, product.bias) if n is not None), True)
        if op.name in ("add", "sub", "cat"):
            return self._sum(op)
        if op.name in ("mul", "div"):
            return self._multiple(op)
        if op.name in LINEAR or op.name in THROUGH_ZERO:
            inner = self.back(self.uses.read(op, op.refs()[0].number))
            return Switch(inner.names, inner.is_proportional and op.name in LINEAR)
        raise NoSwitch(f"{op.name} in {op.module or 'the model'} follows its last parameter, and need not give zero")

    def _sum(self, op: Op) -> Switch:
        names: dict[str, None] = {}
        is_proportional = True
        if any(isinstance(value, (int, float)) for value in op.args[:2]):
            raise NoSwitch(f"a number is added to its result in {op.module or 'the model'}")
        for ref in op.refs():
            name = self._parameter(ref)
            inner = Switch((name,), True) if name is not None else self.back(self.uses.read(op, ref.number))
            names.update(dict.fromkeys(inner.names))
            is_proportional &= inner.is_proportional
        return Switch(tuple(names), is_proportional)

    def _multiple(self, op: Op) -> Switch:
        refs = op.refs()[:1] if op.name == "div" else op.refs()
        for ref in refs:
            name = self._parameter(ref)
            if name is not None:
                return Switch((name,), True)
        trouble: NoSwitch | None = None
        made = [ref for ref in refs if self.uses.read(op, ref.number)[0] in self.ops]
        for ref in made:
            try:
                inner = self.back(self.uses.read(op, ref.number))
            except NoSwitch as error:
                trouble = trouble or error
                continue
            return Switch(inner.names, inner.is_proportional and len(made) == 1)
        raise trouble or NoSwitch("its result is a multiple of what others compute")

    def _parameter(self, ref: Ref) -> str | None:
        """Name the parameter that a tensor is a view of, if it is one."""
        number = ref.number
        while number not in self.graph.tape.state:
            if number not in self.graph.labels.view_of:
                return None
            number = self.graph.labels.view_of[number]
        name = self.graph.tape.state[number]
        return name if self.graph.sizes_of_elements.get(name, (False, 0))[0] else None
