"""ISTA on scaling factors: a proximal step per training step turns channels into constants, which then fold away.

Source: Ye, Lu, Lin, Wang, "Rethinking the Smaller-Norm-Less-Informative Assumption in Channel Pruning of Convolution
Layers", ICLR 2018, arXiv:1802.00124, and the author's repository bobye/batchnorm_prune.

Claim: small weights need not matter little, but a channel whose scaling factor is exactly zero is a constant, whatever
its weights; soft thresholds in training make such channels, dear ones first, and constants leave without a loss.

Equation: gamma <- soft(gamma - mu * dL/dgamma, mu * rho * lambda_l), soft(x, t) = sign(x) max(|x| - t, 0), mu the
learning rate; lambda_l = (k_w k_h c_(l-1) + sum over layers l' that read l of k'_w k'_h c_l' + m_w m_h) / (I_w I_h),
with kernels k, widths c, maps m and an input of I_w by I_h: the numbers that one channel of layer l takes per pixel of
the input, for its filter, the kernels that read it and its map.

Cost: one training run as long as the recipe; a step takes O(C) more time and memory for C channels, an epoch one pass
over the recorded operations to count lambda anew.

Use it when a network with batch normalisation may be trained for long, and what is removed should cost nothing at the
moment of the cut. Zeros come late in training: watch `zero_fraction` in the log, and raise `penalty` until it moves.

Where we differ, and why:

- The budget is met exactly: zeros go first, then the smallest factors. Where training made more zeros than were asked
  for the log says so, and where it made fewer it says how many.
- lambda is counted anew after every epoch, over the channels whose factor is not zero by then; the paper does so
  between rounds of training and cutting.
- Only the factors of channels that may go take the proximal step. It replaces what the optimizer did to them, so
  momentum and weight decay have no say there; that keeps zeros at zero.
- ``rescale=alpha`` multiplies shifts as well as factors by alpha and divides the weights that read them, which leaves
  the function as it is for ReLU networks; others are refused. It is undone after the last epoch. The paper speaks of
  factors and weights only.
- Constants are folded into the next layers when the decision is made, as `fold_constants` does, which is exact but for
  the border of zero-padded convolutions. With a training loop of your own, fold before you cut.
- Residual streams stay whole, as in the author's ResNets; ``residual="prune"`` thresholds and cuts them together.
- A channel that several factors scale where it is made counts by their mean size, and they share its lambda evenly. A
  normalisation behind a depthwise convolution is left alone. Layer, group and instance norm with a gain per channel are
  taken like batch norm.
- The running average of weights that the author evaluates is left out: it belongs to the training loop.

The step is taken on gradients that are reduced, so all ranks of a distributed run take the same one. Fine-tune the cut
model without a penalty. Further rounds are ``prune_iteratively(..., method="ista_bn", steps=k)``.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..train.attachment import Moment
from ..train.schedules import Recipe
from ._attached import Attached, train_and_decide
from ._memory import memory_costs
from ._problem import Decision, Problem
from ._rescale import check_rescaling, rescale_
from ._scales import ScaleRun, folded, soft_threshold
from ._scores import Allocation
from ._settings import check_settings

log = logging.getLogger(__name__)
RECIPE = Recipe(
    epochs=200,
    lr=0.1,
    momentum=0.0,
    weight_decay=5e-4,
    schedule="constant",
    batch_size=125,
    source="Ye et al. 2018, arXiv:1802.00124, the author's ResNet-20 for CIFAR-10: 30,000 and 50,000 steps",
)


def ista_step(values: list[Tensor], gradients: list[Tensor], thresholds: list[Tensor], lr: float) -> list[Tensor]:
    """Return soft(x - lr * g, lr * t) for each tensor: a gradient step, then the proximal step of t * |x|.

    Source: Ye et al. 2018, and block_proximal_gradient_descent.py of the author.

    Args:
        values: gamma before the step.
        gradients: dL/dgamma.
        thresholds: rho * lambda for every element.
        lr: mu.

    >>> step = ista_step([torch.tensor([1.0, 0.0])], [torch.tensor([0.5, 0.2])], [torch.tensor([0.25, 0.25])], lr=1.0)
    >>> step[0].tolist()  # 1 - 0.5 - 0.25, and a gradient too small to leave zero
    [0.25, 0.0]
    """
    moved = torch._foreach_sub(values, torch._foreach_mul(gradients, lr))
    return soft_threshold(list(moved), list(torch._foreach_mul(thresholds, lr)))


@dataclass(frozen=True)
class IstaBn:
    """Train with soft thresholds on scaling factors, weighted by what a channel costs, and remove the constants.

    Attributes:
        penalty: rho, >= 0, once warmed up.
        early_penalty: rho at the beginning.
        early_part: fraction of the epochs that use `early_penalty`, in [0, 1].
        rescale: alpha, in (0, 1]: what factors are multiplied by while training, so that they reach zero sooner; 1
            leaves them. The paper tries 1, 0.1, 0.01 and 0.001, small ones for networks that are trained already.
        allocation: "global" (the paper), "uniform", "sensitivity" or {module path: relative fraction}.
        residual: "skip" leaves residual streams whole (the paper), "prune" and "projection" as in `L1Filter`.
        recipe: how to train; the author's for CIFAR.

    Raises:
        MethodError: a number is out of range.
    """

    penalty: float = 0.005
    early_penalty: float = 0.001
    early_part: float = 0.375
    rescale: float = 1.0
    allocation: Allocation = "global"
    residual: str = "skip"
    recipe: Recipe = RECIPE

    def __post_init__(self) -> None:
        ranges = {
            "penalty": (0 <= self.penalty < math.inf, "a number >= 0"),
            "early_penalty": (0 <= self.early_penalty < math.inf, "a number >= 0"),
            "early_part": (0 <= self.early_part <= 1, "a fraction in [0, 1]"),
            "rescale": (0 < self.rescale <= 1, "a number in (0, 1]"),
        }
        check_settings(self, ranges)

    def attach(self, problem: Problem) -> Attached:
        """Return the steps as an attachment; with `rescale` the model's weights are rescaled here.

        Raises:
            BudgetError: the budget is not reachable.
            MethodError: no group is followed by a normalisation, gains are frozen, weights are not finite, or rescaling
                would change the function.
            NothingToPrune: no group is free to go.
        """
        return _Ista(self, problem)

    def decide(self, problem: Problem) -> Decision:
        """Train a copy, choose the channels whose factors are zero or smallest, and fold their constants.

        Raises:
            BudgetError: the budget is not reachable; told before training.
            MethodError: no data, no task, no normalisation, or training that fails.
            NothingToPrune: no group is free to go.
        """
        return folded(train_and_decide("ista_bn", self, problem), problem)


class _Ista(ScaleRun):
    """One run.

    Attributes:
        costs: group -> (width,) lambda, as counted last.
    """

    method: IstaBn

    def __init__(self, method: IstaBn, problem: Problem) -> None:
        super().__init__("ista_bn", method, problem)
        covered = self.scales.spread({name: torch.ones(()) for name in self.scales.places})
        self._covered = [None if bool(where.all()) else where > 0 for where in covered]
        self._before: list[Tensor] = []
        self._is_rescaled = method.rescale < 1
        if self._is_rescaled:
            check_rescaling(problem, self.scales, method.rescale)
            rescale_(problem.model, problem.graph, self.scales, method.rescale)
        self._count()

    def _count(self) -> None:
        self.costs = costs_left(self.problem, self.scales.magnitudes(self.model))
        self._laid: list[Tensor] = []

    @property
    def zero_fraction(self) -> float:
        """Which part of the weighted penalty is at rest: the sum of lambda over factors of 0 by that over all."""
        zero = {name: own == 0 for name, own in self.scales.magnitudes(self.model).items()}
        whole = sum(float(self.costs[name].sum()) for name in zero)
        return sum(float(self.costs[name][where].sum()) for name, where in zero.items()) / whole

    def after_backward(self, moment: Moment) -> None:
        """Remember the gains as they are before the optimizer moves them."""
        self._before = [gain.detach().clone() for gain in self.gains(moment)]

    def after_step(self, moment: Moment) -> None:
        """Take the ISTA step in place of the optimizer's."""
        gains = self.gains(moment)
        if not self._laid or self._laid[0].device != gains[0].device:
            shares = {name: own / self.scales.places[name].shape[1] for name, own in self.costs.items()}
            self._laid = [each.to(gain) for each, gain in zip(self.scales.spread(shares), gains, strict=True)]
            self._covered = [None if mask is None else mask.to(gains[0].device) for mask in self._covered]
        gradients = [torch.zeros_like(gain) if gain.grad is None else gain.grad for gain in gains]
        thresholds = list(torch._foreach_mul(self._laid, self._penalty(moment)))
        moved = ista_step(self._before, gradients, thresholds, moment.lr)
        values = [gain.detach() for gain in gains]
        found = [
            new if mask is None else torch.where(mask, new, now)
            for new, now, mask in zip(moved, values, self._covered, strict=True)
        ]
        torch._foreach_copy_(values, found)

    def _penalty(self, moment: Moment) -> float:
        is_early = moment.epoch < self.method.early_part * moment.epoch_count
        return self.method.early_penalty if is_early else self.method.penalty

    def after_epoch(self, moment: Moment) -> None:
        """Count the costs anew; after the last epoch undo the rescaling."""
        log.info("epoch %d: %.1f %% of the penalty is at zero", moment.epoch + 1, 100 * self.zero_fraction)
        self._count()
        if self._is_rescaled and moment.epoch + 1 == moment.epoch_count:
            rescale_(moment.model, self.problem.graph, self.scales, 1 / self.method.rescale)
            self._is_rescaled = False

    def finish(self) -> Decision:
        """Rank the channels by the mean size of their factors and meet the budget exactly; the model stays as it is.

        Raises:
            BudgetError: the budget is not reachable.
            MethodError: gains are not finite.
        """
        decision = super().finish()
        zeros = sum(int((own == 0).sum()) for own in decision.scores.values())
        if zeros > decision.plan.removed_count:
            log.info("%d channels are at zero and %d of them go; more could", zeros, decision.plan.removed_count)
        return decision

    def state_dict(self) -> dict[str, Any]:
        """Return whose state it is, the costs as counted last, and whether weights are rescaled."""
        return {**super().state_dict(), "costs": dict(self.costs), "is_rescaled": self._is_rescaled}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up what `state_dict` returned, of this method with these settings.

        Raises:
            MethodError: it is of another.
        """
        super().load_state_dict(state)
        self.costs, self._is_rescaled = dict(state["costs"]), state["is_rescaled"]
        self._laid = []


def costs_left(problem: Problem, sizes: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return group -> (width,) lambda of every channel, over the channels whose factors are not all zero."""
    graph = problem.graph
    alive = np.ones(int(graph.component.max(initial=0)) + 1, dtype=bool)
    for name, own in sizes.items():
        alive[graph.groups[name].channels[(own == 0).numpy()]] = False
    costs = memory_costs(graph, alive)
    return {name: costs[name] for name in sizes}
