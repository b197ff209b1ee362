"""What products of a network read, give and get back, gathered over batches, and what losing channels there costs."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import MethodError
from ..graph.groups import ChannelGraph
from ..graph.labels import axes, compact
from ..graph.products import Product, Site
from ..recovery.moments import Sampling, taps_of
from ..train.batches import explained, sample_count
from ..train.watching import Seen, kernel_of, write_kernel_
from ._group_obs import add_diagonal, block_scores, channel_obs_update, factor, ridge_of
from ._problem import Problem
from ._pull_back import Pulled, batches, differentiable_copy, pull_back, whole

Array = np.ndarray[Any, Any]


def blocks_along(line: Array, wanted: Array, width: int = 1) -> Iterator[tuple[Array, Tensor]]:
    """Group the places of a line by the channel they belong to.

    Args:
        line: (places,) channel number of each place.
        wanted: bool over channel numbers: whose places to give.
        width: neighbouring columns that one place stands for (a kernel's taps).

    Yields:
        Channel numbers, and (channels, columns per channel) their columns; once for each number of columns.

    >>> [(c.tolist(), i.tolist()) for c, i in blocks_along(np.array([7, 2, 7, 2]), np.ones(8, dtype=bool))]
    [([2, 7], [[1, 3], [0, 2]])]
    """
    places = np.flatnonzero(wanted[line])
    places = places[np.argsort(line[places], kind="stable")]
    channels, counts = np.unique(line[places], return_counts=True)
    for count in np.unique(counts):
        own = places[np.repeat(counts == count, counts)].reshape(-1, count)
        index = (own[:, :, None] * width + np.arange(width)).reshape(len(own), -1)
        yield channels[counts == count], torch.from_numpy(index)


def reads(product: Product, wanted: Array) -> bool:
    """Whether a product sums over any of these channels (bool over channel numbers)."""
    return not product.reads_one and any(bool(wanted[line].any()) for line in product.columns)


def out_lines(graph: ChannelGraph, product: Product) -> list[Array]:
    """Return (groups, outputs per group) channel number of each output, one array for each layer of labels."""
    out = product.op.out
    axis = 1 if product.is_convolution else len(out.shape) - (2 if product.is_weight_first else 1)
    layers = [layer for layer in graph.op_layers[product.op.index][0] if axes(layer) == {axis}]
    lines = [graph.component[compact(layer).reshape(-1).numpy()] for layer in layers]
    is_stack = not product.is_convolution and product.groups > 1
    return [np.tile(line, (product.groups, 1)) if is_stack else line.reshape(product.groups, -1) for line in lines]


@dataclass(eq=False)
class Moments:
    """Sums over rows of outer products, one matrix for each block of a product, in float64.

    Attributes:
        total: (groups, size, size).
        weight: by what the sum is divided.
    """

    total: Tensor | None = None
    weight: float = 0.0

    def add(self, left: Tensor, right: Tensor, *, scale: float = 1.0, weight: float = 0.0) -> None:
        """Add ``left' right`` of (groups, rows, size) each."""
        found = (left.mT @ right).mul_(scale)
        self.total = found if self.total is None else self.total.add_(found)
        self.weight += weight

    def mean(self) -> Tensor:
        """Return the sum divided by the weight, on the CPU."""
        assert self.total is not None
        return (self.total / self.weight).cpu()


@dataclass(eq=False)
class Layer:
    """One product while batches go through the network.

    Attributes:
        product: which.
        is_reader: it is looked at for what it reads; else for what it gives.
        sampling: which rows second moments of inputs are taken from.
        has_constant: its input has a last column that is 1: a constant can be added to its outputs.
        reads: A, the second moment of its inputs (a last one is 1 if `has_constant`): summed over positions,
            averaged over samples.
        pulls: S, the second moment of the gradients at its outputs, averaged over rows.
        gives: second moment of its outputs and the constant 1, like A.
        meets: of gradients (rows of the matrix) with outputs and the constant 1, like A.
        kernel: (groups, outputs, columns) its weight.
        slope: gradient of the mean loss for the kernel.
    """

    product: Product
    is_reader: bool
    sampling: Sampling
    has_constant: bool = False
    reads: Moments = field(default_factory=Moments)
    pulls: Moments = field(default_factory=Moments)
    gives: Moments = field(default_factory=Moments)
    meets: Moments = field(default_factory=Moments)
    kernel: Tensor = field(default_factory=lambda: torch.empty(0))
    slope: Tensor | None = None
    _outputs: Tensor = field(default_factory=lambda: torch.empty(0))

    def see(self, seen: Seen, sample_count: int) -> None:
        """Take in a product as it runs: its inputs, or else its outputs.

        Raises:
            MethodError: what it reads is not finite.
        """
        if not bool(seen.source.isfinite().all()):
            raise MethodError(
                f"{self.product.module or self.product.site.weight} reads NaN or infinite values on this data: nothing "
                "can be scored. Repair the data or the weights."
            )
        self.kernel = seen.kernel().double().cpu()
        if self.is_reader:
            self._see_inputs(seen, sample_count)
            return
        self._outputs = with_constant(whole(seen).outputs().double())
        self.gives.add(self._outputs, self._outputs, weight=sample_count)

    def _see_inputs(self, seen: Seen, sample_count: int) -> None:
        rows = self.sampling.rows(seen.row_count, sample_count, int(self.reads.weight), seen.site)
        found = seen.inputs(rows.to(seen.source.device) if isinstance(rows, Tensor) else rows).double()
        found = with_constant(found) if self.has_constant else found
        self.reads.add(found, found, scale=seen.row_count / found.shape[1], weight=sample_count)

    def pull(self, pulled: Pulled, sample_count: int) -> None:
        """Take in the gradients that reach the product."""
        gradients = pulled.at_output.outputs().double()
        self.pulls.add(gradients, gradients, weight=gradients.shape[1])
        if not self.is_reader:
            self.meets.add(gradients, self._outputs, weight=sample_count)
        if pulled.weight is not None:
            kernel = dataclasses.replace(pulled.at_output, weight=pulled.weight).kernel().double()
            bias = gradients.sum(dim=1).unsqueeze(-1) / sample_count
            found = torch.cat([kernel, bias], dim=-1) if self.has_constant else kernel
            found = found.cpu() * sample_count
            self.slope = found if self.slope is None else self.slope + found

    def read_scores(self, wanted: Array, *, damping: float, total: Array) -> None:
        """Add to `total`, in place, what it costs when an input channel is gone and the others make up."""
        inputs, gradients = self.reads.mean(), self.pulls.mean()
        for g, kernel in enumerate(self.kernel):
            weighed, sloped = gradients[g] @ kernel, None
            if self.slope is not None:
                slope = self.slope[g] / self.reads.weight
                sloped = solved(inputs[g], slope.mT, damping).mT
            for channels, index in self.column_blocks(g, wanted):
                own = kernel[:, index].movedim(0, 1)
                energy = own.mT @ weighed[:, index].movedim(0, 1)
                tilt = None if sloped is None else own.mT @ sloped[:, index].movedim(0, 1)
                np.add.at(total, channels, block_scores(inputs[g], energy, index, damping=damping, slope=tilt).numpy())

    def merged(self, other: Layer) -> Layer:
        """Return this layer with the input moments of another use of the same weight added."""
        assert self.reads.total is not None
        assert other.reads.total is not None
        return dataclasses.replace(self, reads=Moments(self.reads.total + other.reads.total, self.reads.weight))

    def update_(self, view: Tensor, place: tuple[Tensor, int] | None, alive: Array, *, damping: float) -> None:
        """Move what reads the channels that stay, IN PLACE, so that it makes up for those that go.

        Args:
            view: its weight, as `weight_view` returns.
            place: what takes a constant, and its sign, as `intercept_of` returns; None = the constant stays.
            alive: bool over channel numbers: True = stays.
            damping: as a multiple of the mean of A's diagonal.
        """
        product, inputs, layout = self.product, self.reads.mean(), self.product.layout
        kernel = kernel_of(view, product.groups, **layout).double().cpu()
        if self.has_constant:
            kernel = torch.cat([kernel, kernel.new_zeros(*kernel.shape[:2], 1)], dim=-1)
        stays = product.alive_columns(alive).repeat(taps_of(product), axis=1)
        changed = kernel.clone()
        for g in range(len(kernel)):
            removed = torch.from_numpy(np.flatnonzero(~stays[g]))
            if len(removed):
                changed[g] = channel_obs_update(kernel[g], inputs[g], removed, damping=damping)
        if self.has_constant and place is not None:
            place[0].add_(place[1] * changed[..., -1].flatten().to(place[0]))
        write_kernel_(view, changed[..., : self.kernel.shape[-1]].to(view), **layout)

    def column_blocks(self, g: int, wanted: Array) -> Iterator[tuple[Array, Tensor]]:
        """Yield channels and the columns of the g-th block's kernel that they take."""
        for line in self.product.columns:
            yield from blocks_along(line[g], wanted, taps_of(self.product))


def with_constant(rows: Tensor) -> Tensor:
    """Return (groups, rows, size + 1): a last column of ones.

    >>> with_constant(torch.zeros(1, 2, 1)).tolist()
    [[[0.0, 1.0], [0.0, 1.0]]]
    """
    return torch.cat([rows, rows.new_ones(*rows.shape[:-1], 1)], dim=-1)


def solved(moment: Tensor, right: Tensor, damping: float) -> Tensor:
    """Return ``(H + damping)^-1 right``."""
    found: Tensor = torch.cholesky_solve(right, factor(add_diagonal(moment, ridge_of(moment, damping))))
    return found


def gather(problem: Problem, layers: Sequence[Layer], *, limit: int | None, of_weights: bool) -> list[Layer]:
    """Run the problem's data forward and back, and fill these layers, in place.

    Args:
        problem: model, data and task; nothing of it changes.
        layers: what to look at.
        limit: how many samples are read at most, in whole batches; None = all.
        of_weights: ask for the gradients of weights too.

    Returns:
        The layers that the loss depends on.

    Raises:
        MethodError: data or task are missing, or activations or the loss are not finite.
    """
    model, read_count = differentiable_copy(problem.model), 0
    at: dict[Site, list[Layer]] = {}
    for layer in layers:
        at.setdefault(layer.product.site, []).append(layer)
    with batches(problem.data, problem.task, model, "influence", seed=problem.seed) as data:
        for batch in data:
            assert problem.task is not None
            with explained():
                count = sample_count(*problem.task.to_inputs(batch))

            def see(seen: Seen, count: int = count) -> None:
                for layer in at[seen.site]:
                    layer.see(seen, count)

            found = pull_back(model, batch, problem.task, see=dict.fromkeys(at, see), of_weights=of_weights)
            for site, pulled in found.items():
                for layer in at[site]:
                    layer.pull(pulled, count)
            read_count += count
            if limit is not None and read_count >= limit:
                break
    return [layer for layer in layers if layer.pulls.total is not None]


def wanted_channels(graph: ChannelGraph, names: Sequence[str]) -> Array:
    """Return a bool array over channel numbers: True = a channel of these groups."""
    wanted = np.zeros(int(graph.component.max(initial=0)) + 1, dtype=bool)
    for name in names:
        wanted[graph.groups[name].channels] = True
    return wanted
