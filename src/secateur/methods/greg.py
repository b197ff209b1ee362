"""Growing regularisation: an L2 penalty on the filters that will go grows while training, until they are nothing.

Source: Wang, Qin, Zhang, Fu, "Neural Pruning via Growing Regularization", ICLR 2021, arXiv:2012.09243.

Claim: a penalty that grows slowly lets a network move what unimportant filters do to the others before they are cut;
and when it grows on all filters alike, their sizes part by the curvature of the loss, so that small ones can be told.

Equation: every K_u steps lambda <- lambda + delta for the filters that will go, whose gradients become
dL/dw + lambda w, up to lambda = tau. Variant 1 chooses the filters with the smallest ||W[j]||_1 at the start. Variant 2
lets lambda grow on all filters first, by delta' up to tau', chooses then, and gives the others a small negative one.

Cost: one long training run, three times the memory of the weights that are pruned, one element-wise pass over these
weights per step, and a few more every `update_steps` steps.

Use it when a long training run is affordable and the network should hardly notice the cut. In a short run raise
`growth`, or the penalty is still small when the filters go; the log says so.

Where we differ, and why:

- The budget says how many filters go, exactly, instead of a fraction per layer chosen by hand.
- The paper's runs end with the cut, and fine-tuning is another run. Here the epochs that are left after the cut train
  what stays, so that one recipe says it all; further fine-tuning is up to you.
- Biases and normalisations have no penalty, as in the authors' code. What filters still put out when they go, on
  average, moves into the layers that read them.
- Filters of several weights that can only go together are one filter, and residual streams stay whole unless
  ``residual`` says otherwise; the paper prunes the inner layers of residual blocks.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..plan import Plan
from ..train.attachment import Moment
from ..train.schedules import Recipe
from ._attached import Attached, train_and_decide
from ._history import Standing
from ._problem import Decision, Problem
from ._scores import Allocation, counts_for, eligible, plan_from_counts
from ._settings import check_settings
from ._taking_part import check_optimizer, own_state
from ._training import HeldAtZero
from ._weight_pull import WeightPull, filters_of, laid_out, take_filters_out_

log = logging.getLogger(__name__)
NAME = "greg"
PAPER = Recipe(
    epochs=310,
    lr=0.001,
    weight_decay=5e-4,
    schedule="constant",
    batch_size=128,
    source="Wang et al. 2021, CIFAR-10: its learning rate, and epochs for the steps that the penalty takes",
)


def grown_penalty(updates: int, growth: float, ceiling: float) -> float:
    """Return lambda after this many updates, at most the ceiling.

    Source: Wang et al. 2021, section 3.2.

    >>> grown_penalty(3, growth=0.25, ceiling=1.0), grown_penalty(9, growth=0.25, ceiling=1.0)
    (0.75, 1.0)
    """
    return min(updates * growth, ceiling)


@dataclass(frozen=True)
class Greg:
    """Choose filters, let an L2 penalty on them grow while training, and remove them when they are small.

    Attributes:
        variant: 1 chooses by L1 norms at the start, 2 after a small penalty grew on all filters alike.
        growth: delta, what is added to lambda at each update, > 0.
        ceiling: tau, the largest lambda, > 0.
        update_steps: K_u, steps of training between two updates, >= 1; the paper's for CIFAR, and 5 for ImageNet.
        choice_growth: delta' of variant 2, > 0.
        choice_ceiling: tau' of variant 2, > 0: the lambda on all filters at which is chosen.
        kept_penalty: lambda of the filters that stay once variant 2 has chosen.
        small_enough: lambda of a group stops growing when its kept weights are this many times larger on average than
            those that go, > 1.
        settle_steps: steps of training after the last lambda stopped growing and before filters go, >= 0; the paper's
            for CIFAR, and 40,000 for ImageNet.
        allocation: "uniform", "global" (by L1 norm per weight), "sensitivity" or {module path: relative fraction}.
        residual: "skip" leaves every residual stream whole (the paper), "projection" and "prune" as in `L1Filter`.
        recipe: how `decide` trains.

    Raises:
        MethodError: a setting is out of range.
    """

    variant: int = 1
    growth: float = 1e-4
    ceiling: float = 1.0
    update_steps: int = 10
    choice_growth: float = 1e-5
    choice_ceiling: float = 1e-2
    kept_penalty: float = -1e-4
    small_enough: float = 1000.0
    settle_steps: int = 10_000
    allocation: Allocation = "uniform"
    residual: str = "skip"
    recipe: Recipe = PAPER

    def __post_init__(self) -> None:
        growths = ("growth", "ceiling", "choice_growth", "choice_ceiling")
        ranges = {
            "variant": (self.variant in (1, 2), "1 or 2"),
            **{name: (0 < getattr(self, name) < math.inf, "a number > 0") for name in growths},
            "update_steps": (self.update_steps >= 1, "a whole number >= 1"),
            "kept_penalty": (math.isfinite(self.kept_penalty), "a finite number"),
            "small_enough": (self.small_enough > 1, "a number > 1"),
            "settle_steps": (self.settle_steps >= 0, "a whole number >= 0"),
        }
        check_settings(self, ranges)

    def attach(self, problem: Problem) -> Attached:
        """Return what lets the penalty grow on filters of `problem.model`.

        Raises:
            BudgetError: the budget is not reachable.
            MethodError: weights are not finite real numbers, or filters that go together differ in size.
            NothingToPrune: no group is free to go.
        """
        return _Growing(self, problem)

    def decide(self, problem: Problem) -> Decision:
        """Train a copy by `recipe`; the scores are the L1 norms per weight at the time of the choice.

        Raises:
            BudgetError: the budget is not reachable.
            MethodError: no data, no task, training that fails, or weights that are not finite real numbers.
            NothingToPrune: no group is free to go.
        """
        return train_and_decide(NAME, self, problem)


@dataclass
class _State:
    """All that is remembered between calls.

    Attributes:
        kept: group -> how many filters stay.
        scores: group -> (filters,) at the time of the choice; empty before.
        step_count: steps so far.
        choice_updates: updates of lambda on all filters.
        updates: group -> updates of lambda on the filters that go.
        growing: groups whose lambda still grows.
        settle_count: steps since the last of them stopped.
        is_cut: whether the filters are gone.
    """

    kept: dict[str, int]
    scores: dict[str, Tensor]
    step_count: int
    choice_updates: int
    updates: dict[str, int]
    growing: list[str]
    settle_count: int
    is_cut: bool


class _Growing(Attached):
    """The penalty at work; the same on all processes, since the weights are and reduced gradients are changed."""

    def __init__(self, method: Greg, problem: Problem) -> None:
        super().__init__(problem)
        self._method = method
        names = eligible(problem, method.residual)
        problem.check_weights(names)
        self._filters = {name: filters_of(problem.model, problem.graph, name) for name in names}
        kept = self._counts(self._magnitudes())
        self._state = _State(kept, {}, 0, 0, dict.fromkeys(names, 0), list(names), 0, is_cut=False)
        self._pull: WeightPull | None = None
        self._masks: dict[str, tuple[dict[str, Tensor], dict[str, Tensor]]] | None = None
        self._hold: HeldAtZero | None = None

    def after_backward(self, moment: Moment) -> None:
        """Add lambda w to the gradients."""
        if self._state.is_cut:
            return
        if self._pull is None:
            check_optimizer(NAME, moment, {name for own in self._filters.values() for name in own.places})
            if self._method.variant == 1 and not self._state.scores:
                self._choose()
            self._lay_out()
        assert self._pull is not None
        self._pull.add_to_gradients_(self.model)

    def after_step(self, moment: Moment) -> None:
        """Let lambda grow when it is time, cut when it has grown, and hold what is gone at zero."""
        state = self._state
        if state.is_cut:
            self._held().apply_()
            return
        state.step_count += 1
        if not state.growing:
            state.settle_count += 1
        elif state.step_count % self._method.update_steps == 0:
            self._grow()
        if not state.growing and state.settle_count >= self._method.settle_steps:
            self._cut()

    def standing(self) -> Standing:
        """Return how large filters are now; out is what was removed."""
        state, sizes = self._state, self._magnitudes()
        kept = state.kept
        if self._method.allocation == "global" and not state.scores:
            kept = self._counts(sizes)
        plan = self._plan() if state.is_cut else None
        out = {name: 0 if plan is None else len(plan.removed(name)) for name in sizes}
        return Standing(sizes, kept, out)

    def finish(self) -> Decision:
        """Return the decision; where training ended before the filters were cut, that is done now."""
        if not self._state.is_cut:
            if not self._state.scores:
                self._choose()
            self._tell()
            self._cut()
        return Decision(self._plan(), scores=dict(self._state.scores))

    def state_dict(self) -> dict[str, Any]:
        """Return what was chosen, how far the penalty has grown, and whether the filters are gone."""
        return {"method": NAME, **{name: _copied(value) for name, value in vars(self._state).items()}}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up what `state_dict` returned.

        Raises:
            MethodError: it is the state of another method.
        """
        own = own_state(state, NAME)
        self._state = _State(**{name: _copied(own[name]) for name in vars(self._state)})
        self._pull, self._masks, self._hold = None, None, None

    def _grow(self) -> None:
        state, method = self._state, self._method
        if not state.scores:
            state.choice_updates += 1
            if (
                grown_penalty(state.choice_updates, method.choice_growth, method.choice_ceiling)
                == method.choice_ceiling
            ):
                self._choose()
        else:
            for name in state.growing:
                state.updates[name] += 1
            small = self._small()
            state.growing = [n for n in state.growing if self._penalty(n) < method.ceiling and n not in small]
        self._lay_out()

    def _penalty(self, name: str) -> float:
        """Return lambda of the filters that go, or of all as long as none is chosen."""
        state, method = self._state, self._method
        chosen_at = grown_penalty(state.choice_updates, method.choice_growth, method.choice_ceiling)
        return min(chosen_at + state.updates[name] * method.growth, max(method.ceiling, chosen_at))

    def _choose(self) -> None:
        """Choose what goes by how large filters are now."""
        scores = self._magnitudes()
        if self._method.allocation == "global":
            self._state.kept = self._counts(scores)
        self._state.scores, self._masks = scores, None
        self._state.growing = [name for name in scores if self._plan().removed(name)]

    def _plan(self) -> Plan:
        return plan_from_counts(self.problem, self._state.kept, self._state.scores)

    def _lay_out(self) -> None:
        """Make the factors of the gradients of what lambda is now."""
        self._pull = WeightPull({}, {})
        stays = self._method.kept_penalty if self._method.variant == 2 and self._state.scores else 0.0
        for name, (goes, rest) in self._chosen().items():
            own = self._penalty(name)
            for weight, mask in goes.items():
                factor = mask * own if not stays else mask * own + rest[weight] * stays
                into = self._pull.factors
                into[weight] = into[weight] + factor if weight in into else factor

    def _chosen(self) -> dict[str, tuple[dict[str, Tensor], dict[str, Tensor]]]:
        """Return group -> two masks over weights: 1 = of a filter that goes, or of any before the choice; the rest."""
        if self._masks is not None:
            return self._masks
        plan, masks = self._plan() if self._state.scores else None, {}
        for name, filters in self._filters.items():
            rows = torch.ones(self.problem.graph.groups[name].width, filters.size)
            if plan is not None:
                rows[list(plan.kept[name])] = 0.0
            masks[name] = laid_out(self.model, filters, rows), laid_out(self.model, filters, 1 - rows)
        self._masks = masks
        return masks

    def _small(self) -> set[str]:
        """Return the groups whose filters that go are small enough beside those that stay."""
        return {name for name, times in self._contrasts().items() if times > self._method.small_enough}

    def _contrasts(self) -> dict[str, float]:
        """Return group -> how many times larger kept weights are on average than those that go."""
        found = []
        for goes, rest in self._chosen().values():
            means = []
            for masks in (rest, goes):
                sizes = [(self.model.get_parameter(name).detach().abs() * mask).sum() for name, mask in masks.items()]
                counts = [mask.sum() for mask in masks.values()]
                means.append(torch.stack(sizes).float().sum() / torch.stack(counts).float().sum())
            found.append(means[0] / means[1])
        return dict(zip(self._filters, torch.stack(found).tolist(), strict=True)) if found else {}

    def _cut(self) -> None:
        plan = self._plan()
        take_filters_out_(self.model, self.problem.graph, plan, self._filters.values())
        self._state.is_cut, self._pull, self._masks = True, None, None

    def _tell(self) -> None:
        state = self._state
        if not state.growing or not state.step_count:
            return
        contrasts = self._contrasts()
        name = min(state.growing, key=lambda name: contrasts[name])
        log.warning(
            "training ended with a penalty of %g in place of %g on %s, whose kept weights are %.3g times those that "
            "go: train longer, or raise growth=%g.",
            *(self._penalty(name), self._method.ceiling, name, contrasts[name], self._method.growth),
        )

    def _magnitudes(self) -> dict[str, Tensor]:
        """Return group -> (filters,) mean absolute weight."""
        return {n: own.read(self.model).detach().double().abs().mean(dim=1).cpu() for n, own in self._filters.items()}

    def _held(self) -> HeldAtZero:
        if self._hold is None:
            self._hold = HeldAtZero(self.model, self.problem.graph, self._plan())
        return self._hold

    def _counts(self, scores: Mapping[str, Tensor]) -> dict[str, int]:
        return counts_for(self.problem, list(scores), self._method.allocation, scores)


def _copied(value: Any) -> Any:
    return value.copy() if isinstance(value, (dict, list)) else value
