"""The two sides of a channel: what makes it, row by row, and what reads it, column by column, with nothing in between.

Where that is all there is, equal rows make equal channels, and of equal channels one can speak for all once the columns
that read them are added up.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor, nn

from ..graph.groups import ChannelGraph, ChannelGroup
from ..graph.labels import compact
from ..graph.products import Product, products, weight_view
from ..graph.tape import Op
from ..graph.walk import state_of
from ._sensitivity_measure import groups_in_statistics

# What these leave out is not read by them.
PARTS = frozenset(("slice", "split", "split_with_sizes", "select", "unbind", "new_zeros", "new_ones", "new_full"))


@dataclass(frozen=True, eq=False)
class Place:
    """One axis of a tensor on which a group's channels lie.

    Attributes:
        tensor: name of the parameter or buffer.
        axis: which axis of it.
        index: (width, places per channel) where on that axis; the k-th places of two channels match.
    """

    tensor: str
    axis: int
    index: Tensor

    def read(self, tensor: Tensor) -> Tensor:
        """Return (width, elements per channel) of a tensor in the shape of this one; a view where it can be."""
        width = len(self.index)
        if self.axis == 0 and self._is_whole(tensor):
            return tensor.reshape(width, -1)
        rows = tensor.movedim(self.axis, 0).index_select(0, self.index.flatten().to(tensor.device))
        return rows.reshape(width, -1)

    def write_(self, tensor: Tensor, rows: Tensor) -> None:
        """Write what `read` returned back, in place."""
        if self.axis == 0 and self._is_whole(tensor):
            tensor.copy_(rows.reshape(tensor.shape))
            return
        moved = tensor.movedim(self.axis, 0)
        shape = (self.index.numel(), *moved.shape[1:])
        moved.index_copy_(0, self.index.flatten().to(tensor.device), rows.reshape(shape))

    def to(self, device: torch.device) -> Place:
        """Return the same place with its index on a device."""
        return Place(self.tensor, self.axis, self.index.to(device))

    def _is_whole(self, tensor: Tensor) -> bool:
        return self._is_in_order and self.index.numel() == tensor.shape[0]

    @cached_property
    def _is_in_order(self) -> bool:
        line = self.index.flatten()
        return torch.equal(line.cpu(), torch.arange(len(line)))


@dataclass(frozen=True, eq=False)
class Sides:
    """What makes a group's channels, and what reads them.

    Attributes:
        group: whose channels.
        makers: rows of weights, biases, scales and statistics, in the order of the forward pass.
        readers: columns that are summed over.
        obstacle: why channels are more than their makers and readers; empty if they are not.
        is_in_statistics: they enter a statistic over channels, such as layer normalisation.
    """

    group: ChannelGroup
    makers: tuple[Place, ...]
    readers: tuple[Place, ...]
    obstacle: str = ""
    is_in_statistics: bool = False


def channel_sides(model: nn.Module, graph: ChannelGraph, names: Iterable[str]) -> dict[str, Sides]:
    """Tell makers from readers for each of these groups.

    >>> from secateur.graph import trace
    >>> net = nn.Sequential(nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(8, 1))
    >>> found = channel_sides(net, trace(net, torch.zeros(1, 1, 2, 2)), ["0"])["0"]
    >>> [place.tensor for place in found.makers]
    ['0.weight', '0.bias', '1.weight', '1.bias', '1.running_mean', '1.running_var']
    >>> [(place.tensor, place.axis, place.index[1].tolist()) for place in found.readers]
    [('3.weight', 1, [4, 5, 6, 7])]
    """
    tape, mixed = _Tape(model, graph), groups_in_statistics(graph)
    return {name: _Look(tape, graph.groups[name]).sides(name in mixed) for name in names}


class _Tape:
    """What every group asks of a tape."""

    def __init__(self, model: nn.Module, graph: ChannelGraph) -> None:
        self.model, self.graph = model, graph
        self.products = products(graph)
        self.makers: dict[int, Op] = {}
        self.users: dict[str, set[int]] = {}  # parameter -> operations that take it
        for op in graph.tape.ops:
            for ref in op.refs():
                if ref.number in graph.tape.state:
                    self.users.setdefault(graph.tape.state[ref.number], set()).add(op.index)
            for ref in op.outs():
                self.makers.setdefault(ref.number, op)

    def way_to(self, product: Product) -> set[int]:
        """Return a product's own position and those of the views that lead from its parameter to it."""
        found, number = {product.op.index}, product.weight.number
        while number not in self.graph.tape.state:
            op = self.makers[number]
            found.add(op.index)
            number = op.refs()[0].number
        return found

    def summed_axes(self, product: Product) -> list[int] | None:
        """Return the axes of a product's parameter that it sums over, told by their strides; None if it is computed."""
        view = weight_view(self.model, self.graph, product)
        if view is None:
            return None
        if product.is_convolution:
            axis = 0 if product.op.args[6] else 1
        else:
            axis = view.ndim - (1 if product.is_weight_first else 2)
        step, size = view.stride(axis), view.shape[axis]
        whole = state_of(self.model, shared=True)[product.site.weight]
        return [
            d
            for d, stride in enumerate(whole.stride())
            if whole.shape[d] > 1 and step <= stride < step * size and stride % step == 0
        ]


