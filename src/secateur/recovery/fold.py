"""Fold what removed channels contribute on average into their consumers, so that a cut loses less. Needs no data.

A channel that batch normalisation scales by gamma = 0 is the constant beta. What an activation makes of it, k, still
reaches the next layer: ``d_o = k * sum of W[o, c]`` over kernel positions. Cut with the channel it would be lost, so d
is added to that layer's bias; a layer without bias that batch normalisation follows has d taken off the running mean
instead. Where gamma is not 0, k is the expectation of the activation over a normal distribution of mean beta and
deviation |gamma|.

Source: the constant case is Ye et al. 2018, "Rethinking the Smaller-Norm-Less-Informative Assumption in Channel Pruning
of Convolution Layers", arXiv:1802.00124, section 3 and the authors' code; the expectation is the bias correction of
Nagel et al. 2019, "Data-Free Quantization Through Weight Equalization and Bias Correction", arXiv:1906.04721, applied
to channels that go.

Where it is exact: for constants in front of a linear layer or a convolution without zero padding. With zero padding it
is exact at positions whose window touches no padding; at the border the removed channel was 0 in the padding, and the
bias cannot know. What a removed channel does to a statistic over channels (LayerNorm, GroupNorm) is not made up for:
the statistic is taken over kept channels after the cut.

Where we differ: any sequence of operations between normalisation and consumer is followed along the recorded tape, not
a fixed pattern of layers; the expectation is a numerical integral, so it serves every activation.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..errors import PlanError
from ..graph.groups import ChannelGraph
from ..graph.labels import axes, compact
from ..graph.tape import Op, Ref
from ..plan import Plan
from ..surgery.shrink import copy_with, fitted
from ._expected import Expectations, Product
from .branch_shifts import branch_shifts

log = logging.getLogger(__name__)
Array = np.ndarray[Any, Any]


def fold_constants(
    model: nn.Module, graph: ChannelGraph, plan: Plan, levels: Mapping[int, Tensor] | None = None
) -> nn.Module:
    """Return a full-width copy of a model whose biases already hold what the plan's removed channels contribute.

    Cut or mask the copy with the same plan. Where the contribution is not known (no normalisation before it, a product
    of two activations) nothing changes; where there is nothing to fold into (no bias, no batch normalisation right
    after, or a layer that runs several times with different inputs) a warning is logged.

    Args:
        model: the traced model; not changed.
        graph: its channel graph.
        plan: which channels and residual branches will go; for these see `secateur.recovery.branch_shifts`.
        levels: number of an activation on the tape -> (channels,) the constant that stands for each channel that goes,
            NaN = none, where it is known better than by expectation.

    Raises:
        PlanError: the plan or the graph is of another model, or the weights hold no data.

    >>> from secateur.graph import trace
    >>> from secateur.surgery.shrink import shrink
    >>> net = nn.Sequential(nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2), nn.ReLU(), nn.Conv2d(2, 1, 1)).eval()
    >>> with torch.no_grad():
    ...     _ = net[1].weight.copy_(torch.tensor([1.0, 0.0])), net[1].bias.copy_(torch.tensor([0.0, 0.7]))
    >>> images = torch.ones(1, 1, 2, 2)
    >>> graph, plan = trace(net, images), Plan.from_removed({"0": [1]}, {"0": 2})
    >>> small = shrink(fold_constants(net, graph, plan), graph, plan)
    >>> torch.allclose(small(images), net(images))
    True
    """
    model = fitted(model, graph)
    graph.check(plan)
    if any(tensor.device.type == "meta" for tensor in model.parameters()):
        raise PlanError("the model is on the meta device: its weights hold no data to fold. Load them first.")
    folding = _Folding(graph, graph.alive(plan), levels or {})
    expected = Expectations(model, graph)
    with torch.no_grad():
        for op in graph.tape.ops:
            folding.visit(op, expected)
            expected.advance(op)
        shifts = folding.shifts()
        for name, shift in branch_shifts(model, graph, plan).items():
            shifts[name] = shifts[name] + shift if name in shifts else shift
    log.info("folded removed channels into %d biases and running means", len(shifts))
    return copy_with(model, lambda name, tensor: _shifted(tensor, shifts.get(name)))


def _shifted(tensor: Tensor, shift: Tensor | None) -> Tensor:
    copy = tensor.detach().clone(memory_format=torch.preserve_format)
    if shift is None:
        return copy
    return copy.copy_(copy.double().cpu() + shift.view(copy.shape))


class Targets:
    """Finds what can take over a constant that a product would lose."""

    def __init__(self, graph: ChannelGraph) -> None:
        self.graph = graph
        self.users: dict[int, list[Op]] = {}
        for op in graph.tape.ops:
            for ref in {ref.number: ref for ref in op.refs()}.values():
                self.users.setdefault(ref.number, []).append(op)
        self.returned = {ref.number for ref in graph.tape.outputs}

    def of(self, op: Op, product: Product) -> tuple[str | None, int]:
        """Return what can take the loss, and with which sign: the bias, or what is added or subtracted right after."""
        state = self.graph.tape.state
        if product.bias is not None:
            return state.get(product.bias.number), 1
        out: Ref = op.out
        while (user := self._only_user(out, op)) is not None and user.name in ("view", "_unsafe_view"):
            if user.out.shape[-1] != out.shape[-1] or product.axis != len(out.shape) - 1:
                return None, 1
            op, out = user, user.out
        if user is None:
            return None, 1
        if "batch_norm" in user.name and isinstance(user.args[3], Ref) and user.args[0].number == out.number:
            return state.get(user.args[3].number), -1
        return self._added(user, out), 1

    def _added(self, user: Op, out: Ref) -> str | None:
        """Return the name of a vector that is added to the last axis of a product."""
        if user.name != "add" or user.kwargs.get("alpha", 1) != 1:
            return None
        others = [ref for ref in user.refs() if ref.number != out.number and ref.shape == out.shape[-1:]]
        return self.graph.tape.state.get(others[0].number) if others else None

    def _only_user(self, out: Ref, op: Op) -> Op | None:
        users = [user for user in self.users.get(out.number, []) if user.index != op.index]
        return users[0] if len(users) == 1 and out.number not in self.returned else None


@dataclass
class _Folding:
    """Collects what every consumer would lose."""

    graph: ChannelGraph
    alive: Array
    levels: Mapping[int, Tensor] = field(default_factory=dict)
    asked: dict[str, list[Tensor]] = field(default_factory=dict)  # bias or running mean -> one shift per use
    left: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.targets = Targets(self.graph)
        self.layers: dict[int, list[Tensor]] = {}

    def visit(self, op: Op, expected: Expectations) -> None:
        """Note what a consumer loses, before the operation is taken into account."""
        product = expected.product(op)
        outs = op.outs()
        if product is not None:
            self._note(op, product, expected)
        self.layers.update((ref.number, own) for ref, own in zip(outs, self.graph.op_layers[op.index], strict=True))

    def _note(self, op: Op, product: Product, expected: Expectations) -> None:
        dead = self._dead(self.layers.get(product.source.number, []), product.source, product.axis)
        lost = torch.zeros(op.out.shape[product.axis], dtype=torch.float64)
        level = self._level(product, expected)
        if dead.any() and level is not None:
            lost = product.contribution(level, dead & ~level.isnan())
            stays = ~self._dead(self.graph.op_layers[op.index][0], op.out, product.axis)
            lost = torch.where(stays, lost, 0.0)
        target, sign = self.targets.of(op, product)
        if target is not None:
            self.asked.setdefault(target, []).append(sign * lost)
        elif lost.any():
            self.left.append(f"{op.module or 'the model'} (no bias, and no batch normalisation right after)")

    def _level(self, product: Product, expected: Expectations) -> Tensor | None:
        if product.source.number in self.levels:
            return self.levels[product.source.number]
        found = expected.get(product.source)
        return None if found is None else found.along(product.axis)[0]

    def _dead(self, layers: list[Tensor], ref: Ref, axis: int) -> Tensor:
        dead = np.zeros(ref.shape[axis], dtype=bool)
        for layer in layers:
            if axis in axes(layer):
                places = self.alive[self.graph.component[compact(layer).numpy()]]
                dead |= ~places.any(axis=tuple(d for d in range(places.ndim) if d != axis))
        return torch.from_numpy(dead)

    def shifts(self) -> dict[str, Tensor]:
        """Return what to add to which bias or running mean; log what has to be left as it is."""
        numbers = {name: number for number, name in self.graph.tape.state.items()}
        result = {}
        for name, asked in self.asked.items():
            if not any(shift.any() for shift in asked):
                continue
            if len(asked) == len(self.targets.users[numbers[name]]) and all(torch.equal(asked[0], s) for s in asked):
                result[name] = asked[0]
            else:
                self.left.append(f"{name} (used several times, with different inputs)")
        _report(self.left)
        return result


def _report(left: Iterable[str]) -> None:
    if names := list(dict.fromkeys(left)):
        log.warning("contributions of removed channels could not be folded, and are lost, at %s", ", ".join(names))
