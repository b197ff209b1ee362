"""DepGraph's group norm: training shrinks all coupled weights of a small channel at once, and small channels go.

Source: Fang, Ma, Song, Mi, Wang, "DepGraph: Towards Any Structural Pruning", CVPR 2023, arXiv:2301.12900, and the
authors' repository VainF/Torch-Pruning.

Claim: a channel is small only if everything that goes with it is small, in all layers of its group; so sparse training
has to press on all of it alike.

Equation: I_k = mean over the slices w of channel k of sum |w|^p, in rows that make it, gains that scale it and columns
that read it. While training, dL/dw += lambda gamma_k w for each of them, with
gamma_k = 2^(alpha (I_max - I_k) / (I_max - I_min)) in each group. Then score(k) = I_k / mean of I over the group.

Cost: one training run, the memory of the weights once more, and an element-wise pass over them per step; the sizes are
measured once per epoch. With ``penalty=0`` no data, and one pass over the weights.

Use it when layers are coupled, as in residual networks, and there is time to train. With ``penalty=0`` it is a quick
criterion on weights alone, which should be followed by fine-tuning.

Where we differ, and why:

- The authors cut in many small steps until the MACs are met. Here the budget is met exactly in one cut after training;
  many steps are `secateur.prune_iteratively`.
- gamma is computed once per epoch: sizes change slowly, and measuring them takes a pass over all weights.
- A channel whose group has the same size everywhere gets gamma = 1: nothing tells it from the others.
- A weight that belongs to two channels, the one that it makes and the one that it reads, is pressed by both.
- Biases and shifts are neither counted nor pressed, nor are directions of weight norm, whose size means nothing.
- The channels that stay are not re-fitted, and what goes is not folded into biases, as in the paper; fine-tune after.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..train.attachment import Moment
from ..train.schedules import Recipe
from ._attached import Attached, counts_now, train_and_decide
from ._coupled_slices import CoupledSlices
from ._history import Standing
from ._problem import Decision, Problem
from ._scores import Allocation, counts_for, eligible, plan_from_scores
from ._settings import check_settings
from ._taking_part import own_state
from ._weight_pull import WeightPull

NAME = "depgraph_group_norm"
PAPER = Recipe(
    epochs=100,
    lr=0.01,
    weight_decay=5e-4,
    schedule="step",
    milestones=(0.6, 0.8),
    batch_size=128,
    source="the authors' repository VainF/Torch-Pruning, sparse training on CIFAR-10",
)


def relative_sizes(sizes: Tensor) -> Tensor:
    """Divide the sizes of a group's channels by their mean, so that groups can be compared; higher = keep.

    Source: the authors' repository VainF/Torch-Pruning.

    Args:
        sizes: I, (channels,), >= 0.

    Returns:
        (channels,), 1 on average; as they are where all are 0.

    >>> relative_sizes(torch.tensor([1.0, 2.0, 3.0])).tolist()
    [0.5, 1.0, 1.5]
    """
    mean = sizes.mean()
    return sizes / mean if mean > 0 else sizes


def shrink_strengths(sizes: Tensor, alpha: float) -> Tensor:
    """Return gamma, how hard each channel of a group is pressed: 1 for the largest, 2^alpha for the smallest.

    Source: Fang et al. 2023, section 3.3.

    Args:
        sizes: I, (channels,); their unit does not matter.
        alpha: of the base 2^alpha, >= 0.

    Returns:
        (channels,), all 1 where all sizes are equal.

    >>> shrink_strengths(torch.tensor([1.0, 3.0, 5.0]), alpha=4).tolist()
    [16.0, 4.0, 1.0]
    """
    least, most = torch.aminmax(sizes)
    if least == most:
        return torch.ones_like(sizes)
    strengths: Tensor = torch.exp2(alpha * ((most - sizes) / (most - least)))
    return strengths


@dataclass(frozen=True)
class DepgraphGroupNorm:
    """Press on small channels in all layers of their group while training, and remove the smallest.

    Attributes:
        penalty: lambda, >= 0; 0 scores the weights as they are, without training.
        power: p, > 0.
        alpha: a group's smallest channel is pressed 2^alpha times as hard as its largest, >= 0.
        allocation: "global" (the paper), "uniform", "sensitivity" or {module path: relative fraction}.
        residual: "prune" cuts residual streams too (the paper), "skip" and "projection" as in `L1Filter`.
        recipe: how `decide` trains.

    Raises:
        MethodError: a setting is out of range.
    """

    penalty: float = 5e-4
    power: float = 2.0
    alpha: float = 4.0
    allocation: Allocation = "global"
    residual: str = "prune"
    recipe: Recipe = PAPER

    def __post_init__(self) -> None:
        ranges = {
            "penalty": (0 <= self.penalty < math.inf, "a number >= 0"),
            "power": (0 < self.power < math.inf, "a number > 0"),
            "alpha": (0 <= self.alpha < math.inf, "a number >= 0"),
        }
        check_settings(self, ranges)

    def attach(self, problem: Problem) -> Attached:
        """Return what presses on small channels of `problem.model`.

        Raises:
            BudgetError: the budget is not reachable.
            MethodError: weights are not finite real numbers.
            NothingToPrune: no group is free to go.
        """
        return _Pressing(self, problem)

    def decide(self, problem: Problem) -> Decision:
        """Train a copy by `recipe` and remove the smallest channels; without a penalty, read weights only.

        Raises:
            BudgetError: the budget is not reachable.
            MethodError: no data, no task, training that fails, or weights that are not finite real numbers.
            NothingToPrune: no group is free to go.
        """
        if self.penalty == 0:
            return self.attach(problem).finish()
        return train_and_decide(NAME, self, problem)


class _Pressing(Attached):
    """The penalty at work; the same on all processes, since the weights are and reduced gradients are changed."""

    def __init__(self, method: DepgraphGroupNorm, problem: Problem) -> None:
        super().__init__(problem)
        self._method = method
        names = eligible(problem, method.residual)
        problem.check_weights(names)
        self._slices = CoupledSlices.of(problem.model, problem.graph, names)
        self._sizes: Mapping[str, Tensor] | None = None  # of this epoch, from its first step on
        self._pull: WeightPull | None = None
        # A budget out of reach is told before training; the allocation by sensitivity would read data for it.
        allocation = "uniform" if method.allocation == "sensitivity" else method.allocation
        counts_for(problem, names, allocation, self._scores())

    def after_backward(self, moment: Moment) -> None:
        """Add lambda gamma w to the gradients."""
        if self._method.penalty == 0:
            return
        self.check_optimizer(NAME, moment, self._slices.tensors)
        if self._pull is None:
            self._sizes = self._sizes or self._measured()
            factors = {
                n: self._method.penalty * shrink_strengths(s, self._method.alpha) for n, s in self._sizes.items()
            }
            self._pull = WeightPull(self._slices.laid_out(self.model, factors), {})
        self._pull.add_to_gradients_(self.model)

    def after_epoch(self, moment: Moment) -> None:
        """Measure anew with the next step."""
        self._sizes, self._pull = None, None

    def standing(self) -> Standing:
        """Return the relative sizes; training brings none to exactly zero, so nothing is out before the end."""
        scores = self._scores()
        return Standing(scores, counts_now(self.problem, self._method.allocation, scores), dict.fromkeys(scores, 0))

    def finish(self) -> Decision:
        """Choose by the sizes of now; the model stays as it is."""
        scores = self._scores()
        return Decision(plan_from_scores(self.problem, scores, self._method.allocation), scores=scores)

    def state_dict(self) -> dict[str, Any]:
        """Return the sizes that this epoch's penalty goes by; None before its first step."""
        return {"method": NAME, "sizes": None if self._sizes is None else dict(self._sizes)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up what `state_dict` returned.

        Raises:
            MethodError: it is the state of another method.
        """
        self._sizes, self._pull = own_state(state, NAME)["sizes"], None

    def _measured(self) -> dict[str, Tensor]:
        return self._slices.mean_powers(self.model, self._method.power)

    def _scores(self) -> dict[str, Tensor]:
        return {name: relative_sizes(sizes) for name, sizes in self._measured().items()}
