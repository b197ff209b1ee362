"""Sensitivity analysis: cut one group at a time, see how much worse the model gets, and share the budget out by that.

Source: Li, Kadav, Durdanovic, Samet, Graf, "Pruning Filters for Efficient ConvNets", ICLR 2017, arXiv:1608.08710,
section 3.2: the smallest filters of each layer are pruned on their own and the network is evaluated on the validation
set; layers whose curve falls early lose little or nothing.

Claim: layers differ much in how much they can lose, and cutting each on its own shows it.

Equation: D_g(r) = A - A_g(r), where A is the metric of the whole network and A_g(r) that with the fraction r of group g
gone; group g loses r_g(t) = max { r : D_g(r') <= t for all r' <= r }, with one tolerance t for all groups.

Cost: groups * fractions evaluations on the data, each of a network in which one group is cut; with `retrain` or
`recalibrate` that many short trainings or passes over training batches as well. Memory of two models.

Use it when labelled data were held out from training, as a validation split: on training data every layer looks robust,
and on test data the choice of widths would leak into the figure that is reported in the end. It says how much goes of
each group; which channels go is up to `scores`.

Where we differ, and why:

- The paper reads one fraction per stage off the curves by hand. Here it follows from one number: the largest fraction
  whose drop, and that of every smaller one, stays within a tolerance (raw curves are noisy); or, for a budget, the
  smallest tolerance common to all groups that meets it.
- The paper evaluates without retraining. Batch-norm statistics can be re-estimated, or the cut layer and its
  consumers retrained for a moment, before each evaluation: a cut that a little training repairs is then no loss.
- A group that could not be cut is listed as such and never counts as robust.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from torch import nn

from ..budget import Budget, Limits
from ..errors import MethodError
from ..graph.groups import ChannelGraph, as_args, trace
from ..train.schedules import Recipe
from ..train.task import Task
from ._problem import Decision, Method, Problem
from ._scores import counts_for, plan_from_counts
from ._sensitivity_curves import GroupCurve as GroupCurve
from ._sensitivity_curves import SensitivityCurves as SensitivityCurves
from ._sensitivity_curves import check_tolerance
from ._sensitivity_measure import Treatment
from ._sensitivity_run import TENTHS, Analysis, named_groups


def sensitivity(
    model: nn.Module,
    args: Any,
    *,
    data: Iterable[Any],
    task: Task,
    kwargs: Mapping[str, Any] | None = None,
    removes: Sequence[float] = TENTHS,
    scores: str | Method = "l1_filter",
    groups: Sequence[str] | None = None,
    retrain: Recipe | None = None,
    retrain_scope: str = "local",
    recalibrate: int | None = None,
    train_data: Iterable[Any] | None = None,
    limits: Limits | None = None,
    graph: ChannelGraph | None = None,
    seed: int = 0,
    progress: bool | None = None,
) -> SensitivityCurves:
    """Return how metric and loss change as the lowest-scored channels of one group after another are taken away.

    Args:
        model: a trained model; nothing of it changes.
        args: example input: a tensor, or a tuple of positional inputs.
        data: labelled batches of a validation split held out from training, never the test set; re-iterable.
        task: how to read a batch, the loss and the metric.
        kwargs: keyword inputs of the example.
        removes: see `Sensitivity`, as for the next five that it has too.
        scores: see `Sensitivity`.
        groups: names of groups, or paths of modules that make channels; None = all.
        retrain: see `Sensitivity`.
        retrain_scope: see `Sensitivity`.
        recalibrate: see `Sensitivity`.
        train_data: see `Sensitivity`.
        limits: groups that `protect` names are left out, and every group keeps `min_keep` channels.
        graph: the model's graph, if you have it.
        seed: for scores that are drawn.
        progress: True or False to force the progress bar; None = where there is a terminal.

    Raises:
        MethodError: a setting makes no sense, or the scoring method gives no scores.
        NothingToPrune: no group can lose a channel at any of the fractions.
        UnknownName: no such group, module or scoring method.
        TraceError: the model rejects the example input.
        TrainingError: the data give no sample, or a retraining failed.

    >>> import torch
    >>> from secateur.train import ClassificationTask
    >>> net = nn.Sequential(nn.Linear(2, 4, bias=False), nn.ReLU(), nn.Linear(4, 2, bias=False))
    >>> for layer, weight in ((0, [[3., 0], [0, 2], [0, 0], [0, 0]]), (2, [[1., 0, 0, 0], [0, 1, 0, 0]])):
    ...     net[layer].weight.data = torch.tensor(weight)
    >>> held_out = [(torch.eye(2), torch.tensor([0, 1]))]
    >>> curves = sensitivity(net, torch.eye(2), data=held_out, task=ClassificationTask(), removes=(0, 0.5, 0.75))
    >>> curves.groups["0"].metric, curves.fractions_within(0.1)
    ((1.0, 1.0, 0.5), {'0': 0.5})
    """
    method = Sensitivity(
        removes=tuple(removes),
        scores=scores,
        retrain=retrain,
        retrain_scope=retrain_scope,
        recalibrate=recalibrate,
        train_data=train_data,
    )
    example, named = as_args(args), dict(kwargs or {})
    graph = graph if graph is not None else trace(model, example, named)
    problem = Problem(model, graph, Budget(remove=0.0), limits or Limits(), example, named, data, task, seed)
    return method.curves(problem, groups=groups, progress=progress)


@dataclass(frozen=True)
class Sensitivity:
    """Share a budget out so that every group costs the same, as measured one group at a time.

    `Problem.data` must be a validation split held out from training. Without a tolerance the budget is met exactly, at
    the smallest drop common to all groups. With one, every group loses what its own curve allows and nothing more, so
    that usually less goes than the budget asks; the budget is then an upper limit, met exactly where the tolerance
    allows more. Groups lose more together than each alone: the model that results has to be measured.

    Attributes:
        tolerance: allowed drop of the metric of each group alone, in its units (0.01 = one point of accuracy); None =
            whatever the budget needs.
        removes: fractions to try of each group, each in [0, 1); 0 is always among them. The paper has steps of 0.1.
        scores: which channels of a group go first: the name of a method that scores, with its paper's settings, or
            such a method. Groups it does not score (residual streams, for most) are not looked at.
        retrain: train each cut model so before it is evaluated; None = not (the paper).
        retrain_scope: "local" trains the cut layer, its norms and its consumers, "all" the whole network.
        recalibrate: re-estimate batch-norm statistics on so many batches of `train_data`; None = not.
        train_data: training batches for these two; re-iterable. With either, the base that drops are measured from is
            the intact model after the same (with `retrain`, of the whole network), so that what more training gives by
            itself does not pass for robustness.

    Raises:
        MethodError: a setting makes no sense, or would be ignored.
    """

    tolerance: float | None = None
    removes: tuple[float, ...] = TENTHS
    scores: str | Method = "l1_filter"
    retrain: Recipe | None = None
    retrain_scope: str = "local"
    recalibrate: int | None = None
    train_data: Iterable[Any] | None = field(default=None, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "removes", _checked_fractions(self.removes))
        if self.tolerance is not None:
            check_tolerance(self.tolerance)
        if self.retrain_scope not in ("local", "all"):
            raise MethodError(f"retrain_scope={self.retrain_scope!r}: expected 'local' or 'all'.")
        if self.recalibrate is not None and (isinstance(self.recalibrate, bool) or self.recalibrate < 1):
            raise MethodError(f"recalibrate={self.recalibrate!r}: expected a number of batches, 1 or more, or None.")
        is_needed = self.retrain is not None or self.recalibrate is not None
        if is_needed and self.train_data is None:
            raise MethodError(
                "retrain= and recalibrate= need train_data=: the validation split must not be trained on."
            )
        if self.train_data is not None and not is_needed:
            raise MethodError("train_data= is only read with retrain= or recalibrate=: give one of these, or leave it.")
        if isinstance(self.train_data, Iterator):
            raise MethodError("train_data= can be read once only; pass a list or a loader that starts anew each time.")

    def decide(self, problem: Problem) -> Decision:
        """Measure every group on the problem's data, and choose.

        Raises:
            BudgetError: the budget is not reachable (without a tolerance).
            MethodError: no data or no task, or the scoring method gives no scores.
            NothingToPrune: no group can lose a channel at any of the fractions.
        """
        run = self._analysis(problem)
        if problem.budget.remove == 0:
            return Decision(plan_from_counts(problem, {}, run.scores), scores=run.scores)
        curves = run.curves(list(run.scores))
        ranks, scores = curves.order(), {name: run.scores[name] for name in curves.groups}
        if self.tolerance is not None:
            kept = _kept_within(curves, self.tolerance, problem.limits)
            if not _is_beyond(problem, kept):
                return Decision(plan_from_counts(problem, kept, scores), scores=scores)
        kept = counts_for(problem, list(ranks), "global", ranks)
        return Decision(plan_from_counts(problem, kept, scores), scores=scores)

    def curves(
        self, problem: Problem, *, groups: Sequence[str] | None = None, progress: bool | None = None
    ) -> SensitivityCurves:
        """Return the curves that `decide` decides by; see `sensitivity`. The budget and the tolerance are not read."""
        run = self._analysis(problem)
        return run.curves(named_groups(run.graph, groups), progress)

    def _analysis(self, problem: Problem) -> Analysis:
        treatment = Treatment(self.retrain, self.retrain_scope, self.recalibrate, self.train_data)
        return Analysis.of(problem, self.scores, self.removes, treatment)


def _checked_fractions(removes: Sequence[float]) -> tuple[float, ...]:
    for fraction in removes:
        if isinstance(fraction, bool) or not isinstance(fraction, (int, float)) or not 0 <= fraction < 1:
            raise MethodError(f"removes holds {fraction!r}: expected fractions in [0, 1), e.g. (0.25, 0.5, 0.75).")
    if not any(removes):
        raise MethodError("removes holds no fraction above 0: nothing would be tried.")
    return tuple(sorted({0.0, *map(float, removes)}))


def _kept_within(curves: SensitivityCurves, tolerance: float, limits: Limits) -> dict[str, int]:
    """Channels that stay of each group; rounded up to the step, since down would go beyond the tolerance."""
    kept = {}
    for name, fraction in curves.fractions_within(tolerance).items():
        width = curves.groups[name].width
        stay = width - round(fraction * width)
        kept[name] = min(width, -(-stay // limits.round_to) * limits.round_to)
    return kept


def _is_beyond(problem: Problem, kept: Mapping[str, int]) -> bool:
    """Whether keeping these removes more than the budget asks."""
    costs, budget = problem.graph.costs, problem.budget
    counts = costs.widths.copy()
    for name, count in kept.items():
        counts[list(problem.graph.groups).index(name)] = count
    whole = costs.value(budget.of, costs.widths)
    return bool(costs.value(budget.of, np.asarray(counts)) < (1 - budget.remove) * whole)
