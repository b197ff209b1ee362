"""The promises of methods that remove single weights, one function each: ``promise(subject, case)``."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import tempfile
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import nn

from secateur import Budget, WeightPlan, sparsify
from secateur.catalogue import Entry
from secateur.errors import BudgetError, MethodError, NothingToPrune, TrainingError, UnknownName
from secateur.methods import Pattern, WeightDecision, WeightMethod, WeightProblem
from secateur.methods._weights import prunable_weights
from secateur.train import ClassificationTask

from . import snapshot
from .cases import Case
from .promises import BreakingOff, DataBroke, LabelsHidden, Poison, touchy, unchanged


@dataclass(frozen=True, eq=False)
class WeightSubject:
    """A method under test: a row of the catalogue."""

    name: str
    make: Callable[..., WeightMethod]
    needs: tuple[str, ...] = ()
    waives: tuple[str, ...] = ()
    brief: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, entry: Entry) -> WeightSubject:
        return cls(entry.name, entry.make, entry.needs, entry.waives, entry.brief)

    def choose(self, problem: WeightProblem) -> WeightDecision:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a layer kept alive, few samples: models here are tiny
            return self.make(**self.brief).choose(problem)

    @property
    def reads_data(self) -> bool:
        return bool(set(self.needs) & {"data", "labels", "training"})


def problem_of(case: Case, remove: float = 0.5, of: str = "weights", **given: Any) -> WeightProblem:
    """Return a problem of single weights on the case's model and data."""
    dtype = given.pop("dtype", torch.float32)
    model = given.pop("model", None) or case.model(dtype)
    values: dict[str, Any] = {"data": case.data(dtype), "task": ClassificationTask(), "args": (case.images(dtype),)}
    return WeightProblem(model, Budget(remove, of), **(values | given))


Promise = Callable[[WeightSubject, Case], None]
WEIGHT_PROMISES: dict[str, Promise] = {}
WEIGHT_REFUSALS: dict[str, Promise] = {}


def promise(function: Promise) -> Promise:
    WEIGHT_PROMISES[function.__name__] = function
    return function


def refuses(function: Promise) -> Promise:
    WEIGHT_REFUSALS[function.__name__] = function
    return function


def hold_weights(check: Promise, subject: WeightSubject, case: Case) -> None:
    """Hold a method to a promise; skip what it waives."""
    if check.__name__ in subject.waives:
        pytest.skip(f"{subject.name} waives {check.__name__} in the catalogue")
    check(subject, case)


def sizes(model: nn.Module) -> dict[str, int]:
    return {weight.name: weight.tensor.numel() for weight in prunable_weights(model)}


@promise
def exact(subject: WeightSubject, case: Case) -> None:
    for remove in (0.5, 0.613, 0.83):
        problem = problem_of(case, remove)
        plan = subject.choose(problem).plan
        assert plan.removed_count == math.ceil(remove * sum(sizes(problem.model).values()) - 1e-6)


@promise
def exact_of_all_parameters(subject: WeightSubject, case: Case) -> None:
    problem = problem_of(case, 0.4, "params")
    whole = sum(p.numel() for p in problem.model.parameters())
    assert subject.choose(problem).plan.removed_count == math.ceil(0.4 * whole - 1e-6)


@promise
def exact_on_ties(subject: WeightSubject, case: Case) -> None:
    model = case.model()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(0.05)
        for name, buffer in model.named_buffers():
            buffer.fill_(name.endswith("running_var"))
    plan = subject.choose(problem_of(case, 0.37, model=model)).plan
    assert plan.removed_count == math.ceil(0.37 * sum(sizes(model).values()) - 1e-6)


@promise
def nothing_at_zero(subject: WeightSubject, case: Case) -> None:
    model = case.model()
    made = subject.make(**subject.brief)
    given = {"data": case.data(), "task": ClassificationTask()} if subject.reads_data else {}
    result = sparsify(model, case.images(), budget=Budget(0.0, "weights"), method=made, **given)
    assert not result.plan.removed_count
    assert not [n for n, t in model.state_dict().items() if not torch.equal(t, result.model.state_dict()[n])]


