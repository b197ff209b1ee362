"""Two sound methods, and variations of them with one fault each, as they are found in the wild."""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from secateur import Limits, Plan, shrink
from secateur.errors import MethodError
from secateur.methods import Decision, Problem
from secateur.methods._scores import per_channel, plan_from_scores, producers


@dataclass(frozen=True)
class Sound:
    """Remove channels with small weights."""

    norm: str = "l1"
    NEEDS: ClassVar[tuple[str, ...]] = ()

    def __init__(self, norm: str = "l1", **unknown: Any) -> None:
        if unknown:
            raise MethodError(f"no setting {next(iter(unknown))!r}; it has: norm.")
        self.check(norm)
        object.__setattr__(self, "norm", norm)

    def check(self, norm: str) -> None:
        if norm not in ("l1", "l2"):
            raise MethodError(f"norm={norm!r}: expected 'l1' or 'l2'.")

    def decide(self, problem: Problem) -> Decision:
        scores = self.scores(problem)
        return Decision(plan_from_scores(problem, scores), scores=scores)

    def scores(self, problem: Problem) -> dict[str, Tensor]:
        names = problem.free_groups()
        problem.check_weights(names)
        return {name: self.score(problem, name) for name in names}

    def score(self, problem: Problem, name: str) -> Tensor:
        group = problem.graph.groups[name]
        power = {"l1": 1, "l2": 2}[self.norm]
        return sum(
            per_channel(problem.graph, group, m, problem.model.get_parameter(m.tensor).abs() ** power)
            for m in producers(problem.graph, group)
        )


class SoundReader(Sound):
    """Run the model on every batch in evaluation mode, and leave no trace."""

    NEEDS = ("data",)

    def decide(self, problem: Problem) -> Decision:
        scores = self.scores(problem)  # refuses bad weights before the model runs
        if problem.data is None or problem.task is None:
            raise MethodError("needs data= and task=.")
        runner = copy.deepcopy(problem.model).eval()
        count = 0
        for batch in problem.data:
            args, kwargs = problem.task.to_inputs(batch)
            with torch.no_grad():
                runner(*args, **kwargs)
            count += 1
        if not count:
            raise MethodError("data= gave no batch.")
        return Decision(plan_from_scores(problem, scores), scores=scores)


def _changed(plan: Plan, name: str, removed: list[int]) -> Plan:
    return Plan.from_removed({**{n: plan.removed(n) for n in plan}, name: removed}, plan.widths)


def _widest(plan: Plan) -> str:
    return max(plan, key=lambda name: len(plan.kept[name]))


class OneTooMany(Sound):
    def decide(self, problem):
        plan = super().decide(problem).plan
        name = _widest(plan)
        return Decision(_changed(plan, name, [*plan.removed(name), plan.kept[name][0]]))


class OneTooFew(Sound):
    def decide(self, problem):
        plan = super().decide(problem).plan
        name = max(plan, key=lambda n: len(plan.removed(n)))
        return Decision(_changed(plan, name, list(plan.removed(name)[1:])))


class Threshold(Sound):
    """Everything at or below the score of the last channel that should go, goes."""

    def decide(self, problem):
        scores = self.scores(problem)
        plan = plan_from_scores(problem, scores)
        for name in plan:
            if plan.removed(name):
                highest = scores[name][list(plan.removed(name))].max()
                gone = (scores[name] <= highest).nonzero().flatten().tolist()
                plan = _changed(plan, name, gone[: len(scores[name]) - 1])
        return Decision(plan)


class AtLeastOne(Sound):
    """The off-by-one of ``scores <= sorted_scores[int(n * remove)]``."""

    def decide(self, problem):
        plan = super().decide(problem).plan
        name = _widest(plan)
        return Decision(plan if plan.removed_count else _changed(plan, name, [0]))


class NewWeightsAtZero(Sound):
    def decide(self, problem):
        decision = super().decide(problem)
        model = copy.deepcopy(problem.model)
        with torch.no_grad():
            next(model.parameters()).mul_(1 + 1e-6)
        return replace(decision, model=model)


class KeepsTheLowScores(Sound):
    def decide(self, problem):
        scores = self.scores(problem)
        return Decision(plan_from_scores(problem, {name: -score for name, score in scores.items()}), scores=scores)


