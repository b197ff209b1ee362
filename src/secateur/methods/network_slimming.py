"""Network Slimming: an L1 penalty in training makes scaling factors small, and channels with the smallest ones go.

Source: Liu, Li, Shen, Huang, Yan, Zhang, "Learning Efficient Convolutional Networks through Network Slimming", ICCV
2017, arXiv:1708.06519, and the co-author's repository Eric-mingjie/network-slimming.

Claim: the scaling factor that batch normalisation has for every channel is a switch that training with an L1 penalty
turns off where it can, so that one ranking of all factors finds the width of every layer.

Equation: L = sum over samples of l(f(x, W), y) + lambda * sum over gamma in G of |gamma|, with G the factors of all
channels that may go. Subgradient form: grad(gamma) += lambda * sign(gamma) before the optimizer's step. Proximal form:
gamma <- sign(gamma) * max(|gamma| - lr * lambda, 0) after it. Then score(c) = |gamma_c|, ranked over all layers.

Cost: one training run as long as the recipe; the penalty itself takes O(C) time and memory per step for C channels.

Use it when a network with batch normalisation is trained anyway, or when there is time to train it again: widths come
out of one number, without a sensitivity per layer. The network has to be fine-tuned afterwards.

Where we differ, and why:

- The paper removes every channel whose factor is at or below the value at position floor(N p) of the sorted list, ties
  included. Here the smallest go one by one until the budget is met, so it is met exactly, whatever it counts, and no
  group is emptied.
- ``form="proximal"`` is ours: the subgradient only swings around zero, in a band of lr * lambda, where the proximal
  step arrives at zero.
- The paper zeroes scale and shift of channels that go. That loses what the shift still contributed, so it is folded
  into the next layers first, as `fold_constants` does; ``fold=False`` does as the paper. With a training loop of your
  own, fold before you cut.
- Residual streams keep their width, and the factors of what is added to them are neither penalised nor ranked, as in
  the authors' code for networks that normalise before they add. There, and in dense blocks, a `ChannelSelect` behind
  each normalisation passes on what the next layers still read of the stream, as in the paper; its index is a buffer.
  ``select=False`` leaves such layers whole, and ``residual="prune"`` penalises and cuts whole streams in place of it.
- A channel that several normalisations scale where it is made counts by the mean size of its factors. One behind a
  depthwise convolution belongs to channels that were scaled before; it is neither penalised nor ranked.
- Layer, group and instance norm with a gain per channel are taken like batch norm. Groups without any stay whole; where
  no group has one the model is refused.
- ``initial_scale=0.5`` starts as the paper does from random weights, with every factor at 0.5 and every shift at 0. By
  default they stay as they are, since most networks that are pruned are trained already.
- Weight decay acts on the factors as on all weights, as in the authors' code.

Several passes, as in section 3 of the paper, are ``prune_iteratively(..., method="network_slimming", steps=k)``: each
step trains with the penalty, cuts, and fine-tunes without it. The penalty is added after gradients are reduced, so all
ranks of a distributed run take the same step.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from ..errors import MethodError
from ..graph.norms import Flow
from ..graph.walk import parameters_of
from ..surgery.selection import with_selections
from ..train.attachment import Moment
from ..train.schedules import RECIPES, Recipe
from ._attached import Attached, train_and_decide
from ._problem import Decision, Problem
from ._scales import ScaleRun, folded, soft_threshold
from ._scores import Allocation

FORMS = ("subgradient", "proximal")


def add_subgradient_(gradients: list[Tensor], gains: list[Tensor], penalties: list[Tensor]) -> None:
    """Add the subgradient of an L1 penalty to gradients, in place; 0 where a gain is 0.

    Source: Liu et al. 2017, section 3, and updateBN in the authors' main.py.

    Args:
        gradients: one tensor per gain.
        gains: gamma.
        penalties: lambda for every element.

    >>> gradient = torch.zeros(3)
    >>> add_subgradient_([gradient], [torch.tensor([2.0, -1.0, 0.0])], [torch.full((3,), 0.25)])
    >>> gradient.tolist()
    [0.25, -0.25, 0.0]
    """
    signs = torch._foreach_sign(gains)
    torch._foreach_mul_(signs, penalties)
    torch._foreach_add_(gradients, signs)


@dataclass(frozen=True)
class NetworkSlimming:
    """Train with an L1 penalty on scaling factors and remove the channels with the smallest ones.

    Attributes:
        penalty: lambda, >= 0; the paper has 1e-4 for VGG and 1e-5 for ResNet and DenseNet.
        form: "subgradient" (the paper) or "proximal".
        initial_scale: what every factor starts at, with shifts at 0; None leaves them as they are. The paper has 0.5.
        fold: move what channels that go still contribute into the next layers.
        allocation: "global" (the paper), "uniform", "sensitivity" or {module path: relative fraction}.
        residual: "skip" leaves residual streams whole (the paper's choice), "prune" and "projection" as in `L1Filter`.
        select: with ``residual="skip"``, let normalisations of a stream pass on some of its channels (the paper).
        recipe: how to train; the paper's for CIFAR.

    Raises:
        MethodError: a number is out of range, or `form` is none of the two.
    """

    penalty: float = 1e-4
    form: str = "subgradient"
    initial_scale: float | None = None
    fold: bool = True
    allocation: Allocation = "global"
    residual: str = "skip"
    select: bool = True
    recipe: Recipe = RECIPES["cifar-slimming"]

    def __post_init__(self) -> None:
        if not 0 <= self.penalty < math.inf:
            raise MethodError(f"penalty={self.penalty!r}: expected a number >= 0, e.g. 1e-4.")
        if self.form not in FORMS:
            raise MethodError(f"form={self.form!r}: expected one of {', '.join(FORMS)}.")
        if self.initial_scale is not None and not 0 < self.initial_scale < math.inf:
            raise MethodError(f"initial_scale={self.initial_scale!r}: expected None or a number > 0, e.g. 0.5.")

    def prepare(self, problem: Problem) -> Problem:
        """Pose the problem on a graph with a channel selection behind every normalisation that reads a shared stream.

        `prune`, `secateur.attach` and `prune_iteratively` do. A problem without stays one without.
        """
        if not self.select or self.residual != "skip":
            return problem
        return replace(problem, graph=with_selections(problem.model, problem.graph))

    def attach(self, problem: Problem) -> Attached:
        """Return the penalty as an attachment; with `initial_scale` the model's normalisations are reset here.

        Raises:
            BudgetError: the budget is not reachable.
            MethodError: no group is followed by a normalisation, gains are frozen, or weights are not finite.
            NothingToPrune: no group is free to go.
        """
        return _Slimming(self, problem)

    def decide(self, problem: Problem) -> Decision:
        """Train a copy with the penalty and choose by its scaling factors.

        Raises:
            BudgetError: the budget is not reachable; told before training.
            MethodError: no data, no task, no normalisation, or training that fails.
            NothingToPrune: no group is free to go.
        """
        decision = train_and_decide("network_slimming", self, problem)
        return folded(decision, problem) if self.fold else decision


class _Slimming(ScaleRun):
    """One run with the penalty."""

    method: NetworkSlimming

    def __init__(self, method: NetworkSlimming, problem: Problem) -> None:
        super().__init__("network_slimming", method, problem)
        self._penalties: list[Tensor] = []
        if method.initial_scale is not None:
            reset_(problem, method.initial_scale)

    def _penalties_for(self, gains: list[nn.Parameter]) -> list[Tensor]:
        if not self._penalties or self._penalties[0].device != gains[0].device:
            level = torch.tensor(self.method.penalty)
            spread = self.scales.spread(dict.fromkeys(self.scales.places, level))
            self._penalties = [each.to(gain) for each, gain in zip(spread, gains, strict=True)]
        return self._penalties

    def after_backward(self, moment: Moment) -> None:
        """Add the penalty's subgradient."""
        gains = self.gains(moment)
        if self.method.form == "subgradient":
            found = zip(gains, self._penalties_for(gains), strict=True)
            used = [(gain.grad, gain.detach(), penalty) for gain, penalty in found if gain.grad is not None]
            if used:
                gradients, values, penalties = (list(each) for each in zip(*used, strict=True))
                add_subgradient_(gradients, values, penalties)

    def after_step(self, moment: Moment) -> None:
        """Take the proximal step."""
        if self.method.form == "proximal":
            gains = self.gains(moment)
            values = [gain.detach() for gain in gains]
            thresholds = list(torch._foreach_mul(self._penalties_for(gains), moment.lr))
            torch._foreach_copy_(values, soft_threshold(values, thresholds))


def reset_(problem: Problem, scale: float) -> None:
    """Set every gain of a model to one value and every shift to 0, in place."""
    parameters = parameters_of(problem.model, shared=True)
    norms = Flow(problem.graph).norms
    with torch.no_grad():
        for norm in norms:
            for name, value in ((norm.gain, scale), (norm.shift, 0.0)):
                if name in parameters:
                    parameters[name].fill_(value)
