"""Go through a network's groups front to back, with the activations of what is already pruned.

Shared by the methods that choose channels so that the layers which read them can best do without: they see how the
channels of one group add up to what its readers give, choose, re-fit, and go on to the next group.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from ..errors import MethodError
from ..graph.groups import ChannelGroup
from ..graph.products import Product, Site, products, readers, weight_view
from ..graph.walk import state_of
from ..plan import Plan
from ..recovery.moments import (
    ChannelMoments,
    Sampling,
    channel_gram,
    channel_sums,
    channel_targets,
    column_channels,
    stream,
)
from ..recovery.refit import kept_columns, pruned_prefix
from ..surgery.mask import mask
from ..surgery.shrink import clone
from ..train.watching import kernel_of, write_kernel_
from ._problem import Problem

log = logging.getLogger(__name__)


@dataclass
class LayerWise:
    """A network on its way to be pruned.

    Attributes:
        problem: model, graph, data and task.
        method: name, for messages.
        sampling: which rows are read.
        draws_filters: see one output at random in each row in place of all.
        restores_sums: targets make up for what shortcuts lost; see `secateur.recovery.moments.stream`.
        work: full-width copy; re-fitted weights are written into it.
        removed: group -> channels that go, of the groups so far.
    """

    problem: Problem
    method: str
    sampling: Sampling
    draws_filters: bool = False
    restores_sums: bool = False
    work: nn.Module = field(init=False)
    removed: dict[str, list[int]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.problem.data is None or self.problem.task is None:
            raise MethodError(
                f"{self.method} looks at activations: give data= (some batches; labels are not read) and task=."
            )
        self.work = clone(self.problem.model)
        self.products = products(self.problem.graph)

    @property
    def plan(self) -> Plan:
        """What goes so far."""
        return Plan.from_removed(self.removed, self.problem.graph.widths)

    def groups(self, names: Sequence[str]) -> list[tuple[str, list[Product]]]:
        """Return the groups that something reads, in the order in which they are read, with their readers.

        Raises:
            MethodError: nothing reads any of them.
        """
        graph = self.problem.graph
        found = {name: readers(graph, graph.groups[name], self.products) for name in names}
        if unread := [name for name in names if not found[name]]:
            log.warning("%s leaves whole what no layer reads by a weight: %s", self.method, ", ".join(unread))
        if not any(found.values()):
            raise MethodError(
                f"{self.method} asks what the layers that read a channel lose; no layer reads any of {names[:4]} by a "
                "weight of its own. Use a method that scores weights, e.g. l1_filter."
            )
        return sorted(((n, r) for n, r in found.items() if r), key=lambda item: item[1][0].op.index)

    def moments(self, name: str, reading: Sequence[Product]) -> list[ChannelMoments]:
        """Return how a group's channels add up to the original outputs of each of its readers, as things stand."""
        problem = self.problem
        assert problem.data is not None
        assert problem.task is not None
        group = problem.graph.groups[name]
        plan = self.plan
        small = pruned_prefix(self.work, problem.graph, plan) if plan.removed_count else self.work
        known = state_of(small, shared=True) if small is not None else {}
        views = {p.site: weight_view(self.work, problem.graph, p) for p in reading}
        is_cut = {p.site: p.site.weight in known and views[p.site] is not None for p in reading}
        found = {p.site: _Accumulated(self, p, group, plan, views[p.site], is_cut[p.site]) for p in reading}

        def take(site: Site, inputs: Tensor, targets: Tensor, kernel: Tensor) -> None:
            found[site].add(inputs, targets, kernel)

        for source, cut in ((small, True), (None, False)):
            sites = [p.site for p in reading if is_cut[p.site] is cut]
            if sites:
                run_on = source if source is not None else mask(self.work, problem.graph, plan)
                stream(
                    run_on,
                    sites,
                    problem.data,
                    problem.task,
                    self.sampling,
                    take,
                    target=problem.model,
                    restores_sums=self.restores_sums,
                )
        for own in found.values():
            own.fold()
        return [found[p.site].sums for p in reading]

    def remove_(self, name: str, gone: Sequence[int]) -> None:
        """Let these channels of a group go."""
        self.removed[name] = sorted(gone)

    def kernels(self, reading: Sequence[Product]) -> list[tuple[list[Product], Tensor]]:
        """Return each weight that can be written among these readers: its uses, and its (groups, outputs, columns)."""
        found: dict[tuple[int, tuple[int, ...]], tuple[list[Product], Tensor]] = {}
        for product in reading:
            view = weight_view(self.work, self.problem.graph, product)
            if view is not None:
                kernel = kernel_of(view, product.groups, **product.layout).clone()
                found.setdefault((view.data_ptr(), tuple(view.shape)), ([], kernel))[0].append(product)
        return list(found.values())

    def write_(self, product: Product, kernel: Tensor) -> None:
        """Write a kernel back."""
        view = weight_view(self.work, self.problem.graph, product)
        assert view is not None
        with torch.no_grad():
            write_kernel_(view, kernel, **product.layout)


