"""Group Fisher: while the network trains, the channel goes that matters least to the loss for the memory it takes.

Source: Liu, Zhang, Kuang, Zhou, Xue, Wang, Chen, Yang, Liao, Zhang, "Group Fisher Pruning for Practical Network
Compression", ICML 2021, arXiv:2108.00708, and the authors' repository jshilong/FisherPruning.

Claim: the Fisher information of a mask over all layers that share a channel says what the loss rises by without it;
divided by what its removal saves, it ranks channels of all layers for speed.

Equation: with a mask m_c = 1 on channel c where it is read, s_c = sum over batches of (dL/dm_c)^2, where dL/dm_c is
summed over all layers that read the channel before it is squared. Every d steps the channel with the smallest
s_c / dM_c goes, and s starts anew; dM is what goes with it: the elements of the maps that hold it, or its MACs.

Cost: one training run, the product of weights and gradients of all layers that read channels once per step, and one
number for each channel.

Use it when there is time to remove channels one by one, and the pruned network has to be fast rather than small.

Where we differ, and why:

- The paper squares the gradient of every sample, here that of the batch's mean loss is squared: it is the product of
  weights and their gradients, on any architecture and in any training loop, without activations. Near a minimum, where
  mean gradients vanish, its expectation is that of the paper over the batch size, and it is noisier.
- The budget is met exactly. Channels that are left to remove when training ends go then, and the log says so.
- A channel that has gone is held at zero, and cut in the end.
- A depthwise convolution does not count as a reader: what reads its result has the same mask.
- Channels that more than columns of trained weights read have no mask, and stay whole. Where a layer norm lies between,
  the mask is behind it: what its statistics lose with a channel is not seen.
- The epochs that are left after the last removal train the rest; the paper's fine-tuning is a full training run.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import MethodError
from ..graph.groups import ChannelGraph
from ..graph.products import products
from ..graph.walk import parameters_of
from ..plan import Plan
from ..train.attachment import Moment
from ..train.schedules import Recipe
from ._attached import Attached, train_and_decide
from ._filter_masks import FilterMasks, mask_gradient, maskable
from ._history import Standing
from ._problem import Decision, Problem
from ._scores import Allocation, counts_for, eligible, plan_from_counts
from ._settings import check_settings
from ._taking_part import own_state
from ._training import HeldAtZero

log = logging.getLogger(__name__)
NAME = "group_fisher"
SAVINGS = ("memory", "macs", "none")
PAPER = Recipe(
    epochs=30,
    lr=0.002,
    schedule="constant",
    source="the authors' repository jshilong/FisherPruning: learning rate while pruning; the epochs are ours",
)


def fisher_per_saving(fisher: Tensor, saved: Tensor) -> Tensor:
    """Divide the Fisher information of channels by what their removal saves; higher = keep.

    Source: Liu et al. 2021, section 3.

    Args:
        fisher: s, (channels,), >= 0.
        saved: dM, (channels,), >= 0; below 1 counts as 1.

    >>> fisher_per_saving(torch.tensor([4.0, 6.0]), torch.tensor([2.0, 6.0])).tolist()
    [2.0, 1.0]
    """
    return fisher / saved.clamp_min(1.0)


def memory_per_channel(graph: ChannelGraph) -> dict[str, float]:
    """Return group -> how many elements of the results of products hold one channel, on the example input.

    >>> from secateur import trace
    >>> net = torch.nn.Sequential(torch.nn.Conv2d(1, 4, 3), torch.nn.Conv2d(4, 2, 1))
    >>> memory_per_channel(trace(net, torch.zeros(1, 1, 5, 5)))
    {'0': 9.0}
    """
    found = dict.fromkeys(graph.groups, 0.0)
    group_of = np.full(int(graph.component.max(initial=0)) + 1, -1)
    for k, group in enumerate(graph.groups.values()):
        group_of[group.channels] = k
    for product in products(graph):
        for numbers in product.outputs[:1]:
            own = group_of[numbers]
            held = np.bincount(own[own >= 0], minlength=len(found)) * (int(np.prod(product.op.out.shape)) / own.size)
            for (name, group), elements in zip(graph.groups.items(), held, strict=True):
                found[name] += float(elements) / group.width
    return found


@dataclass(frozen=True)
class GroupFisher:
    """Remove the channel of least Fisher information per saving again and again while training.

    Attributes:
        interval: d, steps of training between two removals, >= 1; the paper's for classification, and 10 for detection.
        channels_per_removal: channels that go at a time, >= 1; 1 in the paper.
        per: what removal saves: "memory" of activations (the paper's choice for speed), "macs", or "none" to rank by
            Fisher information alone.
        allocation: "global" (the paper), "uniform", "sensitivity" or {module path: relative fraction}.
        residual: "prune" cuts residual streams too (the paper), "skip" and "projection" as in `L1Filter`.
        recipe: how `decide` trains.

    Raises:
        MethodError: a setting is out of range.
    """

    interval: int = 25
    channels_per_removal: int = 1
    per: str = "memory"
    allocation: Allocation = "global"
    residual: str = "prune"
    recipe: Recipe = PAPER

    def __post_init__(self) -> None:
        step = self.channels_per_removal
        ranges = {
            "interval": (isinstance(self.interval, int) and self.interval >= 1, "a whole number >= 1"),
            "channels_per_removal": (isinstance(step, int) and step >= 1, "a whole number >= 1"),
            "per": (self.per in SAVINGS, f"one of {', '.join(SAVINGS)}"),
        }
        check_settings(self, ranges)

    def attach(self, problem: Problem) -> Attached:
        """Return what removes channels of `problem.model` one by one while it trains.

        Raises:
            BudgetError: the budget is not reachable.
            MethodError: nothing can be masked, or weights are not finite real numbers.
            NothingToPrune: no group is free to go.
        """
        return _Removing(self, problem)

    def decide(self, problem: Problem) -> Decision:
        """Train a copy and remove channels on the way; scores are the last ones, 0 for what went before them.

        Raises:
            BudgetError: the budget is not reachable.
            MethodError: no data, no task, nothing that can be masked, or training that fails.
            NothingToPrune: no group is free to go.
        """
        return train_and_decide(NAME, self, problem)


class _Removing(Attached):
    """Removal at work; the same on all processes, since gradients are read after they are averaged."""

    def __init__(self, method: GroupFisher, problem: Problem) -> None:
        super().__init__(problem)
        self._method = method
        names = eligible(problem, method.residual)
        problem.check_weights(names)
        groups = maskable(problem, names, NAME)
        self._widths = {name: sides.group.width for name, sides in groups.items()}
        counts_for(problem, list(groups), "uniform")  # what cannot be reached is told before training
        is_global = method.allocation == "global"
        self._counts = None if is_global else counts_for(problem, list(groups), method.allocation)
        self._masks = FilterMasks.of(groups, parameters_of(self.model, shared=True))
        self._memory = memory_per_channel(problem.graph)
        self._fisher = torch.zeros(self._masks.total, dtype=torch.float64)  # s, since the last removal
        self._step_count = 0
        self._last: dict[str, Tensor] | None = None  # scores of the last removal
        self._gone: dict[str, list[int]] = {name: [] for name in groups}
        self._hold: HeldAtZero | None = None
        self._is_done = problem.budget.remove == 0

    def after_backward(self, moment: Moment) -> None:
        """Take the squared gradients of the masks into s."""
        self.check_optimizer(NAME, moment, self._masks.readers)
        if self._is_done:
            return
        with torch.no_grad():
            uses = [
                (weight, torch.zeros_like(weight) if g is None else g, axis) for weight, g, axis in self._masks.uses()
            ]
            found = self._masks.added([mask_gradient(*use) for use in uses])
            self._fisher = self._fisher.to(found).add_(found.square())

    def after_step(self, moment: Moment) -> None:
        """Hold what has gone at zero; remove more when it is time."""
        self._hold_()
        if self._is_done:
            return
        self._step_count += 1
        if self._step_count % self._method.interval == 0:
            self._remove()
            self._hold_()

    def standing(self) -> Standing:
        """Return the scores since the last removal; out is what was removed."""
        fresh = self._last is None or bool(self._fisher.any())
        scores = self._scores() if fresh or self._last is None else self._last
        plan = self._final(scores)
        kept = {name: len(plan.kept[name]) for name in self._widths}
        return Standing(self._with_gone(scores, 0.0), kept, {name: len(gone) for name, gone in self._gone.items()})

    def finish(self) -> Decision:
        """Return the decision; what was not removed on the way goes now.

        Raises:
            MethodError: the model has not been trained for a single step.
        """
        if self._step_count == 0 and self.problem.budget.remove > 0:
            raise MethodError(f"{NAME} has seen no step: train the model with what attach() returned, then ask.")
        scores = self._scores() if self._last is None or bool(self._fisher.any()) else self._last
        plan = self._final(scores)
        late = plan.removed_count - sum(map(len, self._gone.values()))
        if late > 0:
            log.warning(
                "%s: %d of %d channels go at once as training ended after %d steps: train longer, lower interval=%d or "
                "raise channels_per_removal=%d.",
                *(NAME, late, plan.removed_count, self._step_count),
                *(self._method.interval, self._method.channels_per_removal),
            )
        return Decision(plan, scores=self._with_gone(scores, 0.0))

    def state_dict(self) -> dict[str, Any]:
        """Return s, the last scores, and what has gone."""
        return {
            "method": NAME,
            "fisher": self._fisher.clone(),
            "steps": self._step_count,
            "last": None if self._last is None else dict(self._last),
            "gone": {name: list(own) for name, own in self._gone.items()},
            "is_done": self._is_done,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up what `state_dict` returned.

        Raises:
            MethodError: it is the state of another method.
        """
        own = own_state(state, NAME)
        self._fisher, self._step_count, self._last = own["fisher"].clone(), own["steps"], own["last"]
        self._gone, self._is_done = {name: list(gone) for name, gone in own["gone"].items()}, own["is_done"]
        self._hold = None

    def _scores(self) -> dict[str, Tensor]:
        """Return group -> (width,) s / dM of now."""
        by_group = self._fisher.double().cpu().split(list(self._widths.values()))
        saved = self._saved()
        return {
            name: fisher_per_saving(own, torch.tensor(saved[name], dtype=torch.float64))
            for name, own in zip(self._widths, by_group, strict=True)
        }

    def _saved(self) -> dict[str, float]:
        """Return group -> what one more channel of it saves, as the network is now."""
        if self._method.per == "none":
            return dict.fromkeys(self._widths, 1.0)
        if self._method.per == "memory":
            return self._memory
        costs, order = self.problem.graph.costs, list(self.problem.graph.groups)
        counts = np.array([costs.widths[k] - len(self._gone.get(name, ())) for k, name in enumerate(order)])
        whole = costs.value("macs", counts)
        one_less = {name: counts - np.eye(len(order), dtype=counts.dtype)[order.index(name)] for name in self._widths}
        return {name: whole - costs.value("macs", own) for name, own in one_less.items()}

    def _with_gone(self, scores: Mapping[str, Tensor], value: float) -> dict[str, Tensor]:
        """Return the scores with this value for what has gone."""
        found = {name: own.clone() for name, own in scores.items()}
        for name, gone in self._gone.items():
            found[name][gone] = value
        return found

    def _final(self, scores: Mapping[str, Tensor]) -> Plan:
        """Return the plan that meets the budget as things stand: what has gone, then the lowest scores."""
        ranked = self._with_gone(scores, -1.0)
        counts = self._counts or counts_for(self.problem, list(ranked), "global", ranked)
        left = {name: width - len(self._gone[name]) for name, width in self._widths.items()}
        kept = {name: min(count, left.get(name, count)) for name, count in counts.items()}  # nothing comes back
        return plan_from_counts(self.problem, kept, ranked)

    def _remove(self) -> None:
        """Remove the lowest of what the final plan takes, in steps that `round_to` allows."""
        scores = self._scores()
        plan, step = self._final(scores), self.problem.limits.round_to
        waiting = [
            (float(scores[name][k]), at, k, name)
            for at, name in enumerate(self._widths)
            for k in sorted(set(plan.removed(name)) - set(self._gone[name]))
        ]
        waiting.sort()
        count = 0
        while waiting and count < self._method.channels_per_removal:
            name = waiting[0][3]
            left = self._widths[name] - len(self._gone[name])
            going = [entry for entry in waiting if entry[3] == name][: left % step or step]
            self._gone[name] += [entry[2] for entry in going]
            waiting = [entry for entry in waiting if entry not in going]
            count += len(going)
        self._last, self._is_done, self._hold = scores, not waiting, None
        self._fisher = torch.zeros_like(self._fisher)

    def _hold_(self) -> None:
        if self._hold is None:
            self._hold = HeldAtZero(
                self.model, self.problem.graph, Plan.from_removed(self._gone, self.problem.graph.widths)
            )
        self._hold.apply_()
