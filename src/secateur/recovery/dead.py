"""Which channels a model can lose without computing anything else: nobody reads them, or what they say never changes.

A channel lives if something that lives reads it: the output of the model, an operation that mixes channels without a
weight (the statistics of a layer norm change with the number of channels), or an output row of a product whose weight
for it is not zero. A reading does not count where the activation is surely 0 there, or a constant that the product's
bias can take over exactly. Liveness is found backwards along the products, so a chain of layers of which only the last
was zeroed dies as a whole, and so do channels that read only each other.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..graph.groups import ChannelGraph
from ..graph.labels import FROZEN, compact
from ..graph.products import Product, products
from ..graph.tape import Op, Ref
from ..plan import Plan
from ..train.watching import kernel_of
from ._constants import ExactConstants, reaches_beyond
from .fold import Targets

Array = np.ndarray[Any, Any]
ADDITIVE = frozenset(
    "sum mm bmm baddbmm dot vdot mv linalg_vector_norm _weight_norm_interface".split()
)  # 0 adds nothing


@dataclass(frozen=True, eq=False)
class Reading:
    """One product, and what it takes from where.

    Attributes:
        product: the product.
        counts: (groups, outputs, columns) bool: the output depends on the column, and would miss it.
    """

    product: Product
    counts: Array


@dataclass(frozen=True, eq=False)
class Dependence:
    """What depends on what in a model with these weights.

    Attributes:
        graph: the model's channel graph.
        readings: every product, in the order of the forward pass.
        needed: bool over channel numbers: what something other than a product needs.
    """

    graph: ChannelGraph
    readings: tuple[Reading, ...]
    needed: Array

    def dead(self, whole: Collection[str] = ()) -> dict[str, tuple[int, ...]]:
        """Return group name -> channels that nothing needs, in all groups but those of `whole`."""
        alive = self.needed.copy()
        for name in whole:
            alive[self.graph.groups[name].channels] = True
        before = -1
        while before != (before := int(alive.sum())):
            for reading in reversed(self.readings):
                product = reading.product
                rows = product.alive_outputs(alive)
                read = (reading.counts & rows[:, :, None]).any(axis=1)
                for numbers in product.columns:
                    alive[numbers[read]] = True
        found = {name: np.flatnonzero(~alive[group.channels]) for name, group in self.graph.groups.items()}
        return {name: tuple(int(i) for i in gone) for name, gone in found.items() if len(gone)}

    def plan(self, whole: Collection[str] = ()) -> Plan:
        """Return the plan that removes what is dead; a group that is dead altogether keeps its first channel."""
        widths = self.graph.widths
        dead = {name: gone if len(gone) < widths[name] else gone[1:] for name, gone in self.dead(whole).items()}
        return Plan.from_removed({name: gone for name, gone in dead.items() if gone}, widths)


def dependence(model: nn.Module, graph: ChannelGraph) -> Dependence:
    """Find what every product of a model reads, and what else needs channels.

    Args:
        model: the traced model, with its weights.
        graph: its channel graph.
    """
    found = _Reader(model, graph)
    with torch.no_grad():
        for op in graph.tape.ops:
            found.visit(op)
    return Dependence(graph, tuple(found.readings), found.needed)


class _Reader:
    """Goes along the tape with the constants, and notes who reads what."""

    def __init__(self, model: nn.Module, graph: ChannelGraph) -> None:
        self.graph = graph
        self.constants = ExactConstants(model, graph)
        self.products = {product.op.index: product for product in products(graph)}
        self.statistics = {statistic.op: statistic.operands for statistic in graph.labels.statistics}
        self.contractions = {contraction.op for contraction in graph.labels.contractions}
        self.targets = Targets(graph)
        self.layers: dict[int, list[Tensor]] = {}
        self.readings: list[Reading] = []
        self.needed = np.ones(int(graph.component.max(initial=0)) + 1, dtype=bool)
        for name, group in graph.groups.items():
            self.needed[group.channels] = name in graph.rigid
        self.needed[graph.component[FROZEN]] = True

    def visit(self, op: Op) -> None:
        """Note what an operation reads, before it is taken into account."""
        product = self.products.get(op.index)
        if product is not None:
            self.readings.append(Reading(product, self._counts(op, product)))
            self._unread(product)
        elif op.index in self.statistics:
            self._mixed(op, self.statistics[op.index])
        elif op.index in self.contractions:
            self._consumed(op)
        own = self.graph.op_layers[op.index]
        self.layers.update((ref.number, layers) for ref, layers in zip(op.outs(), own, strict=True))
        self.constants.advance(op)

    def _counts(self, op: Op, product: Product) -> Array:
        weight = self.constants.values.get(product.weight.number)
        groups, ins = product.alive_columns(self.needed).shape
        if weight is None:  # its value is not known: every output may read every column
            return np.ones((groups, product.alive_outputs(self.needed).shape[1], ins), dtype=bool)
        kernel = kernel_of(weight, product.groups, **product.layout)
        reads = (kernel != 0).unflatten(2, (ins, -1)).any(dim=3).cpu()
        counts: Array = (reads & ~self._idle(op, product, ins)[:, None]).numpy()
        return counts

    def _unread(self, product: Product) -> None:
        """What reaches a product by another way than whole columns, and ends there, is needed."""
        columns = np.zeros_like(self.needed)
        for numbers in product.columns:
            columns[numbers] = True
        self.needed |= self._given(product.op) & ~self._present(self.graph.op_layers[product.op.index]) & ~columns

    def _idle(self, op: Op, product: Product, ins: int) -> Tensor:
        """(groups or 1, columns): the activation is 0 there, or a constant that the bias can take over."""
        zero = self.constants.zeros(product.source)
        idle = torch.zeros(1, ins, dtype=torch.bool)
        if zero is not None:
            idle = _by_column(zero, product).view(-1, ins)
        as_expected = self.constants.product(op)
        if as_expected is None or reaches_beyond(op, as_expected) or self.targets.of(op, as_expected)[0] is None:
            return idle
        found = self.constants.get(product.source)
        if found is None:
            return idle
        return idle | ~found.along(as_expected.axis)[0].isnan().view(-1, ins)

    def _mixed(self, op: Op, operands: dict[int, list[Tensor]]) -> None:
        """Statistics need every channel that they run over, but for those that add 0 to a sum."""
        idle = np.zeros_like(self.needed)
        if op.name in ADDITIVE:
            for ref in op.refs():
                idle |= self._zero_channels(ref, operands.get(ref.number, []))
        over = self._present(operands.values())
        gone = over & ~self._present(self.graph.op_layers[op.index])
        self.needed |= (gone if gone.any() else over) & ~idle  # a norm passes on what its statistics run over

    def _consumed(self, op: Op) -> None:
        """What goes into a contraction that is no product with a weight, and is not passed on, is needed."""
        self.needed |= self._given(op) & ~self._present(self.graph.op_layers[op.index])

    def _given(self, op: Op) -> Array:
        """Channel numbers that any argument carries."""
        return self._present(self.layers.get(r.number, self.graph.labels.layers.get(r.number, [])) for r in op.refs())

    def _present(self, tensors: Iterable[list[Tensor]]) -> Array:
        """Channel numbers that any of these tensors carries."""
        found = np.zeros_like(self.needed)
        for layers in tensors:
            for layer in layers:
                found[self.graph.component[compact(layer).numpy().ravel()]] = True
        return found

    def _zero_channels(self, ref: Ref, layers: list[Tensor]) -> Array:
        """Channel numbers all of whose elements of a tensor are surely 0."""
        result = np.zeros_like(self.needed)
        zero = self.constants.zeros(ref)
        if zero is None:
            return result
        for layer in layers:
            numbers = self.graph.component[compact(layer).numpy()]
            is_zero = zero
            for axis, size in enumerate(numbers.shape):
                is_zero = is_zero.all(dim=axis, keepdim=True) if size == 1 else is_zero
            is_zero = is_zero.expand(numbers.shape)
            result[numbers] = True
            result[numbers[~is_zero.numpy()]] = False
        return result


def _by_column(zero: Tensor, product: Product) -> Tensor:
    """Where an activation is 0 at all positions: one row of columns, or one for each matrix of a stack."""
    rank = len(product.source.shape)
    axis = 1 if product.is_convolution else rank - (2 if product.is_weight_first else 1)
    is_stack = not product.is_convolution and product.groups > 1
    for other in range(rank):
        if other != axis and not (is_stack and other == 0):
            zero = zero.all(dim=other, keepdim=True)
    wide = [product.source.shape[d] if d == axis or (is_stack and d == 0) else 1 for d in range(rank)]
    return zero.expand(wide).reshape(product.groups, -1)
