"""Lottery tickets: train, remove the smallest weights, go back, and again, until few weights are left.

Source: Frankle, Carbin, "The Lottery Ticket Hypothesis: Finding Sparse, Trainable Neural Networks", ICLR 2019,
arXiv:1803.03635 (back to the start); Frankle, Dziugaite, Roy, Carbin, "Linear Mode Connectivity and the Lottery Ticket
Hypothesis", ICML 2020, arXiv:1912.05671 (back to an early epoch); Renda, Frankle, Carbin, "Comparing Rewinding and
Fine-tuning in Neural Network Pruning", ICLR 2020, arXiv:2003.02389 (back in the learning rate only).

Claim: a large network holds a small one that, trained from the same early weights, learns as well as the whole; what
training makes large shows which it is.

Equation: for rounds r = 1, 2, ...: train f(x; m_(r-1) * theta) to the end T of the recipe; m_r = m_(r-1) without the
fraction p of its weights with the smallest |theta_T|; theta <- theta_k (weight rewinding), or theta stays
(learning-rate rewinding, fine-tuning); train again from epoch k. After r rounds the fraction (1 - p)^r is left.

Cost: one training run per round, and with weight rewinding one before them: R = ceil(log(1 - s) / log(1 - p)) rounds to
remove s. Memory: copies of the first weights and of those of epoch k.

Use it when accuracy matters more than training time, or to ask whether a mask alone carries what was learnt. With one
round and fine-tuning it is one-shot magnitude pruning.

Where we differ, and why:

- The last round removes less than p, so that the budget is met exactly.
- ``retrain="rewind_weights"`` begins with the model as given, which should be at its start, and trains it whole first;
  the two others take it as trained already, since they need nothing of the training before.
- Rewinding goes to the end of an epoch, not to a step. Running statistics of normalisations are rewound with the
  weights; momentum starts at zero.
- ``retrain="finetune"`` trains at a tenth of the recipe's rate, as Han et al. 2015 (arXiv:1506.02626): with it this is
  their loop of pruning and retraining, but for thresholds per layer and the smaller dropout.
- Every round sees the data in the same order, as its seed is the same.
- All layers are ranked together, as for the papers' deep networks. For small ones they take p of every layer, and half
  of that of the last: ``scope={...}``.
- A weight at zero is held there whatever the optimizer remembers.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from ..errors import MethodError
from ..surgery.shrink import clone
from ..train.held_zeros import HeldZeros
from ..train.schedules import RECIPES, Recipe
from ..train.snapshots import Snapshots
from ..weight_plan import WeightPlan
from ._stages import choose_part
from ._training import train_, training_data
from ._weight_choice import LayerKeptAlive, Scope, check_scope, choose
from ._weights import WeightDecision, WeightProblem

NAME = "lottery_ticket"
RETRAIN = ("rewind_weights", "rewind_lr", "finetune")


def shares_of(per_round: float, count: int, whole: int) -> list[float]:
    """Return which part of all weights that will go is gone after each round.

    Args:
        per_round: p, fraction of what is left that a round removes.
        count: weights that go in all.
        whole: weights that can go.

    >>> [round(share * 0.75, 4) for share in shares_of(0.5, 75, 100)]
    [0.5, 0.75]
    >>> [round(share * 0.6, 4) for share in shares_of(0.2, 60, 100)]
    [0.2, 0.36, 0.488, 0.5904, 0.6]
    """
    shares: list[float] = []
    left = 1 - per_round
    while (gone := (1 - left) * whole) < count * (1 - 1e-9):
        shares.append(gone / count)
        left *= 1 - per_round
    return [*shares, 1.0]


@dataclass(frozen=True)
class LotteryTicket:
    """Remove weights in rounds of training, and rewind between them.

    Attributes:
        per_round: p, fraction of the weights left that each round removes.
        retrain: what follows a removal: "rewind_weights" sets the weights left to those of `rewind_epoch` and trains
            from there (lottery tickets); "rewind_lr" keeps them and only replays the recipe from there; "finetune"
            keeps them and trains as many epochs at a tenth of the rate.
        rewind_epoch: k, epochs of the recipe that are not repeated; 0 = back to the start.
        train_last: train after the last removal too. False gives what training would begin with: with
            "rewind_weights", the ticket.
        scope: what is ranked together: "global" (the papers, for deep networks), "layer", "row", or {parameter:
            relative fraction to remove}.
        recipe: how to train; the one of the third paper for CIFAR-10.

    Raises:
        MethodError: a setting makes no sense.
    """

    per_round: float = 0.2
    retrain: str = "rewind_weights"
    rewind_epoch: int = 0
    train_last: bool = True
    scope: Scope = "global"
    recipe: Recipe = RECIPES["cifar-rewind"]

    def __post_init__(self) -> None:
        check_scope(self.scope)
        if isinstance(self.per_round, bool) or not 0 < self.per_round < 1:
            raise MethodError(f"per_round={self.per_round!r}: expected a fraction above 0 and below 1, e.g. 0.2.")
        if self.retrain not in RETRAIN:
            raise MethodError(f"retrain={self.retrain!r}: expected one of {', '.join(RETRAIN)}.")
        first, last = self.recipe.first_epoch, self.recipe.epochs - 1
        if isinstance(self.rewind_epoch, bool) or self.rewind_epoch not in range(first, last + 1):
            raise MethodError(f"rewind_epoch={self.rewind_epoch!r}: the recipe has epochs {first} to {last}.")

    def choose(self, problem: WeightProblem) -> WeightDecision:
        """Train and remove in rounds; the decision's model is a copy with the weights of the last, at its zeros.

        They are trained unless `train_last` is False. Scores are |w| before the last removal, -1 for weights that had
        gone before.

        Raises:
            BudgetError: the budget is not reachable; told before training.
            MethodError: no data, no task, training that fails, or weights that are not finite real numbers.
            NothingToPrune: no weight is free to go.
            UnknownName: `scope` names a parameter that there is not.
        """
        weights = problem.weights()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", LayerKeptAlive)
            asked = choose(problem, weights, {w.name: w.tensor.detach().abs() for w in weights}, self.scope)
        if not asked.removed_count:
            return WeightDecision(asked)
        training_data(problem, NAME)
        model = clone(problem.model)
        start = self._train_whole_(model, problem)
        plan, scores = WeightPlan(), dict[str, Tensor]()
        shares = shares_of(self.per_round, asked.removed_count, asked.weight_count)
        for number, share in enumerate(shares, start=1):
            plan, scores = self._remove(model, problem, share, plan)
            if start is not None:
                model.load_state_dict(start)
            plan.apply_(model)
            if number < len(shares) or self.train_last:
                train_(NAME, model, problem, self._again(problem.seed), [HeldZeros(plan)])
        return WeightDecision(plan, model, scores)

    def _train_whole_(self, model: nn.Module, problem: WeightProblem) -> Mapping[str, Any] | None:
        """Train the whole model where weights are rewound, and return those to rewind to."""
        if self.retrain != "rewind_weights":
            return None
        start = clone(model).state_dict()
        is_later = self.rewind_epoch > self.recipe.first_epoch
        taken = Snapshots([self.rewind_epoch] if is_later else [])
        train_(NAME, model, problem, self.recipe.replace(seed=problem.seed), [taken])
        return taken.states[self.rewind_epoch] if is_later else start

    def _remove(
        self, model: nn.Module, problem: WeightProblem, share: float, before: WeightPlan
    ) -> tuple[WeightPlan, dict[str, Tensor]]:
        here = WeightProblem(model, problem.budget, problem.pattern, problem.protect, problem.include)
        weights, scores = here.weights(), dict[str, Tensor]()
        for weight in weights:
            scores[weight.name] = weight.tensor.detach().abs()
            if weight.name in before.kept:  # what is gone goes first, also where others came to be zero
                scores[weight.name].masked_fill_(~before.kept[weight.name].to(weight.tensor.device), -1.0)
        return choose_part(here, weights, scores, scope=self.scope, share=share), scores

    def _again(self, seed: int) -> Recipe:
        if self.retrain == "finetune":
            return self.recipe.finetuning(self.recipe.epochs - self.rewind_epoch).replace(seed=seed)
        return self.recipe.replace(first_epoch=self.rewind_epoch, seed=seed)
