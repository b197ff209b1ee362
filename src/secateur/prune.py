"""The one call: a trained model in, a smaller one out, checked."""

from __future__ import annotations

import dataclasses
import logging
import os
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, is_dataclass
from typing import Any

import torch
from torch import nn

from .budget import Budget, Limits
from .catalogue import find
from .errors import BudgetError, MethodError, NothingPruned, SurgeryError, VerificationError
from .graph.costs import Costs
from .graph.groups import ChannelGraph, as_args, trace
from .methods._attached import TrainingMethod
from .methods._problem import Decision, Method, Problem, prepared
from .plan import Plan
from .recovery.batchnorm import reestimate_batchnorm_
from .recovery.fold import fold_constants
from .recovery.refit import refit
from .store import BudgetNote, Details, annotate_
from .surgery.feasible import feasible
from .surgery.finalize import check_plain
from .surgery.shrink import fitted, shrink
from .surgery.verify import Verification, verify
from .train.batches import explained
from .train.task import Task
from .train.tracking import Tracking

log = logging.getLogger(__name__)
REPAIRS = ("fold", "refit", "batchnorm")


@dataclass(frozen=True)
class PruneResult:
    """What `prune` returns.

    Attributes:
        model: the smaller model.
        plan: which channels stayed.
        graph: the channel graph of the model before.
        budget: what was asked.
        before: costs before, for the example input.
        after: costs after.
        verification: how exactly the smaller model is the masked one; None if it was not asked for.
        decision: what the method decided, with its scores.
    """

    model: nn.Module
    plan: Plan
    graph: ChannelGraph
    budget: Budget
    before: Costs
    after: Costs
    verification: Verification | None
    decision: Decision

    @property
    def removed(self) -> float:
        """Fraction removed of what the budget counts."""
        whole = self.before.of(self.budget.of)
        return 1 - self.after.of(self.budget.of) / whole if whole else 0.0

    def __str__(self) -> str:
        asked = f"asked: {self.budget}; got {self.removed:.1%}"
        return "\n".join(
            [
                cost_table(self.before, self.after),
                asked,
                str(self.verification) if self.verification else "not verified",
            ]
        )


def cost_table(before: Costs, after: Costs) -> str:
    """Return costs before and after as a table."""
    rows = [("", "before", "after", "removed")]
    for what in ("channels", "macs", "params", "bytes"):
        old, new = before.of(what), after.of(what)
        rows.append((what, f"{old:,}", f"{new:,}", f"{1 - new / old:.1%}" if old else "–"))
    widths = [max(len(row[k]) for row in rows) for k in range(4)]
    return "\n".join("  ".join(f"{cell:>{w}}" for cell, w in zip(row, widths, strict=True)) for row in rows)


