"""Prune a little, retrain, and again: for layers that do not bear losing everything at once.

Source: Li et al. 2017, "Pruning Filters for Efficient ConvNets", arXiv:1608.08710, section 3.4 (prune and retrain
iteratively, layer by layer or filter by filter).

Where we differ: any method may choose, not only the L1 norm; it chooses anew at every step, from the retrained weights.
Each step's budget is a fraction of the ORIGINAL model, so the end is the budget that was asked, met as exactly as by a
single cut.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from .budget import Budget, Limits
from .catalogue import find
from .errors import MethodError
from .graph.branches import tensors_inside
from .graph.groups import ChannelGraph, ChannelGroup, as_args, trace
from .methods._problem import Decision, Method, Problem, prepared
from .methods._scores import counts_for
from .plan import Plan
from .prune import PruneResult, note_origin_, prune
from .recovery.finetune import finetune
from .surgery.record import RECORD, record_of
from .surgery.shrink import shrink
from .surgery.verify import Verification
from .train.evaluation import evaluate
from .train.loop import TrainResult
from .train.schedules import RECIPES, Recipe
from .train.task import Task

log = logging.getLogger(__name__)
SCHEDULES = ("together", "layer_by_layer")
MARGIN = 1e-9  # of a whole cost: what a budget forgives too


@dataclass(frozen=True)
class Step:
    """One cut and the training after it.

    Attributes:
        asked: fraction of the original that was to be gone after this step.
        got: fraction that was.
        layers: groups that lost channels in this step.
        plan: what is left after it, in channels of the original.
        metric_as_cut: of the cut model before training; None without an `eval_loader`.
        metric: after training; None without an `eval_loader`.
        training: what the training did.
    """

    asked: float
    got: float
    layers: tuple[str, ...]
    plan: Plan
    metric_as_cut: float | None
    metric: float | None
    training: TrainResult


@dataclass(frozen=True)
class IterativeResult(PruneResult):
    """What `prune_iteratively` returns: a `PruneResult` in terms of the original model, and the way there.

    Attributes:
        history: one entry per step. `verification` is that of the least exact step.
    """

    history: tuple[Step, ...] = ()

    def __str__(self) -> str:
        rows: list[tuple[str, ...]] = [("step", "asked", "got", "as cut", "retrained", "layers")]
        for number, step in enumerate(self.history, start=1):
            metrics = [f"{m:.4f}" if m is not None else "–" for m in (step.metric_as_cut, step.metric)]
            few = ", ".join(step.layers[:3]) + (f" and {len(step.layers) - 3} more" if len(step.layers) > 3 else "")
            rows.append((str(number), f"{step.asked:.1%}", f"{step.got:.1%}", *metrics, few))
        widths = [max(len(row[k]) for row in rows) for k in range(5)]
        lines = ["  ".join([*(f"{c:>{w}}" for c, w in zip(row, widths, strict=False)), row[5]]) for row in rows]
        return "\n".join([super().__str__(), "", *lines])


def prune_iteratively(
    model: nn.Module,
    args: Any,
    *,
    budget: Budget,
    steps: int,
    data: Iterable[Any],
    task: Task,
    recipe: Recipe = RECIPES["cifar-finetune"],
    schedule: str = "together",
    method: str | Method = "l1_filter",
    kwargs: Mapping[str, Any] | None = None,
    limits: Limits | None = None,
    repair: Sequence[str] | None = None,
    eval_loader: Iterable[Any] | None = None,
    seed: int = 0,
    check: bool = True,
    checkpoint_dir: str | Path | None = None,
    progress: bool | None = None,
    graph: ChannelGraph | None = None,
) -> IterativeResult:
    """Prune towards a budget in several steps and retrain after each; the model itself is not changed.

    Args:
        model: a trained model.
        args: example input: a tensor, or a tuple of positional inputs.
        budget: how much goes in all.
        steps: "together": in how many cuts. "layer_by_layer": in how many cuts each layer.
        data: training batches, re-iterable; methods and repairs that need data read them too.
        task: how to feed a batch, the loss and the metric.
        recipe: how to train after each step.
        schedule: "together" cuts all layers at every step. "layer_by_layer" decides on the original how many channels
            each layer loses, and cuts one layer after another in the order of the forward pass.
        method: a name from the catalogue, or a method with settings of your own; chooses anew at every step.
        kwargs: keyword inputs of the example.
        limits: what every plan has to respect.
        repair: as in `prune`, after each cut and before the training.
        eval_loader: data for the metric before and after each training.
        seed: makes random choices repeatable.
        check: verify every cut in float64 and refuse a wrong one.
        checkpoint_dir: where the trainings keep checkpoints, a folder per step. A run that was killed repeats the cuts
            and takes its trainings up where they stopped.
        progress: True or False to force the progress bars; None = where there is a terminal.
        graph: the model's graph, if you have it; after each step the model is traced with the same options.

    Returns:
        The smaller model in the training mode of `model`, its plan in channels of the original, and one `Step` each.

    Raises:
        MethodError: an unknown schedule, or `steps` is no whole number of 1 or more; and as `prune`.
        BudgetError: the budget is malformed or not reachable; told before anything is trained.
        TrainingError: as in `train.fit`.
    """
    if schedule not in SCHEDULES:
        raise MethodError(f"schedule={schedule!r}: expected one of {', '.join(SCHEDULES)}.")
    if isinstance(steps, bool) or not isinstance(steps, int) or steps < 1:
        raise MethodError(f"steps={steps!r}: expected a whole number of cuts, 1 or more.")
    example, named = as_args(args), dict(kwargs or {})
    graph = graph if graph is not None else trace(model, example, named)
    posed = Problem(model, graph, budget, limits or Limits(), example, named, data, task, seed)
    problem = prepared(find(method).make() if isinstance(method, str) else method, posed)
    counts_for(problem, problem.free_groups(), "uniform")  # unreachable budgets are told here, before any training
    train = _Training(
        data, task, recipe, eval_loader, None if checkpoint_dir is None else Path(checkpoint_dir), progress
    )
    walk = _Walk(problem, method, tuple(repair) if repair is not None else None, check, train)
    walk.run(walk.together(steps) if schedule == "together" else walk.layer_by_layer(steps))
    return walk.result()


@dataclass(frozen=True)
class _Training:
    data: Iterable[Any]
    task: Task
    recipe: Recipe
    eval_loader: Iterable[Any] | None
    folder: Path | None
    progress: bool | None

    def metric(self, model: nn.Module) -> float | None:
        """Evaluate a model, if there is something to evaluate it on."""
        if self.eval_loader is None:
            return None
        return evaluate(model, self.eval_loader, self.task, progress=self.progress)

    def run(self, model: nn.Module, number: int) -> tuple[nn.Module, TrainResult]:
        """Return a trained copy."""
        return finetune(
            model,
            self.data,
            self.task,
            self.recipe,
            eval_loader=self.eval_loader,
            checkpoint_dir=None if self.folder is None else self.folder / f"step-{number:03d}",
            progress=self.progress,
        )


@dataclass(frozen=True)
class _Cut:
    """What the next step is to do, in terms of the model as it is now."""

    asked: float  # fraction of the original that is gone after it
    budget: Budget  # of `graph`
    graph: ChannelGraph  # of the model as it is, with the groups that may lose channels


class _Walk:
    """The model on its way, and what is left of the original's channels."""

    def __init__(
        self, problem: Problem, method: str | Method, repair: tuple[str, ...] | None, check: bool, train: _Training
    ) -> None:
        self.problem, self.method, self.repair, self.check, self.train = problem, method, repair, check, train
        self.graph = problem.graph
        self.protected = self.graph.touching(problem.limits.protect)
        self.left = {name: list(range(group.width)) for name, group in self.graph.groups.items()}
        self.branches: tuple[str, ...] = ()  # of the original, those that are gone
        self.model = shrink(problem.model, self.graph, Plan())
        self.now = self.graph  # of the model as it is
        self.history: list[Step] = []
        self.verifications: list[Verification] = []

    @property
    def plan(self) -> Plan:
        """What is left, in channels of the original."""
        widths = self.graph.widths
        return Plan({n: tuple(kept) for n, kept in self.left.items() if len(kept) < widths[n]}, widths, self.branches)

    def gone(self, counts: np.ndarray[Any, Any] | None = None) -> float:
        """Fraction of the original that is gone, or would be with these kept counts."""
        costs, of = self.graph.costs, self.problem.budget.of
        whole = costs.value(of, costs.widths)
        left = costs.value(of, costs.counts(self.plan) if counts is None else counts, self.branches)
        return 1 - left / whole if whole else 0.0

    # -- schedules -----------------------------------------------------------------------------------------------

    def together(self, steps: int) -> Iterator[_Cut]:
        """All layers at once, the same fraction of the original at every step."""
        of = self.problem.budget.of
        for number in range(1, steps + 1):
            asked = self.problem.budget.remove * number / steps
            whole = self.graph.costs().of(of)
            missing = (asked - self.gone()) * whole
            if missing > MARGIN * whole:
                free = self.now_with(n for n in self.graph.groups if n not in self.protected)
                yield _Cut(asked, Budget(missing / free.costs().of(of), of), free)

    def layer_by_layer(self, steps: int) -> Iterator[_Cut]:
        """One layer after the other, each down to what a single cut of the original would leave of it."""
        problem = self.problem
        once = prune(
            problem.model,
            problem.args,
            budget=problem.budget,
            method=self.method,
            kwargs=problem.kwargs,
            data=problem.data,
            task=problem.task,
            limits=problem.limits,
            repair=(),
            seed=problem.seed,
            check=False,
            graph=self.graph,
        ).plan
        for name in [n for n in self.graph.groups if once.removed(n)]:
            for number in range(1, steps + 1):
                width, last = self.graph.groups[name].width, len(once.kept[name])
                wanted = width - round((width - last) * number / steps)
                missing = len(self.left[name]) - wanted
                if missing > 0:
                    counts = self.graph.costs.counts(self.plan)
                    counts[self.graph.costs.names.index(name)] = wanted
                    free = self.now_with([name])
                    if not free.groups:
                        log.warning(
                            "%s keeps %d channels, which can only go with others now", name, len(self.left[name])
                        )
                        break
                    yield _Cut(self.gone(counts), Budget(missing / free.channel_count, "channels"), free)

    # -- steps ---------------------------------------------------------------------------------------------------

    def run(self, cuts: Iterator[_Cut]) -> None:
        """Cut and train, over and over."""
        for number, cut in enumerate(cuts, start=1):
            problem = self.problem
            result = prune(
                self.model,
                problem.args,
                budget=cut.budget,
                method=self.method,
                kwargs=problem.kwargs,
                data=problem.data,
                task=problem.task,
                limits=dataclasses.replace(problem.limits, protect=()),
                repair=self.repair,
                seed=problem.seed + number,
                check=self.check,
                graph=cut.graph,
            )
            layers = self._compose(result.plan)
            if result.verification is not None:
                self.verifications.append(result.verification)
            as_cut = self.train.metric(result.model)
            self.model, training = self.train.run(result.model, number)
            self.now = self._graph_now()
            step = Step(cut.asked, self.gone(), layers, self.plan, as_cut, training.metric, training)
            self.history.append(step)
            log.info("step %d: %.1f %% of %s gone", number, 100 * step.got, problem.budget.of)

    def _graph_now(self) -> ChannelGraph:
        """Trace the model as it is, and let the method pose it as it posed the original."""
        found = trace(self.model, self.problem.args, self.problem.kwargs, **self.graph.options)
        method = find(self.method).make() if isinstance(self.method, str) else self.method
        return prepared(method, dataclasses.replace(self.problem, model=self.model, graph=found)).graph

    def _compose(self, plan: Plan) -> tuple[str, ...]:
        """Take a plan of the model as it is into account; returns the groups of the original that lost channels."""
        original = {here: name for name, here in self._matched()}
        cut = [here for here in plan if plan.removed(here)]
        for here in cut:
            kept = self.left[original[here]]
            self.left[original[here]] = [kept[i] for i in plan.kept[here]]
        gone = {self.now.branches[name].modules for name in plan.removed_branches}
        self.branches += tuple(name for name, branch in self.graph.branches.items() if branch.modules in gone)
        return tuple(original[here] for here in cut)

    def now_with(self, names: Iterable[str]) -> ChannelGraph:
        """Graph of the model as it is, with these groups of the original only: all others stay whole."""
        here, wanted = dict(self._matched()), set(names)
        free = {here[name] for name in self.graph.groups if name in wanted and name in here}
        return dataclasses.replace(self.now, groups={n: g for n, g in self.now.groups.items() if n in free})

    def _matched(self) -> Iterator[tuple[str, str]]:
        """Pairs of names of the same group: in the original, and in the model as it is."""
        taken: set[str] = set()
        modules = [path for name in self.branches for path in self.graph.branches[name].modules]
        gone = tensors_inside(self.graph, modules)
        for name, group in self.graph.groups.items():
            width = len(self.left[name])
            for here, other in self.now.groups.items():
                if here not in taken and other.width == width and _footprint(other) == _footprint(group, gone):
                    taken.add(here)
                    yield name, here
                    break

    def result(self) -> IterativeResult:
        """Return what came of it."""
        problem, plan = self.problem, self.plan
        before = record_of(self.model)
        if before is not None and record_of(problem.model) is None:
            self.model.__dict__[RECORD] = dataclasses.replace(before, plan=plan.to_json())
        result = IterativeResult(
            model=self.model,
            plan=plan,
            graph=self.graph,
            budget=problem.budget,
            before=self.graph.costs(),
            after=self.graph.costs(plan),
            verification=max(self.verifications, key=lambda v: v.max_relative_error, default=None),
            decision=Decision(plan),
            history=tuple(self.history),
        )
        note_origin_(result, self.method)
        return result


def _footprint(group: ChannelGroup, without: Container[str] = ()) -> frozenset[tuple[str, int, int]]:
    return frozenset((m.tensor, m.axis, m.per_channel) for m in group.members if m.tensor not in without)