class _Accumulated:
    """Moments of one group in one reader, whose other columns may belong to other groups."""

    def __init__(
        self, walk: LayerWise, product: Product, group: ChannelGroup, plan: Plan, view: Tensor | None, is_cut: bool
    ) -> None:
        graph = walk.problem.graph
        self.sums = ChannelMoments.empty(group.width)
        self.width = group.width
        self.generator = torch.Generator().manual_seed(walk.sampling.seed) if walk.draws_filters else None
        alive = graph.alive(plan)
        self.is_output = torch.from_numpy(product.alive_outputs(alive))
        self.channel = column_channels(product, graph, group)
        self.kernel: Tensor | None = None
        self.waiting: list[tuple[Tensor, Tensor, Tensor]] = []
        if is_cut and view is not None:
            index = kept_columns(product, graph, plan)
            self.channel = self.channel.gather(1, index)
            full = kernel_of(view, product.groups, **product.layout)
            is_whole = index.shape[1] == full.shape[2]
            self.kernel = (
                full if is_whole else full.gather(2, index.to(full.device)[:, None].expand(-1, full.shape[1], -1))
            )

    def add(self, inputs: Tensor, targets: Tensor, kernel: Tensor) -> None:
        kernel = self.kernel if self.kernel is not None else kernel
        alive = self.is_output.to(kernel.device)
        if not bool(alive.all()):
            kernel, targets = kernel * alive[:, :, None], targets * alive[:, None, :]
        channel = self.channel.to(inputs.device)
        others = (channel < 0)[:, None, :]
        if bool(others.any()):
            targets = targets - inputs @ (kernel * others).to(inputs).transpose(1, 2)
        if self.generator is not None:
            self._add_drawn(inputs, targets, kernel.to(inputs), channel)
            return
        self.waiting.append((inputs, targets, kernel))
        if sum(x.shape[1] for x, _, _ in self.waiting) >= kernel.shape[1]:
            self.fold()

    def fold(self) -> None:
        """Add up what waits: the weight's own products are formed once for as many rows as it has outputs."""
        if not self.waiting:
            return
        inputs = torch.cat([x for x, _, _ in self.waiting], dim=1)
        targets = torch.cat([y for _, y, _ in self.waiting], dim=1)
        kernel, channel = self.waiting[-1][2], self.channel.to(inputs.device)
        self.waiting.clear()
        gram = channel_gram(inputs, kernel, channel, self.width)
        target = channel_targets(inputs, targets, kernel, channel, self.width)
        self.sums.add(gram, target, float(targets.square().sum()), inputs.shape[1] * inputs.shape[0])

    def _add_drawn(self, inputs: Tensor, targets: Tensor, kernel: Tensor, channel: Tensor) -> None:
        """One output, drawn at random among those that stay, for each row."""
        for x, y, w, own, alive in zip(inputs, targets, kernel, channel, self.is_output, strict=True):
            outputs = alive.nonzero().flatten()
            drawn = outputs[torch.randint(len(outputs), (len(x),), generator=self.generator)].to(x.device)
            parts = channel_sums(x * w[drawn], own, self.width)
            wanted = y.gather(1, drawn[:, None])[:, 0]
            self.sums.add(parts.T @ parts, parts.T @ wanted, float(wanted.square().sum()), len(x))


def of_all_readers(moments: Sequence[ChannelMoments]) -> ChannelMoments:
    """Return the moments of all that reads a group as one; of several readers, each weighs the same."""
    return summed([own.relative() for own in moments] if len(moments) > 1 else moments)


def summed(moments: Iterable[ChannelMoments]) -> ChannelMoments:
    """Return the sums over several uses or readers."""
    first, *rest = moments
    total = ChannelMoments(first.gram, first.target, first.target_square, first.rows)
    for other in rest:
        total.add(other.gram, other.target, other.target_square, other.rows)
    return total
