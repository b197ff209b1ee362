"""Cut groups one after another and write down what happens."""

from __future__ import annotations

import importlib
import inspect
import logging
import math
import pkgutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from ..budget import Budget
from ..errors import MethodError, NothingToPrune, SurgeryError, UnknownName
from ..graph.groups import ChannelGraph
from ..surgery.feasible import feasible
from ..train.batches import batches_in
from ..train.progress import ProgressBar
from ..train.task import Task
from ._problem import Method, Problem
from ._scores import lowest
from ._sensitivity_curves import GroupCurve, SensitivityCurves
from ._sensitivity_measure import Bench, Measured, Treatment

log = logging.getLogger(__name__)
TENTHS = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)


@dataclass(frozen=True)
class Analysis:
    """One analysis: what to cut, in which order, and how to measure it.

    Attributes:
        problem: model, graph, limits, data and task; its budget is not read.
        graph: the problem's, without the groups that the model's code cannot narrow.
        data: the problem's.
        task: the problem's.
        scorer: what scored the channels.
        scores: group -> (width,), higher = keep.
        removes: fractions to try, rising from 0.
        treatment: what is done between cut and evaluation.
    """

    problem: Problem
    graph: ChannelGraph
    data: Iterable[Any]
    task: Task
    scorer: Method | str
    scores: Mapping[str, Tensor]
    removes: tuple[float, ...]
    treatment: Treatment

    @classmethod
    def of(cls, problem: Problem, scores: str | Method, removes: tuple[float, ...], treatment: Treatment) -> Analysis:
        """Score every channel once, with a method or the one of that name.

        Raises:
            MethodError: no data, no task or no scores.
            UnknownName: no method of that name.
        """
        if problem.data is None or problem.task is None:
            raise MethodError(
                "a sensitivity analysis evaluates the model: give data= (a labelled validation split) and task=."
            )
        if isinstance(problem.data, Iterator):
            raise MethodError("data= can be read once only; pass a list or a loader that starts anew each time.")
        graph = feasible(problem.model, problem.graph)
        scorer = method_called(scores) if isinstance(scores, str) else scores
        given = scorer.decide(replace(problem, graph=graph, budget=Budget(remove=0.0))).scores
        found = {name: given[name] for name in graph.groups if name in given}
        if not found:
            raise MethodError(f"{scorer} gives no score per channel; use a method that does, e.g. scores='l1_filter'.")
        return cls(problem, graph, problem.data, problem.task, scorer, found, removes, treatment)

    def curves(self, names: list[str], progress: bool | None = None) -> SensitivityCurves:
        """Measure these groups one after another.

        Raises:
            NothingToPrune: no group can lose a channel at any of the fractions.
        """
        reasons = {name: why for name in names if (why := self._obstacle(name))}
        counts = {name: self._counts(name) for name in names if name not in reasons}
        if not counts:
            raise self._nothing(reasons)
        bench = Bench(self.problem.model, self.graph, self.data, self.task, self.treatment)
        with ProgressBar("sensitivity", self._step_count(counts), visible=progress) as bar:
            base, found = bench.intact(bar), {}
            for name in counts:
                try:
                    found[name] = self._curve(bench, name, counts[name], base, bar)
                except SurgeryError as error:
                    reasons[name] = f"it cannot be cut: {error}"
        if not found:
            raise self._nothing(reasons)
        whole = self.graph.costs()
        return SensitivityCurves(
            metric_name=self.task.name,
            higher_is_better=self.task.higher_is_better,
            base_metric=base.metric,
            base_loss=base.loss,
            base_macs=whole.macs,
            base_params=whole.params,
            groups=found,
            unremovable=reasons,
            scores=str(self.scorer),
            treatment=str(self.treatment),
            sample_count=base.score_count,
        )

    def _nothing(self, reasons: dict[str, str]) -> NothingToPrune:
        listed = ", ".join(f"{name}: {why}" for name, why in list(reasons.items())[:4])
        return NothingToPrune(f"no channel can go at any of {self.removes}; {listed or 'the model has no groups'}.")

    def _curve(self, bench: Bench, name: str, counts: dict[float, int], base: Measured, bar: ProgressBar) -> GroupCurve:
        known = {0: base}
        for count in counts.values():
            if count not in known:
                bar.advance(0, title=f"{name} without {count} of {self.graph.groups[name].width}")
                known[count] = bench.without(name, lowest(self.scores[name], count).tolist(), bar)
                log.info("%s without %d channels: %s %.4f", name, count, self.task.name, known[count].metric)
        taken = tuple(counts.values())
        points = [known[count] for count in taken]
        saved = {what: tuple(self._saved(what, name, count) for count in taken) for what in ("macs", "params")}
        return GroupCurve(
            self.graph.groups[name].width,
            tuple(counts),
            taken,
            tuple(point.metric for point in points),
            tuple(point.loss for point in points),
            saved["macs"],
            saved["params"],
        )

    def _saved(self, what: str, name: str, count: int) -> int:
        costs = self.graph.costs
        kept = costs.widths.copy()
        kept[list(self.graph.groups).index(name)] -= count
        return round(costs.value(what, costs.widths) - costs.value(what, kept))

    def _counts(self, name: str) -> dict[float, int]:
        """Fraction asked -> channels that go, as far as the limits allow."""
        width = self.graph.groups[name].width
        most = width - min(width, self.problem.limits.min_keep)
        counts = {fraction: math.floor(fraction * width + 1e-9) for fraction in self.removes}
        return {fraction: count for fraction, count in counts.items() if count <= most}

    def _obstacle(self, name: str) -> str:
        """Say why nothing of a group can be removed; empty if something can."""
        if name in self.graph.rigid:
            return "the model's code cannot narrow it"
        limits, width = self.problem.limits, self.graph.groups[name].width
        if name in self.graph.touching(limits.protect):
            return "protected"
        least = max(limits.min_keep + 1, limits.round_to)
        if width < least:
            return f"{width} channels, and min_keep and round_to need {least}"
        if name not in self.scores:
            return f"{self.scorer if isinstance(self.scorer, str) else type(self.scorer).__name__} does not score it"
        if not any(self._counts(name).values()):
            fractions = ", ".join(f"{fraction:g}" for fraction in self.removes)
            return f"no whole channel of {width} at any of {fractions}"
        return ""

    def _step_count(self, counts: dict[str, dict[float, int]]) -> int | None:
        evaluations = 1 + sum(len(set(each.values()) - {0}) for each in counts.values())
        length = batches_in(self.data)
        return None if length is None else evaluations * length