class FirstInOrder(Sound):
    def score(self, problem, name):
        return torch.arange(problem.graph.groups[name].width, dtype=torch.float64)


class ChangesItsMind(Sound):
    """Ranks from the other end once much is to go."""

    def score(self, problem, name):
        return super().score(problem, name) * (1 if problem.budget.remove < 0.3 else -1)


class EmptiesAGroup(Sound):
    """One threshold over all groups, and no look at what is left of each."""

    def decide(self, problem):
        scores = self.scores(problem)
        count = round(problem.budget.remove * sum(len(s) for s in scores.values()))
        highest = torch.cat(list(scores.values())).sort().values[:count].max()
        removed = {name: (score <= highest).nonzero().flatten().tolist() for name, score in scores.items()}
        return Decision(Plan.from_removed(removed, problem.graph.widths))


class IgnoresProtect(Sound):
    def decide(self, problem):
        return super().decide(replace(problem, limits=replace(problem.limits, protect=())))


class IgnoresMinKeep(Sound):
    """Takes as much as it can of one group, then of the next."""

    def decide(self, problem):
        scores = {n: s + 1e3 * k for k, (n, s) in enumerate(self.scores(problem).items())}
        limits = Limits(problem.limits.protect, 1, problem.limits.round_to)
        return Decision(plan_from_scores(replace(problem, limits=limits), scores, "global"))


class IgnoresRounding(Sound):
    def decide(self, problem):
        return super().decide(replace(problem, limits=replace(problem.limits, round_to=1)))


class ZeroesInPlace(Sound):
    def decide(self, problem):
        decision = super().decide(problem)
        name = _widest(decision.plan)
        with torch.no_grad():
            for member in producers(problem.graph, problem.graph.groups[name]):
                problem.model.get_parameter(member.tensor)[list(decision.plan.removed(name))] = 0
        return decision


class LeavesEvalMode(Sound):
    def decide(self, problem):
        problem.model.eval()
        return super().decide(problem)


class LeavesAHook(Sound):
    def decide(self, problem):
        next(problem.model.children()).register_forward_hook(lambda *_: None)
        return super().decide(problem)


class LeavesAGradient(Sound):
    def decide(self, problem):
        problem.model(*problem.args).sum().backward()
        return super().decide(problem)


class UnfreezesWeights(Sound):
    def decide(self, problem):
        problem.model.requires_grad_(True)
        return super().decide(problem)


class DrawsSharedNumbers(Sound):
    def score(self, problem, name):
        return torch.rand(problem.graph.groups[name].width, dtype=torch.float64)


class LeavesEvalModeOnFailure(Sound):
    """Puts the mode back at the end, which an exception never reaches."""

    def decide(self, problem):
        modes = {module: module.training for module in problem.model.modules()}
        problem.model.eval()
        decision = super().decide(problem)
        for module, training in modes.items():
            module.training = training
        return decision


class WorksInSinglePrecision(Sound):
    def decide(self, problem):
        return replace(super().decide(problem), model=copy.deepcopy(problem.model).float())


class NarrowModel(Sound):
    """Cuts by itself, where the caller is to cut."""

    def decide(self, problem):
        decision = super().decide(problem)
        return replace(decision, model=shrink(problem.model, problem.graph, decision.plan))


class SharedTensors(Sound):
    def decide(self, problem):
        return replace(super().decide(problem), model=nn.Sequential(*problem.model.children()))


class ReadsData(Sound):
    def decide(self, problem):
        list(problem.data or ())
        return super().decide(problem)


class ReadsLabels(SoundReader):
    def decide(self, problem):
        for batch in problem.data:
            problem.task.loss(problem.model(batch[0]), batch)
        return super().decide(problem)


class Remembers(Sound):
    """Adds up scores over calls."""

    def score(self, problem, name):
        seen = self.__dict__.setdefault("_seen", {})
        seen[name] = super().score(problem, name) - seen.get(name, 0)
        return seen[name]


class Unchecked(Sound):
    def scores(self, problem):
        return {name: self.score(problem, name) for name in problem.free_groups()}


class Unfrozen(Sound):
    __setattr__ = object.__setattr__


class AnyWordWillDo(Sound):
    def check(self, norm):
        pass

    def score(self, problem, name):
        return Sound().score(problem, name)