@promise
def no_layer_is_emptied(subject: WeightSubject, case: Case) -> None:
    """Each layer in turn is so small that any ranking over all layers would take all of it."""
    for name in sizes(case.model()):
        model = case.model()
        with torch.no_grad():
            model.get_parameter(name).mul_(1e-3)
        plan = subject.choose(problem_of(case, 0.6, model=model)).plan
        empty = [n for n, mask in plan.kept.items() if not mask.any()]
        assert not empty, f"{empty} lost every weight when {name} was small"


@promise
def protected_weights_stay(subject: WeightSubject, case: Case) -> None:
    first = next(iter(sizes(case.model())))
    plan = subject.choose(problem_of(case, 0.3, protect=(first.rpartition(".")[0],))).plan
    assert first not in plan.kept or bool(plan.kept[first].all())


@promise
def pattern_is_kept(subject: WeightSubject, case: Case) -> None:
    problem = problem_of(case, 0.5, pattern=Pattern(1, 2, uneven="pad"))
    plan = subject.choose(problem).plan
    for weight in prunable_weights(problem.model):
        taps = weight.rows(plan.kept[weight.name]).unflatten(1, (-1, weight.input_count))
        blocks = [block.sum(-1) for block in taps.split(2, dim=-1)]
        assert all(bool((kept == 1).all()) for kept in blocks), weight.name


@promise
def zeros_and_nothing_else(subject: WeightSubject, case: Case) -> None:
    """The model that comes out is zero where the plan says, and as it was elsewhere unless the method re-fitted it."""
    model, given = case.model(), {}
    if subject.reads_data:
        given = {"data": case.data(), "task": ClassificationTask()}
    made = subject.make(**subject.brief)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        result = sparsify(model, case.images(), budget=Budget(0.5, "weights"), method=made, **given)
    before = result.decision.model.state_dict() if result.decision.model is not None else model.state_dict()
    for name, tensor in result.model.state_dict().items():
        kept = result.plan.kept.get(name, torch.ones_like(tensor, dtype=torch.bool))
        assert not tensor[~kept].any(), name
        assert torch.equal(tensor[kept], before[name][kept]), name
    assert [n for n, _ in result.model.named_parameters()] == [n for n, _ in model.named_parameters()]


@promise
def same_seed_same_plan(subject: WeightSubject, case: Case) -> None:
    found = []
    for process_seed in (1, 2):
        with snapshot.fresh_randomness(process_seed):
            found.append(subject.choose(problem_of(case, seed=11)).plan)
    assert found[0] == found[1]


@promise
def leaves_no_trace(subject: WeightSubject, case: Case) -> None:
    model, data = touchy(case), case.data()
    with unchanged(model, data):
        subject.choose(problem_of(case, model=model, data=data))


@promise
def leaves_no_trace_of_a_failure(subject: WeightSubject, case: Case) -> None:
    if not subject.reads_data:
        return
    model = touchy(case)
    for good_batches in (0, 1, 3):
        with unchanged(model, []), contextlib.suppress(DataBroke):
            subject.choose(problem_of(case, model=model, data=BreakingOff(case, good_batches)))


@promise
def dead_first(subject: WeightSubject, case: Case) -> None:
    """Half of each layer's weights are zero already: none of the others goes before them."""
    model = case.model()
    dead = {}
    with torch.no_grad():
        for weight in prunable_weights(model):
            dead[weight.name] = torch.arange(weight.tensor.numel()).reshape(weight.tensor.shape) % 2 == 1
            weight.tensor.masked_fill_(dead[weight.name], 0.0)
    plan = subject.choose(problem_of(case, 0.3, model=model)).plan
    assert not [name for name, mask in plan.kept.items() if bool((~mask & ~dead[name]).any())]


@promise
def nested(subject: WeightSubject, case: Case) -> None:
    plans = [subject.choose(problem_of(case, remove)).plan for remove in (0.2, 0.4, 0.6)]
    for smaller, bigger in pairwise(plans):
        assert not [n for n in smaller if bool((bigger.kept[n] & ~smaller.kept[n]).any())]


@promise
def plan_survives_a_file(subject: WeightSubject, case: Case) -> None:
    plan = subject.choose(problem_of(case)).plan
    with tempfile.TemporaryDirectory() as folder:
        plan.save(f"{folder}/plan.safetensors")
        assert WeightPlan.load(f"{folder}/plan.safetensors") == plan


