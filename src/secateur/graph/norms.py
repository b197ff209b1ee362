"""Normalisations with a gain per channel: which channels they scale, and what they stand behind.

A product (convolution, linear layer) or a normalisation is where channels get the values that they carry on; walking
back from a tensor to the nearest of these says what made its channels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from .labels import compact
from .products import Product, products
from .rules import RULES
from .rules.normalisation import batch_norm, group_norm, layer_norm
from .tape import Op, Ref

if TYPE_CHECKING:
    from .groups import ChannelGraph, ChannelGroup

Array = np.ndarray[Any, Any]


@dataclass(frozen=True, eq=False)
class Norm:
    """A normalisation that multiplies every channel by a gain of its own.

    Attributes:
        op: position on the tape.
        gain: name of the parameter that multiplies.
        shift: name of the parameter that is added; None if there is none.
        source: what is normalised.
    """

    op: int
    gain: str
    shift: str | None
    source: Ref


class Flow:
    """What made the channels of a tensor: walks a tape backwards.

    Attributes:
        products: every product of an activation with a weight, in the order of the forward pass.
        norms: every batch, instance, group or layer norm with a gain, in the order of the forward pass. One without, or
            one that is computed step by step, is passed through.
    """

    def __init__(self, graph: ChannelGraph) -> None:
        self._graph = graph
        self._made: dict[int, list[tuple[Op, list[Tensor]]]] = {}
        for op, layers in zip(graph.tape.ops, graph.op_layers, strict=True):
            for ref, own in zip(op.outs(), layers, strict=False):
                self._made.setdefault(ref.number, []).append((op, own))
        self.products: list[Product] = products(graph)
        self.norms: list[Norm] = [found for op in graph.tape.ops if (found := self._norm(op)) is not None]
        self._ends = {p.op.index for p in self.products} | {norm.op for norm in self.norms}

    def norms_on(self, group: ChannelGroup) -> list[Norm]:
        """Return the normalisations whose gain belongs to a group."""
        own = {member.tensor for member in group.members}
        return [norm for norm in self.norms if norm.gain in own]

    def behind(
        self, group: ChannelGroup, ref: Ref, before: int, is_end: Callable[[Op], bool] | None = None
    ) -> set[int]:
        """Return the operations where a group's channels in a tensor come from, as positions on the tape.

        These are the nearest products and normalisations with a gain, and what has no labelled input (a look-up).

        Args:
            group: whose channels.
            ref: the tensor.
            before: position on the tape of the operation that reads it.
            is_end: where to stop instead.
        """
        is_end = is_end or (lambda op: op.index in self._ends)
        mine = np.zeros(int(self._graph.component.max(initial=0)) + 1, dtype=bool)
        mine[group.channels] = True
        found: set[int] = set()
        seen: set[int] = set()
        waiting = list(self._makers(ref, before, mine))
        while waiting:
            op = waiting.pop()
            if op.index in seen:
                continue
            seen.add(op.index)
            further = [] if is_end(op) else [m for r in op.refs() for m in self._makers(r, op.index, mine)]
            waiting += further
            if not further:
                found.add(op.index)
        return found

    def weights_behind(self, group: ChannelGroup, norm: Norm) -> set[str]:
        """Return the names of the weights whose products a normalisation is the first to scale."""
        found = self.behind(group, norm.source, norm.op)
        state, ops = self._graph.tape.state, self._graph.tape.ops
        named = {p.op.index: p.site.weight for p in self.products}
        tables = {state[ref.number] for k in found - named.keys() for ref in ops[k].refs() if ref.number in state}
        return {named[k] for k in found & named.keys()} | tables

    def _makers(self, ref: Ref, before: int, mine: Array) -> Iterator[Op]:
        """Give the operation that made a tensor that carries these channels, if an input of the model is behind it."""
        if ref.number in self._graph.labels.static:
            return
        made = [(op, layers) for op, layers in self._made.get(ref.number, []) if op.index < before]
        if made and any(mine[self._graph.component[compact(layer).numpy()]].any() for layer in made[-1][1]):
            yield made[-1][0]

    def _norm(self, op: Op) -> Norm | None:
        rule = RULES.get(op.name)
        if rule not in (batch_norm, layer_norm, group_norm):
            return None
        place = 1 if rule is batch_norm or op.name == "native_group_norm" else 2
        gain, shift = ([*op.args, None, None][k] for k in (place, place + 1))
        name = self._parameter(gain, op.index)
        if name is None or op.args[0].number in self._graph.labels.static:
            return None
        return Norm(op.index, name, self._parameter(shift, op.index), op.args[0])

    def _parameter(self, value: Any, before: int) -> str | None:
        """Name the parameter that a tensor is, or is a view or repetition of."""
        while isinstance(value, Ref):
            name = self._graph.tape.state.get(value.number)
            if name is not None:
                return name
            made = [op for op, _ in self._made.get(value.number, []) if op.index < before]
            before = made[-1].index if made else -1
            value = made[-1].refs()[0] if made and len(made[-1].refs()) == 1 else None
        return None