class _Look:
    """One group, seen along the tape."""

    def __init__(self, tape: _Tape, group: ChannelGroup) -> None:
        self.tape, self.graph, self.group = tape, tape.graph, group
        self.rank = np.full(int(self.graph.component.max(initial=0)) + 1, -1)
        self.rank[group.channels] = np.arange(group.width)
        self.reading = [product for product in tape.products if self._is_summed_by(product)]
        self.obstacle = ""

    def sides(self, is_in_statistics: bool) -> Sides:
        """Sort the places of the group's channels."""
        columns = self._columns()
        self._look_for_other_ways()
        makers: dict[tuple[str, int], Place] = {}
        readers: dict[tuple[str, int], Place] = {}
        for tensor in dict.fromkeys(member.tensor for member in self.group.members):
            for place in self._places(tensor):
                key = (tensor, place.axis)
                (readers if key in columns else makers)[key] = place
        if len({tensor for tensor, _ in makers}) < len(makers):
            self._refuse("one weight makes them along two axes")
        return Sides(self.group, tuple(makers.values()), tuple(readers.values()), self.obstacle, is_in_statistics)

    def _refuse(self, why: str) -> None:
        self.obstacle = self.obstacle or why

    def _is_summed_by(self, product: Product) -> bool:
        """Whether it adds up several of the channels; not where each block reads one alone (depthwise convolution)."""
        own = next((f for k in product.columns if ((f := self.rank[k]) >= 0).any()), None)
        if own is None:
            return False
        return not (product.is_convolution and product.groups > 1 and bool((own == own[:, :1]).all()))

    def _columns(self) -> set[tuple[str, int]]:
        """Return (parameter, axis) of everything that is summed over."""
        found: set[tuple[str, int]] = set()
        for product in self.reading:
            name, axes_of = product.site.weight, self.tape.summed_axes(product)
            if axes_of is None:
                self._refuse(f"the weight by which {product.module or 'the model'!r} reads them is computed")
                continue
            found.update((name, axis) for axis in axes_of)
            ways = [self.tape.way_to(other) for other in self.reading if other.site.weight == name]
            if self.tape.users[name] - set().union(*ways):
                self._refuse(f"{name!r} reads them and is used in other ways too")
        return found

    def _places(self, tensor: str) -> list[Place]:
        """Return the axes of a tensor on which the channels lie, each once."""
        found: dict[int, Place] = {}
        for layer in self.graph.labels.params[tensor][1]:
            own = self.rank[self.graph.component[compact(layer).numpy()]]
            if not (own >= 0).any():
                continue
            varying = [d for d in range(own.ndim) if (own != own.take([0], axis=d)).any()]
            line = np.moveaxis(own, varying[0], 0).reshape(own.shape[varying[0]], -1)[:, 0]
            counts = np.bincount(line[line >= 0], minlength=self.group.width)
            if len(varying) > 1 or len(set(counts.tolist())) > 1:
                self._refuse(f"{tensor!r} holds them in blocks of different sizes")
                continue
            order = np.argsort(line, kind="stable")[int((line < 0).sum()) :].reshape(self.group.width, -1)
            found.setdefault(varying[0], Place(tensor, varying[0], torch.from_numpy(order)))
        return list(found.values())

    def _look_for_other_ways(self) -> None:
        """Look for anything but products with weights that channels end in."""
        labels = self.graph.labels
        if any(member.module in labels.recurrent for member in self.group.members):
            self._refuse("they are the state of a recurrent layer")
        owners = {member.module for member in self.group.members}
        if any(op.name == "embedding_renorm" and op.module in owners for op in self.graph.tape.ops):
            self._refuse("a table bounds the length of its rows")
        ends, carried = {product.op.index for product in self.reading}, set[int]()
        for op, made in zip(self.graph.tape.ops, self.graph.op_layers, strict=True):
            is_read = any(ref.number in carried for ref in op.refs())
            here = [
                ref.number not in labels.static and self._is_on(layers)
                for ref, layers in zip(op.outs(), made, strict=False)
            ]
            if is_read and here and not any(here) and op.index not in ends and op.name not in PARTS:
                self._refuse(f"{op.module or 'the model'!r} reads them by {op.name}, without a weight for each")
            for ref, is_here in zip(op.outs(), here, strict=False):
                carried.add(ref.number) if is_here else carried.discard(ref.number)

    def _is_on(self, layers: Iterable[Tensor]) -> bool:
        return any(bool((self.rank[self.graph.component[compact(layer).numpy()]] >= 0).any()) for layer in layers)
