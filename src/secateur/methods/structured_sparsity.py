"""Structured sparsity: whole filters are driven to zero by a norm over filters, with auxiliary variables that are.

Source: Lin, Ji, Li, Deng, Li, "Toward Compact ConvNets via Structure-Sparsity Regularized Filter Pruning", IEEE
Transactions on Neural Networks and Learning Systems 2019, arXiv:1901.07827.

Claim: a structured norm is minimised together with the loss by splitting them, training the weights towards auxiliary
filters that are shrunk in closed form, so that filters become exactly zero instead of merely small.

Equation: min L(W) + lambda * sum over k of g(W_k), W_k = filter k with its bias; with F = W and the dual variable Y it
repeats W <- argmin L(W) + rho/2 ||W - F + Y/rho||^2 by steps of SGD, F_k <- prox(W_k + Y_k/rho), Y <- Y + rho (W - F).
With T = W + Y/rho: L2,1 has prox(T_k) = T_k max(||T_k|| - lambda/rho, 0) / ||T_k||; L2,0 has prox(T_k) = T_k where
||T_k||^2 > 2 lambda/rho, else 0.

Cost: one training run, four times the memory of the weights that are pruned (F, Y and what the weights are drawn to),
and two element-wise passes over these weights per step.

Use it when there is time to train and you want filters that are zero before they are cut. lambda has to fit the budget:
the log says how many filters of those that go were not at zero, and how many stay that were.

Where we differ, and why:

- All layers are trained together; the authors' code goes layer by layer, each with `penalised` of its steps under the
  penalty and the rest after its filters were cut, which is how the epochs are divided here, once for all layers.
- The budget says how many filters go, exactly, those with the smallest ||T_k||, whether or not F_k is zero.
- ``unit="mean_norm"`` measures lambda in each layer's own mean filter norm (for L2,0 in its square) at the start, since
  norms differ by layer and one number cannot serve all; ``unit="absolute"`` is the paper. Behind a batch normalisation
  the size of filters says little either way.
- F starts as W; the authors' code starts it as ones, and replaces it before it is used.
- The treatment of L2,0 is ours, derived from the same splitting.
- When the filters go, what they put out on average moves into the layers that read them before the rest trains on.
- Filters of several weights that can only go together are one filter, and residual streams stay whole unless
  ``residual`` says otherwise.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Mapping
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
from ._weight_pull import WeightPull, filters_of, take_filters_out_

log = logging.getLogger(__name__)
NAME = "structured_sparsity"
CHOICES = {"norm": ("l21", "l20"), "unit": ("mean_norm", "absolute")}
PAPER = Recipe(
    epochs=85,
    lr=0.01,
    weight_decay=5e-4,
    schedule="constant",
    batch_size=256,
    source="Lin et al. 2019, the authors' code for LeNet: 20,000 steps at a fixed rate; momentum and decay are ours",
)


def block_soft_threshold(rows: Tensor, threshold: float) -> Tensor:
    """Shorten every row by `threshold`; rows that are not longer become zero: the proximal step of the L2,1 norm.

    Source: Lin et al. 2019, the F-step for L2,1.

    Args:
        rows: (filters, weights).
        threshold: lambda / rho, >= 0.

    Returns:
        (filters, weights).

    >>> block_soft_threshold(torch.tensor([[3.0, 4.0], [0.3, 0.4]]), 2.5).tolist()
    [[1.5, 2.0], [0.0, 0.0]]
    """
    norms: Tensor = torch.linalg.vector_norm(rows, dim=1, keepdim=True)
    return rows * ((norms - threshold).clamp(min=0) / norms.clamp(min=torch.finfo(rows.dtype).tiny))


def block_hard_threshold(rows: Tensor, threshold: float) -> Tensor:
    """Zero every row that is not longer than `threshold`, and leave the others: the proximal step of the L2,0 norm.

    Args:
        rows: (filters, weights).
        threshold: sqrt(2 lambda / rho), >= 0.

    Returns:
        (filters, weights).

    >>> block_hard_threshold(torch.tensor([[3.0, 4.0], [0.3, 0.4]]), 2.5).tolist()
    [[3.0, 4.0], [0.0, 0.0]]
    """
    norms: Tensor = torch.linalg.vector_norm(rows, dim=1, keepdim=True)
    return rows * (norms > threshold)


@dataclass(frozen=True)
class StructuredSparsity:
    """Train whole filters to zero by an augmented Lagrangian, remove them, and train what is left.

    Attributes:
        norm: "l21" shrinks all filters, "l20" zeroes small ones and leaves the others alone.
        penalty: lambda, weight of the norm, > 0; the paper's for LeNet.
        rho: how hard the weights are drawn to the auxiliary ones, > 0.
        update_steps: steps of training between two updates of F and Y, >= 1.
        unit: what lambda is measured in: "mean_norm" of each layer's filters at the start, or "absolute" (the paper).
        penalised: fraction of the epochs with the penalty, in (0, 1]; in the rest the filters that go are held at zero.
            The paper's for LeNet: 8,000 of 20,000 steps.
        allocation: "uniform", "global" (by ||T|| over the threshold), "sensitivity" or {module path: relative
            fraction}.
        residual: "skip" leaves every residual stream whole, "projection" and "prune" as in `L1Filter`.
        recipe: how `decide` trains.

    Raises:
        MethodError: a setting is out of range.
    """

    norm: str = "l21"
    penalty: float = 0.4
    rho: float = 1.0
    update_steps: int = 200
    unit: str = "mean_norm"
    penalised: float = 0.4
    allocation: Allocation = "uniform"
    residual: str = "skip"
    recipe: Recipe = PAPER

    def __post_init__(self) -> None:
        ranges = {
            **{name: (getattr(self, name) in own, f"one of {', '.join(own)}") for name, own in CHOICES.items()},
            "penalty": (0 < self.penalty < math.inf, "a number > 0"),
            "rho": (0 < self.rho < math.inf, "a number > 0"),
            "update_steps": (self.update_steps >= 1, "a whole number >= 1"),
            "penalised": (0 < self.penalised <= 1, "a fraction in (0, 1]"),
        }
        check_settings(self, ranges)

    def attach(self, problem: Problem) -> Attached:
        """Return what trains filters of `problem.model` to zero.

        Raises:
            BudgetError: the budget is not reachable.
            MethodError: weights are not finite real numbers, or filters that go together differ in size.
            NothingToPrune: no group is free to go.
        """
        return _Aulm(self, problem)

    def decide(self, problem: Problem) -> Decision:
        """Train a copy by `recipe`; the scores are ||T|| over the threshold: F is zero at 1 and below.

        Raises:
            BudgetError: the budget is not reachable.
            MethodError: no data, no task, training that fails, or weights that are not finite real numbers.
            NothingToPrune: no group is free to go.
        """
        return train_and_decide(NAME, self, problem)

    def threshold(self, mean_norm: float) -> float:
        """Return the length up to which the proximal step makes a filter zero."""
        unit = 1.0 if self.unit == "absolute" else mean_norm
        if self.norm == "l21":
            return self.penalty * unit / self.rho
        return math.sqrt(2 * self.penalty / self.rho) * unit

    def shrunk(self, rows: Tensor, threshold: float) -> Tensor:
        """Take the proximal step."""
        proximal = block_soft_threshold if self.norm == "l21" else block_hard_threshold
        return proximal(rows, threshold)

    def penalised_epochs(self, epoch_count: int) -> int:
        """Return how many epochs of a run have the penalty, 1 or more."""
        return max(1, round(self.penalised * epoch_count))


@dataclass
class _Split:
    """The auxiliary variables of one group.

    Attributes:
        auxiliary: F, (filters, weights).
        dual: Y, likewise.
        threshold: length up to which F is zero.
    """

    auxiliary: Tensor
    dual: Tensor
    threshold: float

    def to(self, device: torch.device) -> None:
        self.auxiliary, self.dual = self.auxiliary.to(device), self.dual.to(device)


class _Aulm(Attached):
    """The alternation at work; the same on all processes, since the weights are and reduced gradients are changed."""

    def __init__(self, method: StructuredSparsity, problem: Problem) -> None:
        super().__init__(problem)
        self._method = method
        names = eligible(problem, method.residual)
        problem.check_weights(names)
        self._filters = {name: filters_of(problem.model, problem.graph, name, with_biases=True) for name in names}
        self._kept = self._counts({name: self._norms(rows) for name, rows in self._rows()})
        self._splits: dict[str, _Split] = {}  # made with the first step: weights may be loaded after attaching
        self._step_count = 0
        self._settled: tuple[Plan, dict[str, Tensor]] | None = None
        self._pull: WeightPull | None = None
        self._hold: HeldAtZero | None = None

    def after_backward(self, moment: Moment) -> None:
        """Add rho (W - F) + Y to the gradients."""
        if self._settled is not None:
            return
        if self._pull is None:
            self._start(moment)
        assert self._pull is not None
        self._pull.add_to_gradients_(self.model)

    def after_step(self, moment: Moment) -> None:
        """Update F and Y when it is time, or hold what is gone at zero."""
        if self._settled is not None:
            self._held().apply_()
            return
        self._step_count += 1
        if self._step_count % self._method.update_steps == 0:
            self._update()

    def after_epoch(self, moment: Moment) -> None:
        """Remove filters when the epochs with the penalty are over."""
        if self._settled is None and moment.epoch + 1 >= self._method.penalised_epochs(moment.epoch_count):
            self._settle()

    def standing(self) -> Standing:
        """Return ||T|| over the threshold; out are filters whose F is zero, then those that were removed."""
        if self._settled is not None:
            plan, last = self._settled
            return Standing(last, self._kept, {name: len(plan.removed(name)) for name in last})
        scores = {name: self._ranked(name, rows) for name, rows in self._rows()}
        kept = self._counts(scores) if self._method.allocation == "global" else self._kept
        return Standing(scores, kept, {name: int((own <= 1).sum()) for name, own in scores.items()})

    def finish(self) -> Decision:
        """Return the decision; where training ended before filters were removed, that is done now."""
        if self._settled is None:
            self._settle()
        assert self._settled is not None
        plan, scores = self._settled
        return Decision(plan, scores=dict(scores))

    def state_dict(self) -> dict[str, Any]:
        """Return F, Y and thresholds, the steps so far, and what was removed."""
        settled = None
        if self._settled is not None:
            plan, scores = self._settled
            settled = {"removed": {name: list(plan.removed(name)) for name in plan}, "scores": scores}
        splits = {name: vars(split).copy() for name, split in self._splits.items()}
        return {
            "method": NAME,
            "kept": dict(self._kept),
            "steps": self._step_count,
            "splits": splits,
            "settled": settled,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up what `state_dict` returned.

        Raises:
            MethodError: it is the state of another method.
        """
        own = own_state(state, NAME)
        self._kept, self._step_count = dict(own["kept"]), own["steps"]
        self._splits = {name: _Split(**split) for name, split in own["splits"].items()}
        self._settled, self._pull, self._hold = None, None, None
        if own["settled"] is not None:
            plan = Plan.from_removed(own["settled"]["removed"], self.problem.graph.widths)
            self._settled = plan, own["settled"]["scores"]

    def _start(self, moment: Moment) -> None:
        check_optimizer(NAME, moment, {name for own in self._filters.values() for name in own.places})
        self._split()
        self._pull = self._made_pull()

    def _split(self) -> None:
        """Make F = W and Y = 0, or bring those of a checkpoint to where the weights are."""
        for name, rows in self._rows():
            if name not in self._splits:
                threshold = self._method.threshold(float(self._norms(rows).mean()))
                self._splits[name] = _Split(rows.clone(), torch.zeros_like(rows), threshold)
            self._splits[name].to(rows.device)

    def _update(self) -> None:
        self._split()
        rho = self._method.rho
        for name, rows in self._rows():
            split = self._splits[name]
            drawn = rows + split.dual / rho
            split.auxiliary = self._method.shrunk(drawn, split.threshold)
            split.dual = rho * (drawn - split.auxiliary)  # Y + rho (W - F)
        self._pull = self._made_pull()

    def _settle(self) -> None:
        """Choose by the last T, and take what goes out of the model."""
        self._split()
        scores = {}
        for name, rows in self._rows():
            scores[name] = self._ranked(name, rows)
        if self._method.allocation == "global":
            self._kept = self._counts(scores)
        plan = plan_from_counts(self.problem, self._kept, scores)
        self._tell(plan, scores)
        take_filters_out_(self.model, self.problem.graph, plan, self._filters.values())
        self._settled, self._pull = (plan, scores), None
        self._splits = {}

    def _ranked(self, name: str, rows: Tensor) -> Tensor:
        """Return (filters,) ||T|| over the threshold, as things stand."""
        split = self._splits.get(name)
        if split is None:
            return self._norms(rows) / (self._method.threshold(float(self._norms(rows).mean())) or 1.0)
        drawn = rows + split.dual.to(rows.device) / self._method.rho
        return self._norms(drawn) / (split.threshold or 1.0)  # 0 where all filters started at zero

    def _made_pull(self) -> WeightPull:
        """Lay out the gradient of the quadratic terms, rho W - (rho F - Y)."""
        rho = self._method.rho
        factors = {name: torch.tensor(rho, dtype=torch.float64) for name in self._filters}
        levels = {name: rho * split.auxiliary - split.dual for name, split in self._splits.items()}
        return WeightPull.of(self.model, self._filters, factors, levels)

    def _tell(self, plan: Plan, scores: Mapping[str, Tensor]) -> None:
        if not plan.removed_count:
            return
        zero = {name: own <= 1 for name, own in scores.items()}
        early = sum(int((~zero[name][list(plan.removed(name))]).sum()) for name in scores)
        spared = sum(int(zero[name].sum()) for name in scores) - (plan.removed_count - early)
        if early:
            log.warning(
                "%d of the %d filters that go are not at zero: raise penalty=%g, or train longer.",
                *(early, plan.removed_count, self._method.penalty),
            )
        if spared:
            log.warning("%d filters at zero stay, since the budget says so: lower the penalty or ask for more.", spared)
        if emptied := [name for name in scores if bool(zero[name].all())]:
            log.warning("every filter of %s is at zero: lower the penalty.", ", ".join(emptied))

    def _rows(self) -> Iterator[tuple[str, Tensor]]:
        for name, filters in self._filters.items():
            yield name, filters.read(self.model).detach()

    def _held(self) -> HeldAtZero:
        if self._hold is None:
            assert self._settled is not None
            self._hold = HeldAtZero(self.model, self.problem.graph, self._settled[0])
        return self._hold

    def _counts(self, scores: Mapping[str, Tensor]) -> dict[str, int]:
        return counts_for(self.problem, list(scores), self._method.allocation, scores)

    @staticmethod
    def _norms(rows: Tensor) -> Tensor:
        norms: Tensor = torch.linalg.vector_norm(rows.double(), dim=1)
        return norms.cpu()
