"""What is known about a tensor's axes, and how labels meet.

A labelled tensor carries *layers*. A layer is an integer array of the tensor's shape that holds slot numbers and varies
only along some axes; along the others its stride is 0, so it costs nothing. An element of the tensor is alive if it is
alive in every layer. The rules know three moves: run the same operation on the layers, tie layers that meet, and let an
axis disappear. Ties are only written down here; `groups` reads them at the end.

Slot 0 is FROZEN: whatever is tied to it cannot be cut.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .tape import Op, Ref

FROZEN = 0
Axes = frozenset[int]
Taken = set[int]
NONE: Axes = frozenset()


def axes(layer: Tensor) -> Axes:
    """Axes along which a layer varies.

    >>> sorted(axes(torch.arange(3).view(3, 1).expand(3, 4)))
    [0]
    """
    shape = layer.shape
    return frozenset([d for d, stride in enumerate(layer.stride()) if stride and shape[d] > 1])


def compact(layer: Tensor) -> Tensor:
    """Return the layer with size 1 wherever it does not vary.

    >>> compact(torch.arange(3).view(3, 1).expand(3, 4)).shape
    torch.Size([3, 1])
    """
    strides = layer.stride()
    return layer.as_strided([s if t else 1 for s, t in zip(layer.shape, strides, strict=True)], strides)


def along(slots: Tensor, axis: int, shape: Sequence[int]) -> Tensor:
    """Return 1-D `slots` laid along one axis of a tensor of this shape.

    >>> along(torch.tensor([5, 6]), 1, (3, 2)).tolist()
    [[5, 6], [5, 6], [5, 6]]
    """
    view = [1] * len(shape)
    view[axis] = -1
    return slots.view(view).expand(tuple(shape))


def place(layer: Tensor, kept_axes: Sequence[int], shape: Sequence[int]) -> Tensor:
    """Lay a layer of fewer axes into a tensor of this shape: its axis i becomes axis ``kept_axes[i]``.

    >>> place(torch.tensor([[1, 2]]).expand(3, 2), [0, 2], (3, 4, 2)).stride()
    (0, 0, 1)
    """
    sizes, strides = list(shape), [0] * len(shape)
    for own, axis in enumerate(kept_axes):
        strides[axis] = layer.stride(own)
    return layer.as_strided(sizes, strides)


def tidy(layer: Tensor, among: Iterable[int]) -> Tensor:
    """Give stride 0 to those of the axes `among` along which the numbers do not change."""
    for axis in among:
        if layer.shape[axis] > 1 and layer.stride(axis):
            head, last = layer.narrow(axis, 0, 1), layer.narrow(axis, layer.shape[axis] - 1, 1)
            if torch.equal(head, last) and bool((layer == head).all()):
                layer = head.expand(layer.shape)
    return layer


def reshaped(layer: Tensor, shape: Sequence[int]) -> Tensor:
    """Return the layer as ``view(shape)`` would arrange it, copying only blocks of axes in which it varies."""
    varying = axes(layer)
    source: list[int] = [s if d in varying else 1 for d, s in enumerate(layer.shape)]
    target: list[int] = [1] * len(shape)
    check: list[int] = []
    for ins, outs in blocks(tuple(layer.shape), tuple(shape)):
        if varying.isdisjoint(ins):
            continue
        for d in ins:
            source[d] = layer.shape[d]
        for d in outs:
            target[d] = shape[d]
        if sum(shape[d] > 1 for d in outs) > 1:
            check += outs
    strides = [t if s > 1 else 0 for s, t in zip(source, layer.stride(), strict=True)]
    result = layer.as_strided(source, strides).reshape(target)
    return tidy(result, check).expand(tuple(shape))


def blocks(source: tuple[int, ...], target: tuple[int, ...]) -> list[tuple[list[int], list[int]]]:
    """Split the axes of a reshape into the smallest runs that hold the same number of elements.

    >>> blocks((2, 6, 5), (2, 3, 2, 5))
    [([0], [0]), ([1], [1, 2]), ([2], [3])]
    """
    result: list[tuple[list[int], list[int]]] = []
    i = j = 0
    while i < len(source) or j < len(target):
        ins, outs = [], []
        left = right = 1
        if i < len(source):
            left, ins, i = source[i], [i], i + 1
        if j < len(target):
            right, outs, j = target[j], [j], j + 1
        while left != right:
            if left < right and i < len(source):
                left, ins, i = left * source[i], [*ins, i], i + 1
            elif j < len(target):
                right, outs, j = right * target[j], [*outs, j], j + 1
            else:
                break
        result.append((ins, outs))
    return result


@dataclass
class Operand:
    """One tensor at a meeting, aligned to the common shape.

    Attributes:
        shape: its shape, with 1 where it broadcasts, as long as the common shape.
        layers: its layers, expandable to the common shape.
        is_uniform: every element has the same value (zeros, ones, a scalar): it constrains nothing.
    """

    shape: tuple[int, ...]
    layers: list[Tensor]
    is_uniform: bool = False


@dataclass
class Statistic:
    """An operation that mixes labelled channels without a weight: removing one changes what it computes.

    Attributes:
        op: position on the tape.
        operands: tensor number -> its layers when the operation ran.
        outs: tensor number -> layers of each result.
    """

    op: int
    operands: dict[int, list[Tensor]]
    outs: dict[int, list[Tensor]] = field(default_factory=dict)


@dataclass
class Contraction:
    """One matrix product or convolution: multiply-adds = `constant` times the living size of each factor.

    Attributes:
        op: position on the tape.
        constant: product of the sizes that no plan changes.
        factors: layers (compact arrays of slots); the living size of each is the number of its living slots.
    """

    op: int
    constant: int
    factors: list[Tensor]


class Labels:
    """Layers of every tensor on the tape, and everything that the rules write down.

    Attributes:
        heads: True to keep whole heads where a split axis has to be cut as heads or as head dimensions, False for the
        latter.
        whole_groups: True to let the groups of a grouped convolution go one by one, each with all its channels, False
        to narrow all of them alike.
    """

    def __init__(self, state: dict[int, str], *, heads: bool = True, whole_groups: bool = False) -> None:
        self.heads, self.whole_groups = heads, whole_groups
        self.state = state
        self.slot_count = 1  # slot 0 is FROZEN
        self.layers: dict[int, list[Tensor]] = {}
        self.uniform: set[int] = set()
        self.view_of: dict[int, int] = {}
        self.params: dict[str, tuple[tuple[int, ...], list[Tensor]]] = {}
        self.kernel: dict[str, int] = {}  # convolution weights: axes from here on are spatial
        self.conv_slots: dict[int, tuple[Tensor, Tensor]] = {}
        self.ties: list[tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]] = []
        self.tie_ops: list[int] = []
        self.grids: list[tuple[Tensor, int]] = []
        self.static: set[int] = set(state)  # tensors that do not depend on the input
        self.origin: dict[int, int] = {}  # tensor -> the operation whose result it is, or a function of; see `step`
        self.selecting: set[str] = set()  # buffers by which channels are selected
        self.recurrent: set[str] = set()  # paths of recurrent modules, whose gates add up without being a stream
        self.added: list[Tensor] = []  # channels of activations that are added up
        self.statistics: list[Statistic] = []
        self.contractions: list[Contraction] = []
        self.unknown: list[tuple[str, str]] = []
        self.parts: list[Tensor] = []  # slots of each part of a split axis: other things may happen to each part
        self.unread: list[np.ndarray[Any, Any]] = []  # slots of weights beside the part that was sliced out
        self.frozen_why: list[tuple[np.ndarray[Any, Any], int, str]] = []  # slots, position on the tape, reason
        self.op: Op | None = None

    # -- slots ---------------------------------------------------------------------------------------------------

    def new(self, *shape: int) -> Tensor:
        """Return fresh slot numbers in this shape."""
        count = 1
        for size in shape:
            count *= size
        first = self.slot_count
        self.slot_count += count
        return torch.arange(first, first + count).view(shape)

    def get(self, ref: Ref) -> list[Tensor]:
        """Layers of a tensor; those of a parameter or buffer are made at its first use."""
        found = self.layers.get(ref.number)
        if found is not None:
            return found
        name = self.state.get(ref.number)
        if name is None:
            return []
        spatial = self.kernel.get(name, len(ref.shape))
        made = [along(self.new(size), d, ref.shape) for d, size in enumerate(ref.shape) if size > 1 and d < spatial]
        self.params[name] = (ref.shape, made)
        self.layers[ref.number] = made
        return made

    def set(self, ref: Ref, layers: list[Tensor]) -> None:
        """Say what is known of a result."""
        self.layers[ref.number] = layers

    def is_weight(self, ref: Ref) -> bool:
        """Whether the tensor is a parameter or buffer, or a view of one."""
        number = ref.number
        while number not in self.state:
            if number not in self.view_of:
                return False
            number = self.view_of[number]
        return True

    def is_stream(self, op: Op, refs: list[Ref]) -> bool:
        """Whether an addition joins activations of several layers: x + f(x) does not, nor do a mask or gates."""
        joined = [ref.number for ref in refs if ref.number not in self.static and self.get(ref)]
        return len({self.origin[n] for n in joined if n in self.origin}) > 1 and op.module not in self.recurrent

    def note_origin(self, op: Op, *, is_product: bool, is_pointwise: bool) -> None:
        """Pass on whose result a tensor is: products, norms and what joins several make something new."""
        refs = [ref.number for ref in op.refs()]
        moving = [number for number in refs if number not in self.static]
        reads_weights = bool(moving) and any(self.layers.get(number) for number in refs if number in self.static)
        origins = {self.origin[number] for number in moving if number in self.origin}
        is_new = is_product or (reads_weights and not is_pointwise) or len(origins) > 1
        for ref in op.outs():
            self.origin.pop(ref.number, None)  # written in place
            if is_new:
                self.origin[ref.number] = op.index
            elif origins:
                self.origin[ref.number] = min(origins)

    def is_uniform(self, ref: Ref) -> bool:
        """Whether every element of the tensor has the same value, whatever its size."""
        return ref.number in self.uniform or not ref.shape

    def no_longer_uniform(self, ref: Ref) -> None:
        """Another value was written into a tensor: neither it nor what it is a view of holds one value only."""
        number = ref.number
        self.uniform.discard(number)
        while number in self.view_of:
            number = self.view_of[number]
            self.uniform.discard(number)

    def operand(self, ref: Ref) -> Operand:
        """Return the tensor as it comes to a meeting."""
        return Operand(ref.shape, self.get(ref), self.is_uniform(ref))

    # -- writing down --------------------------------------------------------------------------------------------

    def tie(self, one: Tensor, other: Tensor) -> None:
        """Write down that the slots at the same place of two arrays live or die together."""
        if one.shape != other.shape:
            one, other = torch.broadcast_tensors(one, other)
        a, b = one.stride(), other.stride()
        if a == b and _share(one, other):
            return
        sizes = [s if (x or y) else 1 for s, x, y in zip(one.shape, a, b, strict=True)]
        self._write(one.as_strided(sizes, a).reshape(-1).numpy(), other.as_strided(sizes, b).reshape(-1).numpy())

    def freeze(self, layer: Tensor, why: str = "") -> None:
        """Write down that these slots cannot be cut, and why."""
        slots = compact(layer).reshape(-1).numpy()
        self._write(slots, np.zeros_like(slots))
        self.frozen_why.append((slots, self.op.index if self.op is not None else -1, why))

    def _write(self, one: np.ndarray[Any, Any], other: np.ndarray[Any, Any]) -> None:
        self.ties.append((one, other))
        self.tie_ops.append(self.op.index if self.op is not None else -1)

    def freeze_unread(self) -> None:
        """Freeze what no operation read of a weight, such as the rest of a table of positions: a longer input may."""
        tied = np.zeros(self.slot_count, dtype=bool)
        for one, other in self.ties:
            tied[one] = tied[other] = True
        for slots in self.unread:
            rest = torch.from_numpy(slots[~tied[slots]])
            if len(rest):
                self.freeze(rest, "this input does not reach it")

    def collapse(self, layer: Tensor, gone: Iterable[int]) -> Tensor:
        """Tie everything along some axes; the result no longer varies there."""
        for axis in gone:
            if layer.shape[axis] > 1 and layer.stride(axis):
                head = layer.narrow(axis, 0, 1).expand(layer.shape)
                self.tie(head, layer)
                layer = head
        return layer

    def drop(self, layer: Tensor, gone: Iterable[int], why: str = "") -> Tensor | None:
        """Collapse along some axes; if nothing varies any more, freeze it and return None."""
        layer = self.collapse(layer, gone)
        if axes(layer):
            return layer
        self.freeze(layer, why)
        return None

    def statistic(self, op: Op) -> None:
        """Note that this operation mixes labelled channels without a weight; call before the result is set."""
        self.statistics.append(Statistic(op.index, {ref.number: self.get(ref) for ref in op.refs()}))

    # -- meeting -------------------------------------------------------------------------------------------------

    def meet(self, shape: Sequence[int], operands: Sequence[Operand]) -> list[Tensor]:
        """Tie the labels of tensors that meet element by element; return the layers of the result.

        Where a labelled axis meets an unlabelled one of the same size (a constant, the input), its channels are tied
        together. Where a fine layer (heads, head dimensions) meets a coarse one, `Labels.heads` decides.

        Args:
            shape: the common shape.
            operands: tensors, broadcast against the end of `shape`.
        """
        shape = tuple(shape)
        labelled = [o for o in operands if o.layers]
        if not labelled:
            return []
        rest = [o for o in operands if not o.layers and not o.is_uniform]
        if len(labelled) == 1 and not any(_sized(o, shape) for o in rest):
            return [k if k.shape == shape else k.expand(shape) for k in labelled[0].layers]
        aligned = [[k if k.shape == shape else k.expand(shape) for k in o.layers] for o in labelled]
        labels_along = [NONE.union(*map(axes, layers)) for layers in aligned]
        bare = [_sized(o, shape) - varying for o, varying in zip(labelled, labels_along, strict=True)]
        bare_rest = NONE.union(*(_sized(o, shape) for o in rest))
        result: list[Tensor] = []
        seen: Axes = NONE
        for k, layers in enumerate(aligned):
            blocked = bare_rest.union(*(b for j, b in enumerate(bare) if j != k))
            kept = []
            for layer in layers:
                gone = blocked & axes(layer) if blocked else NONE
                left = self._narrowed_by(layer, gone) if gone else layer
                if left is not None:
                    kept.append(left)
            result = self._merge(result, kept, seen) if k else kept
            seen |= labels_along[k]
        return result

    def _narrowed_by(self, layer: Tensor, gone: Axes) -> Tensor | None:
        """Collapse a layer along axes where it meets something of fixed size; heads go whole or not at all."""
        varying = axes(layer)
        if varying - gone and (inner_axis(layer, varying) in gone) != self.heads:
            gone = varying
        return self.drop(layer, gone, "it meets a tensor of fixed size")

    def _merge(self, known: list[Tensor], new: list[Tensor], seen: Axes) -> list[Tensor]:
        """Tie two operands' layers wherever they share an axis. Layers of one operand are never tied to each other.

        What finds no partner on an axis along which the other operand is labelled (`seen` for the known one) is
        frozen there: the other one is cut by another pattern.
        """
        if len(known) == len(new) == 1 and axes(known[0]) == axes(new[0]) != NONE:
            self.tie(known[0], new[0])
            return known
        taken: Taken = set()
        merged: list[Tensor | None] = list(known)
        lone: list[Tensor] = []
        for layer in sorted(new, key=self._rank) if len(new) > 1 else new:
            here: Tensor | None = layer
            for i in self._partners(merged, layer, taken):
                there = merged[i]
                if here is None or there is None or not axes(there) & axes(here):
                    continue
                merged[i], here, tied = self._pair(there, here)
                if tied:
                    taken.add(i)
            if here is not None:
                lone.append(here)
        labelled = NONE.union(*map(axes, new))
        result = [merged[i] if i in taken else self._unpaired(merged[i], labelled) for i in range(len(merged))]
        result += [self._unpaired(layer, seen) for layer in lone]
        return [layer for layer in result if layer is not None]

    def _partners(self, merged: list[Tensor | None], layer: Tensor, taken: Taken) -> list[int]:
        """Which known layers may be tied to this one, the likeliest first: same places equal, then whole heads."""
        varying = axes(layer)
        free = [i for i, k in enumerate(merged) if k is not None and i not in taken and axes(k) & varying]
        if len(free) < 2:
            return free
        return sorted(free, key=lambda i: (not _same_pattern(merged[i], layer), self._rank(merged[i])))

    def _rank(self, layer: Tensor | None) -> bool:
        """Sort key: of several layers on one axis, heads (runs of one slot) come first, or last for head dimensions."""
        if layer is None or len(axes(layer)) != 1:
            return False
        line = compact(layer).reshape(-1)
        return bool(line[0] == line[1]) != self.heads

    def _unpaired(self, layer: Tensor | None, labelled: Axes) -> Tensor | None:
        if layer is None or not axes(layer) & labelled:
            return layer
        return self.drop(layer, axes(layer) & labelled, "it meets a tensor that is cut by another pattern")

    def _pair(self, known: Tensor, layer: Tensor) -> tuple[Tensor | None, Tensor | None, bool]:
        """Return what is left of two layers that share an axis, and whether the first now stands for both."""
        a, b = axes(known), axes(layer)
        common = a & b
        if a == b:
            self.tie(known, layer)
            return known, None, True
        if self._can_live_on(known, common) and self._can_live_on(layer, common):
            known = self.collapse(known, a - common)
            self.tie(known, self.collapse(layer, b - common))
            return known, None, True
        # A parameter per head dimension under whole heads: the heads give up that axis, and the parameter is frozen.
        why = "its axis is shared by all heads"
        return self.drop(known, common, why), self.drop(layer, common, why), False

    def _can_live_on(self, layer: Tensor, common: Axes) -> bool:
        """Whether a layer can give up its other axes and live on the common ones."""
        varying = axes(layer)
        return varying == common or (inner_axis(layer, varying) not in common) == self.heads


def inner_axis(layer: Tensor, varying: Axes) -> int:
    """Return the axis along which slot numbers change least: head dimensions, not heads (which may be repeated)."""
    return min(varying, key=lambda d: _step(layer, d))


def _step(layer: Tensor, axis: int) -> float:
    layer = compact(layer)
    line = layer[tuple(slice(None) if d == axis else 0 for d in range(layer.ndim))]
    steps = line.diff().abs()
    steps = steps[steps > 0]
    return float(steps.min()) if len(steps) else float("inf")


def _share(one: Tensor, other: Tensor) -> bool:
    """Whether two layers begin at the same place in memory; of layers of empty tensors nothing is said."""
    start = one.data_ptr()
    return start != 0 and start == other.data_ptr()


def _same_pattern(one: Tensor | None, other: Tensor) -> bool:
    """Whether two layers hold equal slots at the same places."""
    if one is None or axes(one) != axes(other):
        return False
    if one.stride() == other.stride() and _share(one, other):
        return True
    patterns = [torch.unique(compact(layer), return_inverse=True)[1] for layer in (one, other)]
    firsts = [_renumbered(pattern.reshape(-1)) for pattern in patterns]
    return torch.equal(*firsts)


def _renumbered(numbers: Tensor) -> Tensor:
    """Numbers by order of first appearance."""
    count = int(numbers.max()) + 1
    first = torch.full((count,), len(numbers)).scatter_reduce(0, numbers, torch.arange(len(numbers)), "amin")
    return first[numbers]


def _sized(operand: Operand, shape: tuple[int, ...]) -> Axes:
    """Axes of the common shape along which an operand has a size of its own."""
    if operand.is_uniform:
        return NONE
    offset = len(shape) - len(operand.shape)
    return frozenset(d + offset for d, size in enumerate(operand.shape) if size > 1)
