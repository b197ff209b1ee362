"""Widths decided one after another within a budget, and what each decision is told of its layer."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..budget import Limits, meet
from ..errors import BudgetError
from ..graph.products import Product
from ._problem import Problem

Array = np.ndarray[Any, Any]
STATE_SIZE = 11


@dataclass(frozen=True)
class Layer:
    """The layer whose input channels a decision is about: the first one that reads the group.

    Attributes:
        group: whose width is decided.
        outputs: n, its output channels.
        inputs: c, its input channels before anything goes.
        height: h of the map it reads; 1 where there is none, like width, stride and kernel.
        width: w of that map.
        stride: of its kernel.
        kernel: k, side of its kernel.
        cost: of all layers that read the group and no earlier one, in what the budget counts.
    """

    group: str
    outputs: int
    inputs: int
    height: int
    width: int
    stride: int
    kernel: int
    cost: float


def layers_of(problem: Problem, reading: Sequence[tuple[str, Sequence[Product]]]) -> tuple[Layer, ...]:
    """Describe the layers that read these groups; each counts in the cost of the first group that it reads."""
    macs: dict[int, float] = {}
    for contraction in problem.graph.labels.contractions:
        sizes = [factor.numel() for factor in contraction.factors]
        macs[contraction.op] = macs.get(contraction.op, 0.0) + contraction.constant * float(np.prod(sizes))
    seen: set[int | str] = set()
    found = []
    for name, readers in reading:
        cost = float(problem.graph.groups[name].width) if problem.budget.of == "channels" else 0.0
        for product in readers:
            key = product.op.index if problem.budget.of == "macs" else product.site.weight
            if key not in seen and problem.budget.of != "channels":
                seen.add(key)
                cost += _size(problem, product, macs)
        found.append(Layer(name, *_shape(readers[0]), cost))
    return tuple(found)


def _size(problem: Problem, product: Product, macs: Mapping[int, float]) -> float:
    if problem.budget.of == "macs":
        return macs.get(product.op.index, 0.0)
    elements = float(np.prod(problem.graph.shapes[product.site.weight]))
    item_bytes = problem.graph.sizes_of_elements.get(product.site.weight, (True, 1))[1]
    return elements * (item_bytes if problem.budget.of == "bytes" else 1)


def _shape(product: Product) -> tuple[int, int, int, int, int, int]:
    """Return outputs, inputs, height, width, stride and kernel of a product."""
    if not product.is_convolution:
        outputs, inputs = product.weight.shape[-2:] if product.is_weight_first else product.weight.shape[-2:][::-1]
        return int(outputs), int(inputs), 1, 1, 1, 1
    area = [1, *product.source.shape[2:]][-2:]
    stride, kernel = product.op.args[3], product.weight.shape[2]
    return product.op.out.shape[1], product.source.shape[1], area[0], area[1], int(stride[0]), int(kernel)


class Walk:
    """The decisions of one episode: which widths are allowed, what they cost together, what the agent is told.

    Args:
        problem: whose budget and limits hold.
        layers: in the order of the decisions.
        keep_at_least: fraction of each group that stays whatever happens.
        is_bounded: no decision may bring the budget out of reach of those after it.

    Attributes:
        layers: as given.
        choices: for each decision the (n,) widths that are allowed, ascending; the last is the whole.
        whole: cost of the whole model, in what the budget counts.
        target: how much of it may be left.

    Raises:
        BudgetError: the budget is out of reach with these least widths.
    """

    def __init__(
        self, problem: Problem, layers: Sequence[Layer], *, keep_at_least: float, is_bounded: bool = True
    ) -> None:
        self.problem, self.layers, self.is_bounded = problem, tuple(layers), is_bounded
        every, costs = list(problem.graph.groups), problem.graph.costs
        self._numbers = np.array([every.index(layer.group) for layer in self.layers])
        self._widths = costs.widths
        self.choices = [_choices(int(costs.widths[k]), keep_at_least, problem.limits) for k in self._numbers]
        self.whole = self.cost([])
        self.target = (1 - problem.budget.remove) * self.whole + 1e-9 * self.whole
        self._features = between_0_and_1([_features(number, layer) for number, layer in enumerate(self.layers)])
        sizes = np.array([layer.cost for layer in self.layers])
        self._rest = np.clip((sizes.sum() - np.cumsum(sizes)) / (self.whole or 1.0), 0, 1)
        self._check(keep_at_least)

    def __len__(self) -> int:
        return len(self.layers)

    def cost(self, chosen: Sequence[int], *, least: bool = False) -> float:
        """Return what is left with the first widths chosen and the others whole, or as narrow as allowed."""
        return self._measured(self._counts(chosen, least=least))

    def clamped(self, chosen: Sequence[int], keep: float) -> int:
        """Return the width that a keep fraction of the next group comes to.

        It is rounded to whole channels (up to a multiple where widths are rounded). Where the walk is bounded and the
        groups after it could not make up for so many even at their least, it is the most for which they can.

        Source: He et al. 2018, resource-constrained compression, with exact counts in place of fractions.
        """
        choices = self.choices[len(chosen)]
        wanted = max(1, round(keep * int(choices[-1])))
        high = min(int(np.searchsorted(choices, wanted)), len(choices) - 1)
        fits: Callable[[int], bool] = lambda k: self.cost([*chosen, int(choices[k])], least=True) <= self.target  # noqa: E731
        if not self.is_bounded or fits(high):
            return int(choices[high])
        low = 0  # the least width always fits: the decision before this one saw to it
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if fits(middle) else (low, middle)
        return int(choices[low])

    def completed(self, chosen: Sequence[int]) -> tuple[int, ...]:
        """Give channels back, to all groups in proportion to what they lost, until the budget is only just met.

        Widths that do not meet it stay as they are.
        """
        counts = self._counts(chosen)
        if self._measured(counts) > self.target:
            return tuple(chosen)
        removed = self._widths - counts
        keys = [(np.arange(gone) + 0.5) / gone for gone in removed if gone]
        groups = [np.full(gone, number) for number, gone in enumerate(removed) if gone]
        order = np.concatenate(groups)[np.argsort(np.concatenate(keys), kind="stable")] if groups else np.zeros(0, int)
        kept = meet(self.problem.budget, order, self._widths, self.problem.limits, self._measured)
        return tuple(int(kept[number]) for number in self._numbers)

    def state(self, chosen: Sequence[int]) -> Array:
        """Return (11,) float32 what the agent is told before the next decision, each in [0, 1].

        Source: He et al. 2018, state space: t, n, c, h, w, stride, k, cost[t], reduced, rest, a[t-1]. The first eight
        are scaled by their least and greatest over all layers; `reduced` is the fraction of the whole cost that is
        gone, `rest` the fraction in the layers after this one, a the fraction of the group before that stays.
        After the last decision it is of the last layer.
        """
        number = min(len(chosen), len(self) - 1)
        reduced = 1 - self.cost(chosen) / self.whole if self.whole else 0.0
        before = chosen[-1] / int(self.choices[len(chosen) - 1][-1]) if chosen else 1.0
        return np.array([*self._features[number], reduced, self._rest[number], before], dtype=np.float32).clip(0, 1)

    def named(self, chosen: Sequence[int]) -> dict[str, int]:
        """Return group -> channels that stay."""
        return {layer.group: int(width) for layer, width in zip(self.layers, chosen, strict=True)}

    def _counts(self, chosen: Sequence[int], *, least: bool = False) -> Array:
        counts = self._widths.copy()
        if least:
            counts[self._numbers] = [choices[0] for choices in self.choices]
        counts[self._numbers[: len(chosen)]] = chosen
        return counts

    def _measured(self, counts: Array) -> float:
        return self.problem.graph.costs.value(self.problem.budget.of, counts)

    def _check(self, keep_at_least: float) -> None:
        budget, limits = self.problem.budget, self.problem.limits
        if (left := self.cost([], least=True)) > self.target:
            most = math.floor(1000 * (1 - left / self.whole)) / 1000  # rounded down: what is printed can be asked for
            raise BudgetError(
                f"asked to remove {budget.remove:.1%} of {budget.of}; at most {most:.1%} can go with "
                f"keep_at_least={keep_at_least}, min_keep={limits.min_keep}, round_to={limits.round_to} and "
                f"{len(self)} groups free to go ({', '.join(limits.protect) or 'nothing'} protected). Ask for less, or "
                "loosen these."
            )


def _choices(width: int, keep_at_least: float, limits: Limits) -> Array:
    least = max(limits.min_keep, math.ceil(keep_at_least * width - 1e-9), 1)
    return np.array(sorted({k for k in range(least, width) if k % limits.round_to == 0} | {width}))


def _features(number: int, layer: Layer) -> list[float]:
    shape = (layer.outputs, layer.inputs, layer.height, layer.width, layer.stride, layer.kernel)
    return [float(value) for value in (number, *shape, layer.cost)]


def between_0_and_1(table: Sequence[Sequence[float]]) -> Array:
    """Scale each column by its least and greatest; one that does not vary becomes 0.

    >>> between_0_and_1([[1.0, 5.0], [3.0, 5.0], [2.0, 5.0]]).tolist()
    [[0.0, 0.0], [1.0, 0.0], [0.5, 0.0]]
    """
    values = np.array(table, dtype=np.float64)
    low, span = values.min(axis=0), np.ptp(values, axis=0)
    return np.asarray((values - low) / np.where(span > 0, span, 1.0))
