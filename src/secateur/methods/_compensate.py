"""Let one channel stand in for another: what predicts the one that goes from the one that stays moves on."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..errors import MethodError
from ..graph.groups import ChannelGraph
from ..graph.products import Product, products, readers, weight_view
from ..plan import Plan
from ..recovery.fold import fold_constants
from ..train.batches import device_of
from ..train.task import Task
from ..train.watching import Seen, input_batches, kernel_of, watch, write_kernel_

log = logging.getLogger(__name__)
Pairs = Mapping[str, Sequence[tuple[int, int]]]


def compensated(model: nn.Module, graph: ChannelGraph, pairs: Pairs, data: Iterable[Any], task: Task) -> nn.Module:
    """Return a full-width copy whose consumers no longer need the second channel of each pair.

    Where a consumer reads x_a and x_b, the line x_b = alpha x_a + beta is fitted to the data; alpha times the weights
    that read x_b is added to those that read x_a, and what beta contributes goes where a constant can: the bias, or the
    running mean of a batch normalisation right after. Exact where the line is, and no padding cuts a window.

    Args:
        model: any network in its full width; not changed.
        graph: its channel graph.
        pairs: group -> (stays, goes).
        data: batches to fit the lines on.
        task: how to feed a batch.

    Raises:
        MethodError: a consumer reads values that are not finite.
        TrainingError: there is no batch, or the model does not use a consumer.
    """
    lines = _lines(graph, pairs)
    see = {line.product.site: line.add for line in lines}
    with input_batches(data, task, device_of(model)) as batches:
        for inputs in batches:
            watch(model, inputs, see)
    goes = {name: [b for _, b in own] for name, own in pairs.items()}
    plan = Plan.from_removed(goes, graph.widths)
    moved = fold_constants(model, graph, plan, {line.product.source.number: line.levels() for line in lines})
    for line in lines:
        line.move_(moved, graph)
    return moved


def _lines(graph: ChannelGraph, pairs: Pairs) -> list[_Lines]:
    known = products(graph)
    uses = [product.weight.number for product in known]
    entries: dict[int, _Lines] = {}
    for name, own in pairs.items():
        for product in readers(graph, graph.groups[name], known):
            if uses.count(product.weight.number) > 1:
                log.warning("%r is used several times, and takes over nothing for lost channels", product.site.weight)
                continue
            channels = product.channels_of(graph, graph.groups[name])
            entries.setdefault(product.op.index, _Lines(product, *channels.shape)).ask(channels, own)
    return list(entries.values())


@dataclass
class _Lines:
    """The straight lines that one consumer needs: from a column that stays to a column that goes."""

    product: Product
    block_count: int
    per_block: int
    block: list[int] = field(default_factory=list)
    stays: list[int] = field(default_factory=list)
    goes: list[int] = field(default_factory=list)
    count: int = 0
    sums: Tensor | None = None  # (4, columns) of x_a, x_b, x_a^2, x_a x_b

    def ask(self, channels: Any, pairs: Sequence[tuple[int, int]]) -> None:
        """Add the columns of these pairs; where a channel takes several columns, the k-th stands in for the k-th."""
        for block, row in enumerate(channels):
            for a, b in pairs:
                for stays, goes in zip(np.flatnonzero(row == a), np.flatnonzero(row == b), strict=True):
                    self.block.append(block)
                    self.stays.append(int(stays))
                    self.goes.append(int(goes))

    def add(self, seen: Seen) -> None:
        """Take a batch into account."""
        x_a, x_b = (self._columns(seen, columns).double() for columns in (self.stays, self.goes))
        sums = torch.stack([x_a.sum(1), x_b.sum(1), x_a.square().sum(1), (x_a * x_b).sum(1)])
        if not bool(sums.isfinite().all()):
            raise MethodError(f"what {self.product.module or 'the model'!r} reads holds NaN or infinite values.")
        self.sums = sums if self.sums is None else self.sums + sums
        self.count += x_a.shape[1]

    def _columns(self, seen: Seen, columns: list[int]) -> Tensor:
        """Return (columns, rows) what was read there."""
        if seen.is_convolution:
            return seen.source.transpose(0, 1).flatten(start_dim=1)[self._places(columns)]
        return seen.inputs()[self.block, :, columns]

    def fit(self) -> tuple[Tensor, Tensor]:
        """Return (columns,) slopes alpha and (columns,) constants beta of least squares."""
        assert self.sums is not None
        mean_a, mean_b, square, product = self.sums / self.count
        variance, covariance = square - mean_a**2, product - mean_a * mean_b
        is_constant = variance <= 1e-12 * square
        alpha = torch.where(is_constant, 0.0, covariance / torch.where(is_constant, 1.0, variance))
        return alpha, mean_b - alpha * mean_a

    def levels(self) -> Tensor:
        """Return (channels of what is read,) beta at the columns that go, NaN elsewhere."""
        levels = torch.full((self.block_count * self.per_block,), torch.nan, dtype=torch.float64)
        levels[self._places(self.goes)] = self.fit()[1].cpu()
        return levels

    def _places(self, columns: list[int]) -> list[int]:
        return [block * self.per_block + column for block, column in zip(self.block, columns, strict=True)]

    def move_(self, model: nn.Module, graph: ChannelGraph) -> None:
        """Add alpha times the weights of the columns that go to those of the columns that stay, in place."""
        view = weight_view(model, graph, self.product)
        if view is None:
            log.warning("%r is computed, and takes over nothing for lost channels", self.product.site.weight)
            return
        is_transposed = self.product.is_convolution and bool(self.product.op.args[6])
        layout = {"is_convolution": self.product.is_convolution, "is_weight_first": self.product.is_weight_first}
        kernel = kernel_of(view, self.product.groups, transposed=is_transposed, **layout).clone()
        taps = kernel.unflatten(2, (self.per_block, -1))
        alpha = self.fit()[0].to(kernel)
        for k, (block, stays, goes) in enumerate(zip(self.block, self.stays, self.goes, strict=True)):
            taps[block, :, stays] += alpha[k] * taps[block, :, goes]
        with torch.no_grad():
            write_kernel_(view, kernel, transposed=is_transposed, **layout)