@promise
def dtype_is_kept(subject: WeightSubject, case: Case) -> None:
    for dtype in (torch.float64, torch.bfloat16):
        problem = problem_of(case, dtype=dtype)
        decision = subject.choose(problem)
        assert decision.plan.removed_count == math.ceil(0.5 * sum(sizes(problem.model).values()) - 1e-6)
        if decision.model is not None:
            assert {p.dtype for p in decision.model.parameters()} == {dtype}


@promise
def reads_only_what_it_declares(subject: WeightSubject, case: Case) -> None:
    if not subject.reads_data:
        subject.choose(problem_of(case, data=Poison(), task=Poison()))
    elif not {"labels", "training"} & set(subject.needs):
        blank = [(images, torch.full_like(labels, -12345)) for images, labels in case.data()]
        subject.choose(problem_of(case, data=blank, task=LabelsHidden()))


@promise
def decision_is_sound(subject: WeightSubject, case: Case) -> None:
    problem = problem_of(case)
    decision = subject.choose(problem)
    decision.plan.check(problem.model)
    assert set(decision.plan.kept) <= set(sizes(problem.model))
    for name, scores in decision.scores.items():
        assert scores.shape == problem.model.get_parameter(name).shape
        assert not scores.requires_grad
        assert not torch.isnan(scores).any()


@refuses
def weights_that_are_no_numbers(subject: WeightSubject, case: Case) -> None:
    for value in (float("nan"), float("inf")):
        model = case.model()
        with torch.no_grad():
            model.get_parameter(next(iter(sizes(model)))).flatten()[0] = value
        with pytest.raises(MethodError, match="NaN or infinite"):
            subject.choose(problem_of(case, model=model))


@refuses
def missing_data(subject: WeightSubject, case: Case) -> None:
    if subject.reads_data:
        for missing in ({"data": None}, {"task": None}):
            with pytest.raises(MethodError, match=r"data=|task="):
                subject.choose(problem_of(case, **missing))


@refuses
def empty_data(subject: WeightSubject, case: Case) -> None:
    if subject.reads_data:
        with pytest.raises((MethodError, TrainingError), match=r"batch|data|loader|sample"):
            subject.choose(problem_of(case, data=[]))


@refuses
def a_budget_out_of_reach(subject: WeightSubject, case: Case) -> None:
    with pytest.raises(BudgetError, match="at most"):
        subject.choose(problem_of(case, 0.9999, "params"))


@refuses
def channels_and_macs(subject: WeightSubject, case: Case) -> None:
    for of in ("channels", "macs", "bytes"):
        with pytest.raises(BudgetError, match="channels"):
            problem_of(case, 0.5, of)


@refuses
def everything_protected(subject: WeightSubject, case: Case) -> None:
    with pytest.raises(NothingToPrune, match="protect"):
        subject.choose(problem_of(case, protect=("",)))


@refuses
def an_unknown_layer_to_protect(subject: WeightSubject, case: Case) -> None:
    with pytest.raises(UnknownName, match="no_such_layer"):
        subject.choose(problem_of(case, protect=("no_such_layer",)))


@refuses
def a_width_that_does_not_fit_the_pattern(subject: WeightSubject, case: Case) -> None:
    with pytest.raises(MethodError, match=r"conv1.*pattern=Pattern.*uneven"):
        subject.choose(problem_of(case, 0.5, pattern=Pattern(2, 4)))


@refuses
def an_unknown_setting(subject: WeightSubject, case: Case) -> None:
    with pytest.raises(MethodError, match="no_such_setting"):
        subject.make(no_such_setting=1)


@refuses
def a_change_of_settings(subject: WeightSubject, case: Case) -> None:
    made = subject.make()
    assert dataclasses.is_dataclass(made)
    assert made == subject.make()
    assert replace(made) == made
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(made, next((f.name for f in dataclasses.fields(made)), "anything"), 1)


@refuses
def settings_without_sense(subject: WeightSubject, case: Case) -> None:
    for setting in dataclasses.fields(subject.make()):
        value = {str: "no such word", float: float("nan")}.get(type(setting.default))
        if value is not None:
            with pytest.raises((MethodError, UnknownName), match=f"{setting.name}|no such word"):
                subject.make(**{**subject.brief, setting.name: value}).choose(problem_of(case))