@torch.inference_mode(False)  # tensors made in that mode never train
def prune(
    model: nn.Module,
    args: Any,
    *,
    budget: Budget,
    method: str | Method = "l1_filter",
    kwargs: Mapping[str, Any] | None = None,
    data: Iterable[Any] | None = None,
    task: Task | None = None,
    limits: Limits | None = None,
    protect: Sequence[str] = (),
    min_keep: int = 1,
    round_to: int = 1,
    repair: Sequence[str] | None = None,
    seed: int = 0,
    check: bool = True,
    graph: ChannelGraph | None = None,
    tracking: Tracking | None = None,
    checkpoint_dir: str | os.PathLike[str] | None = None,
) -> PruneResult:
    """Remove channels from a model and return a smaller one that computes what the masked one computes.

    Args:
        model: a trained model; nothing of it changes.
        args: example input: a tensor, or a tuple of positional inputs.
        budget: how much goes.
        method: a name from the catalogue, or a method with settings of your own.
        kwargs: keyword inputs of the example.
        data: batches for methods that need them and for repairs; re-iterable.
        task: how to read a batch; needed with `data`.
        limits: `protect`, `min_keep` and `round_to` as one value, in place of the three.
        protect: module paths or group names whose channels all stay.
        min_keep: every group keeps at least this many channels.
        round_to: every width that changes becomes a multiple of this.
        repair: "fold" moves what removed channels contribute on average into their consumers before the cut and needs
            no data; "refit" solves the consumers' remaining weights on `data` for the outputs as they were; "batchnorm"
            re-estimates running statistics on `data` after the cut. None = where there is data "refit", or "batchnorm"
            after training with a method, or nothing after a method that re-fits like this by itself.
        seed: makes random choices repeatable.
        check: verify the result in float64 and refuse a wrong one.
        graph: the model's graph, if you have it. The check goes by the options that it was traced with.
        tracking: where to show, after each epoch, how a method that takes part in training gets on.
        checkpoint_dir: where to keep checkpoints of the training of such a method; the same call goes on from them.

    Returns:
        The smaller model, in the training mode of `model`, with plan, costs and verification.

    Raises:
        BudgetError: the budget is malformed or not reachable.
        NothingToPrune: no channel is free to go.
        UnknownName: no such method or protected module.
        TraceError: the model rejects the example input.
        MethodError: the method cannot work on this model, data or these weights, or torch.nn.utils.prune masks them.
        PlanError: `graph` is of another model.
        TrainingError: a batch of `data` does not fit the model or the task.
        VerificationError: the smaller model is not the masked one; nothing is returned.
    """
    limits = _limits(limits, protect, min_keep, round_to)
    chosen = _method(method)
    if not isinstance(chosen, TrainingMethod):
        _refuse_training_options(chosen, tracking, checkpoint_dir)
    repairs = _repairs(repair, data, task)
    example, named = as_args(args), dict(kwargs or {})
    check_plain(model)
    graph = graph if graph is not None else trace(model, example, named)
    _check_model(model, graph, check=check)
    posed = Problem(model, graph, budget, limits, example, named, data, task, seed, tracking, checkpoint_dir)
    problem = prepared(chosen, posed)
    cut, small = _cut(problem, chosen, repairs)
    graph, plan = cut.graph, cut.decision.plan
    if plan.is_empty and budget.remove > 0:
        warnings.warn(f"{budget}: nothing was removed.", NothingPruned, stacklevel=3)
    verification = _verified(cut, small, example, named) if check else None
    wants_statistics = cut.decision.repair == "batchnorm" if repairs is None else "batchnorm" in repairs
    if wants_statistics and data is not None and task is not None:
        with explained():
            reestimate_batchnorm_(small, data, task)
    result = PruneResult(small, plan, graph, budget, graph.costs(), graph.costs(plan), verification, cut.decision)
    note_origin_(result, method)
    return result


def note_origin_(result: PruneResult, chosen: str | Method) -> None:
    """Note on the smaller model, in place, how it came about; `secateur.save` writes it down."""
    method = _method(chosen)
    names: list[str] = [f.name for f in dataclasses.fields(method)] if is_dataclass(method) else []
    settings = {key: getattr(method, key) for key in names}
    verification = result.verification
    details = Details(
        method=chosen if isinstance(chosen, str) else type(chosen).__name__,
        settings={key: value if type(value) in (bool, int, str) else repr(value) for key, value in settings.items()},
        budget=BudgetNote(remove=result.budget.remove, of=result.budget.of, removed=result.removed),
        verification_error=None if verification is None else verification.max_relative_error,
    )
    annotate_(result.model, details)


def rehearsed(problem: Problem) -> Problem:
    """Return the problem without the groups that the model's code cannot narrow; itself where there are none."""
    graph = feasible(problem.model, problem.graph)
    if not graph.rigid:
        return problem
    log.warning("left whole, since the model's code cannot narrow them: %s", ", ".join(graph.rigid))
    return dataclasses.replace(problem, graph=graph)


@dataclass(frozen=True)
class _Cut:
    decision: Decision
    source: nn.Module  # the full-width model that was cut
    graph: ChannelGraph


