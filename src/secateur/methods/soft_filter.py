"""Soft filter pruning: after every epoch the filters of smallest norm are set to zero, and train on.

Source: He, Kang, Dong, Fu, Yang, "Soft Filter Pruning for Accelerating Deep Convolutional Neural Networks", IJCAI
2018, arXiv:1808.06866; ``schedule="growing"`` is He, Dong, Kang, Fu, Yan, Yang, "Asymptotic Soft Filter Pruning for
Deep Convolutional Neural Networks", IEEE Transactions on Cybernetics 2019, arXiv:1808.07471.

Claim: a filter that is zeroed and goes on training may come back, so the network keeps its capacity to learn while it
is pruned, and can be trained and pruned in one run, from scratch or from a trained model.

Equation: after each epoch, in each layer, W[j] = 0 for the int(P O) filters j with the smallest ||W[j]||_2 of O;
gradients are not masked. Growing: P(e) = P (1 - exp(-k e / E)) / (1 - exp(-k)) after e of E epochs, with k such that
P(E / 8) = 3 P / 4.

Cost: one training run. The norms take O(P) time for P parameters per epoch, and nothing per step.

Use it when you train anyway: from scratch, or long enough from a trained model that filters can recover. A zeroed
filter comes back by momentum, or by its gradient where the ReLU behind it is open, so in short runs the first choice is
mostly the last.

Where we differ, and why:

- The budget says how many filters go, exactly, and their number is settled once for all epochs; the paper takes the
  same fraction of every layer and rounds down, which is ``allocation="uniform"`` up to rounding.
- Residual streams keep their width, as in the paper, whose last convolutions of a block nevertheless lose filters and
  add what is left into the full stream by index. Here channels that are added up go together or stay, so those
  filters stay unless ``residual`` says otherwise.
- Channels that several weights make are ranked by the norm over all of them, and zeroed in all of them.
- Biases and normalisations are not touched while training, as in the authors' code. What filters at zero still put out
  is a constant, which `finish` moves into the layers that read it, where they have something to take it up with. The
  authors drop these constants inside a block.
- Filters are zeroed for the first time after the first epoch: the paper's algorithm 1 trains an epoch and then zeroes,
  in every round. The authors' code does it once before training too. We follow the paper, not only for its word: behind
  a new batch normalisation (beta = 0) and a ReLU, filters that start at zero have neither gradient nor momentum, and
  stay there for good.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ..errors import MethodError
from ..train.attachment import Moment
from ..train.schedules import Recipe
from ._attached import Attached, train_and_decide
from ._history import Standing
from ._problem import Decision, Problem
from ._scores import Allocation, counts_for, eligible, lowest, plan_from_counts
from ._taking_part import own_state
from ._zeroed import MadeBy, take_out_

NAME = "soft_filter"
SCHEDULES = ("constant", "growing")
PAPER = Recipe(
    epochs=200,
    lr=0.01,
    weight_decay=5e-4,
    nesterov=True,
    schedule="step",
    milestones=(0.3, 0.6, 0.8),
    milestone_factor=0.2,
    batch_size=128,
    source="He et al. 2018, arXiv:1808.06866, CIFAR-10 from a trained model; from scratch the rate is 0.1",
)


def growing_share(progress: float) -> float:
    """Return which part of all filters that will go is at zero, growing ever more slowly.

    The exponential through (0, 0), (1/8, 3/4) and (1, 1).

    Source: He et al. 2019, section 3.

    Args:
        progress: part of the epochs that is over, in [0, 1].

    Returns:
        A fraction in [0, 1].

    >>> [round(growing_share(progress), 6) for progress in (0, 0.125, 1)]
    [0.0, 0.75, 1.0]
    """
    decay = 0.25  # exp(-k / 8), which solves (1 - x) / (1 - x^8) = 3 / 4; the iteration contracts by 6 x^7 < 0.001
    for _ in range(8):
        decay = 1 - 0.75 * (1 - decay**8)
    return float((1 - decay ** (8 * progress)) / (1 - decay**8))


def at_zero_count(wanted: int, share: float) -> int:
    """Return how many of the filters that will go are at zero by now: rounded down, as the paper does.

    >>> at_zero_count(10, 0.75), at_zero_count(10, 1.0), at_zero_count(3, 0.1 + 0.2)
    (7, 10, 0)
    """
    return math.floor(wanted * share + 1e-9)


@dataclass(frozen=True)
class SoftFilter:
    """Zero the filters of smallest norm after every epoch of training, and remove those that are zero at its end.

    Attributes:
        schedule: "constant" zeroes as many as will go after every epoch (SFP), "growing" ever more of them (ASFP).
        allocation: "uniform" (the paper), "global", ranked anew each epoch, "sensitivity" or {module path: relative
            fraction}.
        residual: "skip" leaves every residual stream whole (the paper), "projection" and "prune" as in `L1Filter`.
        recipe: how `decide` trains; the paper's for CIFAR-10, from a trained model.

    Raises:
        MethodError: `schedule` is none of the two.
    """

    schedule: str = "constant"
    allocation: Allocation = "uniform"
    residual: str = "skip"
    recipe: Recipe = PAPER

    def __post_init__(self) -> None:
        if self.schedule not in SCHEDULES:
            raise MethodError(f"schedule={self.schedule!r}: expected one of {', '.join(SCHEDULES)}.")

    def attach(self, problem: Problem) -> Attached:
        """Return what zeroes filters of `problem.model` in place, after each epoch of its training.

        Raises:
            BudgetError: the budget is not reachable.
            MethodError: weights are not finite real numbers.
            NothingToPrune: no group is free to go.
        """
        return _SoftFilters(self, problem)

    def decide(self, problem: Problem) -> Decision:
        """Train a copy by `recipe` and remove what is zero in the end; the scores are the norms before that.

        Raises:
            BudgetError: the budget is not reachable.
            MethodError: no data, no task, training that fails, or weights that are not finite real numbers.
            NothingToPrune: no group is free to go.
        """
        return train_and_decide(NAME, self, problem)

    def share(self, progress: float) -> float:
        """Return which part of the filters that will go is at zero when this part of the epochs is over."""
        return 1.0 if self.schedule == "constant" else growing_share(progress)


class _SoftFilters(Attached):
    """Soft filter pruning at work; the same on all processes, since the weights are."""

    def __init__(self, method: SoftFilter, problem: Problem) -> None:
        super().__init__(problem)
        self._method = method
        names = eligible(problem, method.residual)
        problem.check_weights(names)
        self._made_by = MadeBy.of(problem.model, problem.graph, names)
        self._scores: Mapping[str, Tensor] | None = None  # the norms at the last zeroing; None = the weights moved on
        self._kept = self._counts(self._made_by.norms(self.model))

    def after_backward(self, moment: Moment) -> None:
        """Refuse, once, an optimizer that would leave zeroed filters where they are."""
        self.check_optimizer(NAME, moment, (w for own in self._made_by.weights.values() for w in own))

    def after_step(self, moment: Moment) -> None:
        """Note that the weights moved."""
        self._scores = None

    def after_epoch(self, moment: Moment) -> None:
        """Zero the filters of smallest norm."""
        self._zero_(self._method.share((moment.epoch + 1) / moment.epoch_count))

    def standing(self) -> Standing:
        """Return the norms before the last zeroing; out are the filters that are zero."""
        now = self._made_by.norms(self.model)
        out = {name: int((own == 0).sum()) for name, own in now.items()}
        return Standing(now if self._scores is None else self._scores, self._kept, out)

    def finish(self) -> Decision:
        """Choose by the norms before the last zeroing, or by those of now, and take what goes out of the model."""
        if self._scores is None:
            self._zero_(1.0)
        scores = dict(self._scores or {})
        plan = plan_from_counts(self.problem, self._kept, scores)
        self._made_by.zero_(self.model, {name: plan.removed(name) for name in scores})  # a growing schedule has not yet
        take_out_(self.model, self.problem.graph, plan)
        return Decision(plan, scores=scores)

    def state_dict(self) -> dict[str, Any]:
        """Return how many filters stay, and the norms before the others were zeroed, unless the weights moved on."""
        scores = None if self._scores is None else dict(self._scores)
        return {"method": NAME, "kept": dict(self._kept), "scores": scores}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up what `state_dict` returned.

        Raises:
            MethodError: it is the state of another method.
        """
        own = own_state(state, NAME)
        self._kept, self._scores = dict(own["kept"]), own["scores"]

    def _counts(self, scores: Mapping[str, Tensor]) -> dict[str, int]:
        return counts_for(self.problem, list(scores), self._method.allocation, scores)

    def _zero_(self, share: float) -> None:
        scores = self._made_by.norms(self.model)
        if self._method.allocation == "global":
            self._kept = self._counts(scores)
        widths = self.problem.graph.widths
        gone = {n: lowest(own, at_zero_count(widths[n] - self._kept[n], share)).tolist() for n, own in scores.items()}
        self._made_by.zero_(self.model, gone)
        self._scores = scores
