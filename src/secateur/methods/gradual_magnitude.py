"""Gradual magnitude pruning: small weights go while the network trains, many at first and ever fewer.

Source: Zhu, Gupta, "To prune, or not to prune: exploring the efficacy of pruning for model compression", ICLR 2018
workshop, arXiv:1710.01878, section 3.

Claim: a network that loses its smallest weights little by little, while the learning rate is high enough for the others
to make up for each loss, ends up better than one that loses all of them at once.

Equation: s_t = s_f + (s_i - s_f) (1 - (t - t_0) / (n dt))^3 for t = t_0, t_0 + dt, ..., t_0 + n dt, with s_t the
fraction of weights at zero after t steps, s_i the first and s_f the last. At each of these steps the weights with the
smallest |w| are masked anew; until the next one masked weights are zero and get no updates.

Cost: one training run. Each of the n + 1 updates ranks P weights in O(P) time; a step multiplies gradients, weights and
the optimizer's memory by masks. Memory: the masks, and a copy of the weights for the values of those that are masked.

Use it when you train anyway, or can afford a whole schedule: at 90 % and more it is the reference that is hard to beat.

Where we differ, and why:

- The budget says how many weights are zero in the end, exactly; in between counts are rounded down. A loop that ends
  before the last update gets the rest removed at once by `finish`, with a warning in the log.
- A masked weight keeps the value that it had, as in the paper's implementation, and competes with it at the next
  update: where the others have become smaller it comes back, with that value and without momentum.
- What the optimizer remembers of masked weights is cleared after each step, so neither momentum nor weight decay moves
  them; the paper only masks gradients.
- The paper prunes every layer alike: ``scope="layer"``. It leaves out some small layers: name them in `protect`.
- dt follows from `updates` and the length of the run, so that one setting suits short and long runs; the paper has 100
  to 1000 steps. Unless `last_step` says otherwise the last update is half-way from `first_step` to the end, which is
  ours: there learning rates are still high enough for the others to make up for it, as the paper asks.
- With N:M blocks those weights go gradually that the whole pattern would remove at that step.

All ranks of a distributed run hold the same weights, so they come to the same masks.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..errors import MethodError
from ..graph.walk import parameters_of
from ..train.attachment import Moment
from ..train.held_zeros import HeldZeros, plan_in
from ..train.schedules import RECIPES, Recipe
from ..weight_plan import WeightPlan
from ._attached_weights import AttachedWeights, train_and_choose
from ._stages import choose_part
from ._taking_part import check_same_settings, own_state, settings_of
from ._weight_choice import Scope, check_scope, choose
from ._weights import WeightDecision, WeightProblem

log = logging.getLogger(__name__)
NAME = "gradual_magnitude"


def removed_at(progress: float, final: float, initial: float = 0.0) -> float:
    """Return the fraction s_t that is removed at a point of the schedule.

    Source: Zhu, Gupta 2018, equation 1.

    Args:
        progress: (t - t_0) / (n dt), in [0, 1].
        final: s_f.
        initial: s_i.

    >>> [round(removed_at(k / 10, 0.9), 4) for k in (0, 1, 2, 5, 9, 10)]
    [0.0, 0.2439, 0.4392, 0.7875, 0.8991, 0.9]
    """
    return final + (initial - final) * (1 - progress) ** 3


@dataclass(frozen=True)
class GradualMagnitude:
    """Mask ever more of the smallest weights while training.

    Attributes:
        first_step: t_0, steps of the run before the first update.
        last_step: t_0 + n dt, steps of the run before the last update. None = half-way from `first_step` to the end
            of the run, for loops that know their length.
        updates: n, how many updates follow the first; where there are fewer steps, one each step.
        initial: s_i, fraction of the weights that the first update masks; above 0 for a model that has zeros already.
        scope: what is ranked together: "layer" (the paper), "global", "row", or {parameter: relative fraction to
            remove}.
        recipe: how `choose` trains.

    Raises:
        MethodError: a setting makes no sense.
    """

    first_step: int = 0
    last_step: int | None = None
    updates: int = 100
    initial: float = 0.0
    scope: Scope = "layer"
    recipe: Recipe = RECIPES["cifar"]

    def __post_init__(self) -> None:
        check_scope(self.scope)
        if not _is_count(self.first_step, 0):
            raise MethodError(f"first_step={self.first_step!r}: expected a whole number >= 0.")
        if self.last_step is not None and not _is_count(self.last_step, self.first_step + 1):
            raise MethodError(
                f"last_step={self.last_step!r}: expected None or a whole number above first_step={self.first_step}."
            )
        if not _is_count(self.updates, 1):
            raise MethodError(f"updates={self.updates!r}: expected a whole number >= 1.")
        if isinstance(self.initial, bool) or not 0 <= self.initial < 1:
            raise MethodError(f"initial={self.initial!r}: expected a fraction in [0, 1).")

    def attach(self, problem: WeightProblem) -> AttachedWeights:
        """Return the masks as an attachment.

        Raises:
            BudgetError: the budget is not reachable.
            MethodError: `initial` is above what goes in the end, weights are not finite real numbers, or a layer does
                not fit the pattern.
            NothingToPrune: no weight is free to go.
            UnknownName: `scope` names a parameter that there is not.
        """
        return _Gradual(self, problem)

    def choose(self, problem: WeightProblem) -> WeightDecision:
        """Train a copy by `recipe`, masking as it goes; the decision's model is the trained copy with its zeros.

        Raises:
            BudgetError: the budget is not reachable; told before training.
            MethodError: no data, no task, training that fails, or what `attach` refuses.
            NothingToPrune: no weight is free to go.
            UnknownName: `scope` names a parameter that there is not.
        """
        return train_and_choose(NAME, self, problem)

    def update_due(self, done: int, step_count: int | None) -> int:
        """Return the last update that is due after some steps of a run: 0 = the first, `updates` = the last.

        Args:
            done: steps taken.
            step_count: of the whole run.

        Raises:
            MethodError: neither `last_step` nor the run says when the last update is.

        >>> [GradualMagnitude(first_step=2, updates=4).update_due(done, 18) for done in (1, 2, 3, 4, 9, 10, 17)]
        [-1, 0, 0, 1, 3, 4, 4]
        """
        last = self.last_step
        if last is None:
            if step_count is None:
                raise MethodError(
                    f"{NAME} masks the last weights half-way through a run, and this loop does not say how long it is: "
                    "give Moment(..., step_count=...), or set last_step=."
                )
            last = self.first_step + max((step_count - self.first_step) // 2, 1)
        if done < self.first_step:
            return -1
        return min((done - self.first_step) * self.updates // (last - self.first_step), self.updates)


class _Gradual(AttachedWeights):
    """Gradual pruning at work."""

    def __init__(self, method: GradualMagnitude, problem: WeightProblem) -> None:
        super().__init__(problem)
        self._method = method
        weights = problem.weights()
        scores = {weight.name: weight.tensor.detach().abs() for weight in weights}
        count = choose(problem, weights, scores, method.scope).removed_count
        first = method.initial * sum(weight.tensor.numel() for weight in weights)
        if first > count:
            raise MethodError(
                f"initial={method.initial:g} masks {int(first):,} weights at first, and {count:,} go in the end: it "
                "has to be below the budget."
            )
        self._first_share = first / count if count else 0.0
        self._update = -1
        self._held = HeldZeros(WeightPlan())
        self._hidden: dict[str, Tensor] = {}  # values of masked weights, 0 where a weight stays

    def after_backward(self, moment: Moment) -> None:
        """Clear the gradients of masked weights; make the first update where it is due before the first step."""
        self._catch_up_(moment, moment.step)
        self._held.after_backward(moment)

    def after_step(self, moment: Moment) -> None:
        """Hold masked weights at zero, and choose them anew where an update is due."""
        self._held.after_step(moment)
        self._catch_up_(moment, moment.step + 1)

    def finish(self) -> WeightDecision:
        """Return the masks; the model has its zeros afterwards.

        Raises:
            MethodError: weights are not finite after training.
        """
        if self._update < self._method.updates:
            if self._first_share < 1 and self.problem.budget.remove > 0:
                log.warning(
                    "%s: training ended after update %d of %d; what is left of the budget goes at once, untrained. "
                    "Train longer, or set last_step= to a step of the run.",
                    *(NAME, max(self._update, 0), self._method.updates),
                )
            self._choose_(self._method.updates)
        self._held.plan.apply_(self.model)
        return WeightDecision(self._held.plan)

    def _catch_up_(self, moment: Moment, done: int) -> None:
        due = self._method.update_due(done, moment.step_count)
        if due > self._update:
            self._choose_(due)
            self._held.after_step(moment)

    def _choose_(self, update: int) -> None:
        """Mask the smallest of all weights, those that are masked with the values they had."""
        weights = self.problem.weights()
        full = {w.name: w.tensor.detach() + self._hidden_of(w.name, w.tensor) for w in weights}
        share = removed_at(update / self._method.updates, 1.0, self._first_share)
        scores = {name: own.abs() for name, own in full.items()}
        plan = choose_part(self.problem, weights, scores, scope=self._method.scope, share=share)
        with torch.no_grad():
            for weight in weights:
                kept = plan.kept[weight.name].to(weight.tensor.device)
                weight.tensor.copy_(full[weight.name].masked_fill(~kept, 0.0))
                self._hidden[weight.name] = full[weight.name].masked_fill_(kept, 0.0)
        self._held, self._update = HeldZeros(plan), update

    def _hidden_of(self, name: str, tensor: Tensor) -> Tensor:
        hidden = self._hidden.get(name)
        return torch.zeros_like(tensor) if hidden is None else hidden.to(tensor)

    def state_dict(self) -> dict[str, Any]:
        """Return the last update, the masks and the values that masked weights had."""
        masked = {name: ~kept for name, kept in self._held.plan.kept.items()}
        hidden = {name: self._hidden[name][gone.to(self._hidden[name].device)] for name, gone in masked.items()}
        return {
            "method": NAME,
            "settings": self._settings(),
            "update": self._update,
            "masks": self._held.state_dict(),
            "hidden": hidden,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up what `state_dict` returned.

        Raises:
            MethodError: it is the state of another method, budget or setting.
            PlanError: it is of another model.
        """
        own = own_state(state, NAME)
        check_same_settings(NAME, own["settings"], self._settings())
        plan = plan_in(own["masks"])
        plan.check(self.model)
        parameters = parameters_of(self.model, shared=True)
        hidden = {name: torch.zeros_like(parameters[name]) for name in plan.kept}
        for name, kept in plan.kept.items():
            hidden[name].masked_scatter_(~kept.to(hidden[name].device), own["hidden"][name].to(hidden[name]))
        self._hidden, self._held, self._update = hidden, HeldZeros(plan), own["update"]

    def _settings(self) -> dict[str, str]:
        problem = self.problem
        return {**settings_of(self._method), "budget": str(problem.budget), "pattern": str(problem.pattern)}


def _is_count(value: Any, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least