def _cut(problem: Problem, method: Method, repairs: tuple[str, ...] | None) -> tuple[_Cut, nn.Module]:
    """Decide and cut; where the model's code cannot express a cut, leave those groups whole and decide again."""
    is_rehearsed = problem.data is not None
    if is_rehearsed:  # a method that reads data, let alone trains, is dearer to ask twice than a rehearsal
        problem = rehearsed(problem)
    while True:
        decision = method.decide(problem)
        try:
            source = _repaired(problem, decision, repairs)
            return _Cut(decision, source, problem.graph), shrink(source, problem.graph, decision.plan)
        except SurgeryError:
            if is_rehearsed:
                raise
            is_rehearsed, before = True, problem
            problem = rehearsed(problem)
            if problem is before:
                raise


def _repaired(problem: Problem, decision: Decision, repairs: tuple[str, ...] | None) -> nn.Module:
    """Return the full-width model to cut, after the repairs that come before the cut; None = the usual ones."""
    source = decision.model if decision.model is not None else problem.model
    if decision.plan.is_empty:
        return source
    if repairs is not None and "fold" in repairs:
        source = fold_constants(source, problem.graph, decision.plan)
    wants_refit = decision.repair == "refit" and decision.plan.removed_count if repairs is None else "refit" in repairs
    if wants_refit and problem.data is not None and problem.task is not None:
        source = refit(source, problem.graph, decision.plan, problem.data, problem.task, target=problem.model)
    return source


def _refuse_training_options(method: Method, tracking: Tracking | None, checkpoint_dir: object) -> None:
    given = {"tracking": (tracking, "show"), "checkpoint_dir": (checkpoint_dir, "keep")}
    for option, (value, verb) in given.items():
        if value is not None:
            raise MethodError(
                f"{option}={value}: {type(method).__name__} takes no part in training loops, so there is nothing to "
                f"{verb}."
            )


def _limits(limits: Limits | None, protect: Sequence[str], min_keep: int, round_to: int) -> Limits:
    given = Limits(tuple([protect] if isinstance(protect, str) else protect), min_keep, round_to)
    if limits is not None and given != Limits():
        raise BudgetError(f"limits={limits} and also {given}: give protect, min_keep and round_to in one place.")
    return limits if limits is not None else given


def _method(method: str | Method) -> Method:
    if isinstance(method, str):
        entry = find(method)
        if entry.removes != "channels":
            raise MethodError(f"method={method!r} removes single weights, not channels: call secateur.sparsify.")
        return _method(entry.make())
    if isinstance(method, type) or not isinstance(method, Method):
        raise MethodError(f"method={method!r}: expected a name from the catalogue or a method such as L1Filter().")
    return method


def _check_model(model: nn.Module, graph: ChannelGraph, *, check: bool) -> None:
    fitted(model, graph)
    blank = [name for name, tensor in model.named_parameters() if tensor.device.type == "meta"]
    if blank and check:
        raise MethodError(
            f"parameter {blank[0]!r} is on the meta device and holds no data ({len(blank)} are): nothing can be "
            "verified. Load the weights first, or pass check=False with a method that reads none."
        )


def _repairs(repair: Sequence[str] | None, data: Any, task: Any) -> tuple[str, ...] | None:
    if data is not None and task is None:
        raise MethodError("data= needs task=, which says how to read a batch: e.g. task=ClassificationTask().")
    if repair is None:
        return None
    chosen = (repair,) if isinstance(repair, str) else tuple(repair)
    if unknown := [name for name in chosen if name not in REPAIRS]:
        raise MethodError(f"repair={unknown[0]!r}: expected some of {', '.join(REPAIRS)}.")
    blind = [name for name in chosen if name != "fold"]
    if blind and (data is None or task is None):
        raise MethodError(f"repair={blind[0]!r} needs data= and task=: it fits the smaller model to activations.")
    return chosen


def _verified(cut: _Cut, small: nn.Module, args: Any, kwargs: Mapping[str, Any]) -> Verification:
    source, plan = fitted(cut.source, cut.graph), cut.decision.plan
    found = verify(source, small, plan, args, kwargs, **cut.graph.options)
    if not found.is_exact:
        raise VerificationError(
            f"the smaller model is not the masked one: {found}. This is a fault of the channel graph for this model; "
            "please report it, and protect the modules that graph.explain shows."
        )
    return found