def sensitivity_ranks(problem: Problem, scores: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return group -> (width,) rank at which its next channel goes, by the drop that it costs on its own.

    Masks the lowest scores of one group after another, in tenths, and evaluates on the problem's data.

    Raises:
        MethodError: no data or no task.
        NothingToPrune: no group can lose a channel.
    """
    if problem.data is None or problem.task is None:
        raise MethodError("allocation='sensitivity' evaluates the model: give data= with labels, and task=.")
    graph = feasible(problem.model, problem.graph)
    own = {name: scores[name] for name in graph.groups if name in scores}
    run = Analysis(problem, graph, problem.data, problem.task, "the method itself", own, TENTHS, Treatment())
    return run.curves(list(own)).order()


def named_groups(graph: ChannelGraph, paths: Sequence[str] | None) -> list[str]:
    """Names of the groups called so or made by modules at these paths, in the order of the forward pass; None = all.

    Raises:
        UnknownName: there is no such group.
    """
    every = [*graph.groups, *graph.rigid]
    if paths is None:
        return every
    found: set[str] = set()
    for path in [paths] if isinstance(paths, str) else paths:
        own = {n for n, g in graph.groups.items() if any(m.module == path and m.role == "out" for m in g.members)}
        own |= {path}.intersection(every)
        if not own:
            raise UnknownName("group of channels", path, every)
        found |= own
    return [name for name in every if name in found]


def method_called(name: str) -> Method:
    """Return the method in the file of that name, with its paper's settings.

    Raises:
        UnknownName: there is none.

    >>> method_called("random")
    Random(allocation='uniform', residual='projection')
    """
    known = {m.name for m in pkgutil.iter_modules([str(Path(__file__).parent)]) if not m.name.startswith("_")}
    if name not in known - {"sensitivity"}:
        raise UnknownName("method that scores", name, known - {"sensitivity"})
    module = importlib.import_module(f".{name}", __package__)
    own = [kind for _, kind in inspect.getmembers(module, inspect.isclass) if kind.__module__ == module.__name__]
    made: Method = next(kind for kind in own if issubclass(kind, Method))()
    return made
