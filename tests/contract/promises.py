"""The promises that every method makes, one function each: ``promise(subject, case)`` fails if it is broken."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import nn

from secateur import Plan, mask, prune, shrink
from secateur.budget import MEASURES
from secateur.errors import BudgetError, NothingToPrune
from secateur.methods import Decision, Problem
from secateur.train import ClassificationTask

from . import snapshot
from .cases import Case
from .subject import Subject
from .symmetry import permuted, reversed_orders

Promise = Callable[[Subject, Case], None]
PROMISES: dict[str, Promise] = {}


def promise(function: Promise) -> Promise:
    PROMISES[function.__name__] = function
    return function


def exactly(problem: Problem, plan: Plan) -> None:
    """The plan meets the budget, and with one channel fewer gone somewhere it would not."""
    of, remove, graph = problem.budget.of, problem.budget.remove, problem.graph
    whole, left = graph.costs().of(of), graph.costs(plan).of(of)
    target = (1 - remove) * whole + 1e-9 * whole
    assert left <= target, f"{remove:.0%} of {whole} {of} were to go; {left} are left"
    if of == "channels":
        wanted = math.ceil(remove * whole - 1e-6)
        assert plan.removed_count == wanted, f"asked for {wanted} channels, {plan.removed_count} go"
        return
    one_less = [graph.costs(_with_one_back(plan, name)).of(of) for name in plan if plan.removed(name)]
    assert max(one_less) > target, f"{left} {of} are left of {whole}: more than a channel beyond {remove:.0%}"


def _with_one_back(plan: Plan, name: str) -> Plan:
    removed = {group: plan.removed(group) for group in plan}
    return Plan.from_removed({**removed, name: removed[name][1:]}, plan.widths)


@promise
def exact(subject: Subject, case: Case) -> None:
    for of in MEASURES:
        problem = case.problem(0.3, of)
        exactly(problem, subject.decide(problem).plan)


@promise
def exact_on_ties(subject: Subject, case: Case) -> None:
    """Every weight of a tensor equal, so that all channels of a group are alike."""
    model = case.model()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(0.05)
        for name, buffer in model.named_buffers():
            buffer.fill_(name.endswith("running_var"))
    problem = case.problem(0.3, model=model)
    exactly(problem, subject.decide(problem).plan)


@promise
def nothing_at_zero(subject: Subject, case: Case) -> None:
    model, images = case.model(), case.images()
    made = subject.make(**subject.brief)
    data = {"data": case.data(), "task": ClassificationTask(), "repair": ()} if subject.reads_data else {}
    result = prune(model, images, method=made, budget=case.problem(0.0).budget, graph=case.graph, check=False, **data)
    assert not result.plan.removed_count, f"remove=0 removed {result.plan}"
    changed = [n for n, t in model.state_dict().items() if not torch.equal(t, result.model.state_dict()[n])]
    assert not changed, f"remove=0 changed {changed}"
    with torch.no_grad():
        assert torch.equal(model(images), result.model(images)), "remove=0 changed the output"


@promise
def never_empties(subject: Subject, case: Case) -> None:
    """One group's weights are so small that any ranking over all groups would take all of it."""
    for name, group in case.graph.groups.items():
        model = case.model()
        with torch.no_grad():
            for member in group.members:
                if member.role != "in":
                    model.get_parameter(member.tensor).mul_(1e-3) if _is_parameter(model, member.tensor) else None
        plan = subject.decide(case.problem(0.3, model=model)).plan
        left = len(plan.kept.get(name, case.graph.groups[name].channels))
        assert left >= 1, f"{name} is empty"


def _is_parameter(model: nn.Module, name: str) -> bool:
    return name in dict(model.named_parameters())


@promise
def limits_are_kept(subject: Subject, case: Case) -> None:
    free = subject.decide(case.problem(0.3)).plan
    most = max(free, key=lambda name: len(free.removed(name)))
    module = next(m.module for m in case.graph.groups[most].members if m.role == "out")
    with contextlib.suppress(BudgetError, NothingToPrune):  # what is left to prune may be too little
        plan = subject.decide(case.problem(0.1, limits={"protect": (module,)})).plan
        touched = [name for name in case.graph.touching([module]) if plan.removed(name)]
        assert not touched, f"protect={module!r}: {touched} lost channels"
    plan = subject.decide(case.problem(0.35, limits={"min_keep": 3})).plan
    narrow = {n: len(k) for n, k in plan.kept.items() if len(k) < min(3, plan.widths[n])}
    assert not narrow, f"min_keep=3, kept {narrow}"
    plan = subject.decide(case.problem(0.2, limits={"round_to": 4})).plan
    odd = {n: len(k) for n, k in plan.kept.items() if len(k) < plan.widths[n] and len(k) % 4}
    assert not odd, f"round_to=4, kept {odd}"
    assert plan.removed_count >= 0.2 * case.graph.channel_count - 1e-6, "rounding left too much"


@promise
def same_seed_same_plan(subject: Subject, case: Case) -> None:
    """The process's own random numbers have no say."""
    found = []
    for process_seed in (1, 2):
        with snapshot.fresh_randomness(process_seed):
            found.append(subject.decide(case.problem(seed=11)))
    first, second = found
    assert first.plan == second.plan, "the same seed, another plan"
    assert (first.model is None) == (second.model is None)
    if first.model is not None and second.model is not None:
        pairs = zip(first.model.state_dict().items(), second.model.state_dict().values(), strict=True)
        assert not [name for (name, one), other in pairs if not torch.equal(one, other)]


@promise
def leaves_no_trace(subject: Subject, case: Case) -> None:
    model, data = touchy(case), case.data()
    with unchanged(model, data):
        subject.decide(case.problem(model=model, data=data))


@promise
def leaves_no_trace_of_a_failure(subject: Subject, case: Case) -> None:
    """A budget out of reach for every method; for those that read data, also data that break off."""
    model = touchy(case)
    with unchanged(model, []), pytest.raises(BudgetError):
        subject.decide(case.problem(0.9999, "params", model=model))
    if not subject.reads_data:
        return
    for good_batches in (0, 1, 3):
        with unchanged(model, []), contextlib.suppress(DataBroke):
            subject.decide(case.problem(model=model, data=BreakingOff(case, good_batches)))


class DataBroke(Exception):
    """What a damaged file looks like from inside."""


class BreakingOff:
    """Re-iterable data of which only some batches can be read."""

    def __init__(self, case: Case, good_batches: int) -> None:
        self.batches = case.data()[:good_batches]

    def __iter__(self) -> Iterator[Any]:
        yield from self.batches
        raise DataBroke

    def __len__(self) -> int:
        return 4


def touchy(case: Case) -> nn.Module:
    """A model in mixed modes, with a frozen parameter, a gradient and a hook."""
    model = case.model().train()
    last = list(model.children())[-1]
    last.eval()
    next(model.parameters()).requires_grad_(False)
    for parameter in last.parameters():
        parameter.grad = torch.ones_like(parameter)
    last.register_forward_hook(lambda *_: None)
    return model


@contextlib.contextmanager
def unchanged(model: nn.Module, data: list[Any]) -> Iterator[None]:
    with snapshot.fresh_randomness(4):
        before = snapshot.of_model(model), snapshot.of_process(), snapshot.of_batches(data)
        yield
        after = snapshot.of_model(model), snapshot.of_process(), snapshot.of_batches(data)
    changed = [name for one, other in zip(before, after, strict=True) for name in snapshot.differences(one, other)]
    assert not changed, f"not as before: {changed}"


@promise
def shrunk_is_masked(subject: Subject, case: Case) -> None:
    data = {"data": case.data(), "task": ClassificationTask()} if subject.reads_data else {}
    made = subject.make(**subject.brief)
    result = prune(case.model(), case.images(), method=made, budget=case.problem().budget, graph=case.graph, **data)
    assert result.verification is not None
    assert result.verification.is_exact
    exactly(case.problem(), result.plan)


@promise
def order_free(subject: Subject, case: Case) -> None:
    """In float64, so that sums in another order do not make ties."""
    double = torch.float64
    model, orders = case.model(double), reversed_orders(case.graph)
    other = permuted(model, case.graph, orders)
    with torch.no_grad():
        torch.testing.assert_close(other(case.images(double)), model(case.images(double)))
    plan = subject.decide(case.problem(model=model, dtype=double)).plan
    got = subject.decide(case.problem(model=other, dtype=double)).plan
    wanted = {n: [i for i, source in enumerate(orders[n]) if source in plan.removed(n)] for n in plan}
    assert got == Plan.from_removed(wanted, case.graph.widths), "another order, other channels"


@promise
def dead_first(subject: Subject, case: Case) -> None:
    """The last channel of every group is dead: where equal scores were cut in order, it would be the last to go."""
    dead = {name: [group.width - 1] for name, group in case.graph.groups.items()}
    model = mask(case.model(), case.graph, Plan.from_removed(dead, case.graph.widths))
    plan = subject.decide(case.problem(model=model)).plan
    spared = [name for name in plan if plan.removed(name) and dead[name][0] not in plan.removed(name)]
    assert not spared, f"a dead channel of {spared} outlived others"


@promise
def nested(subject: Subject, case: Case) -> None:
    plans = [subject.decide(case.problem(remove)).plan for remove in (0.1, 0.2, 0.35)]
    for smaller, bigger in pairwise(plans):
        back = {n: sorted(set(smaller.removed(n)) - set(bigger.removed(n))) for n in smaller}
        assert not any(back.values()), f"a bigger budget brought back {back}"


@promise
def plan_survives_json(subject: Subject, case: Case) -> None:
    plan = subject.decide(case.problem()).plan
    read = Plan.from_json(plan.to_json())
    assert read == plan
    assert read.to_json() == plan.to_json()
    case.graph.check(read)


@promise
def dtype_is_kept(subject: Subject, case: Case) -> None:
    for dtype in (torch.float64, torch.bfloat16):
        _keeps_tensors(subject, case, dtype, "cpu")


def device_is_kept(subject: Subject, case: Case, device: str) -> None:
    """Not in `PROMISES`: it needs a machine with that device."""
    _keeps_tensors(subject, case, torch.float32, device)


def _keeps_tensors(subject: Subject, case: Case, dtype: torch.dtype, device: str) -> None:
    problem = case.problem(dtype=dtype, device=device)
    decision = subject.decide(problem)
    exactly(problem, decision.plan)
    source = decision.model if decision.model is not None else problem.model
    _same_kind(problem.model, source)
    small = shrink(source, problem.graph, decision.plan)
    _same_kind(problem.model, small)
    with torch.no_grad():
        assert small(case.images(dtype).to(device)).dtype == dtype


def _same_kind(model: nn.Module, other: nn.Module) -> None:
    pairs = zip(_tensors(model), _tensors(other), strict=True)
    for (name, before), (same_name, after) in pairs:
        assert name == same_name
        assert after.dtype == before.dtype, f"{name} is {after.dtype} in place of {before.dtype}"
        assert after.device == before.device, f"{name} is on {after.device} in place of {before.device}"
        assert after.requires_grad == before.requires_grad, f"{name}: requires_grad changed"


def _tensors(model: nn.Module) -> list[tuple[str, torch.Tensor]]:
    return [*model.named_parameters(), *model.named_buffers()]


class Poison:
    """Fails when anything is asked of it."""

    def _touched(self, *_: Any, **__: Any) -> Any:
        raise AssertionError("the method reads something that its entry does not declare")

    __iter__ = __len__ = __call__ = __getitem__ = __bool__ = __next__ = __getattr__ = _touched


class LabelsHidden(ClassificationTask):
    """Feeds batches, and fails when the loss or the metric is asked for."""

    def loss(self, output: Any, batch: Any) -> Any:
        raise AssertionError("the method uses labels, and its entry does not declare it")

    metric = loss


@promise
def reads_only_what_it_declares(subject: Subject, case: Case) -> None:
    if not subject.reads_data:
        subject.decide(case.problem(data=Poison(), task=Poison()))
    elif not {"labels", "training"} & set(subject.needs):
        blank = [(images, torch.full_like(labels, -12345)) for images, labels in case.data()]
        subject.decide(case.problem(data=blank, task=LabelsHidden()))


@promise
def decision_is_sound(subject: Subject, case: Case) -> None:
    """Plan, scores and model belong to the problem, and the scores say what the plan does."""
    problem = case.problem()
    decision = subject.decide(problem)
    case.graph.check(decision.plan)
    for name, scores in decision.scores.items():
        assert scores.shape == (case.graph.groups[name].width,)
        assert bool(torch.isfinite(scores).all())
        assert not scores.requires_grad
        _scores_explain(decision, name)
    if decision.model is not None:
        assert decision.model is not problem.model
        shared = {t.data_ptr() for _, t in _tensors(problem.model)} & {
            t.data_ptr() for _, t in _tensors(decision.model)
        }
        assert not shared, "the new model shares tensors with the old one"
        wanted = {name: t.shape for name, t in _tensors(problem.model)}
        assert {name: t.shape for name, t in _tensors(decision.model)} == wanted, "the new model has other widths"


def _scores_explain(decision: Decision, name: str) -> None:
    gone, plan, scores = decision.plan.removed(name), decision.plan, decision.scores[name]
    if gone:
        highest, lowest = scores[list(gone)].max(), scores[list(plan.kept[name])].min()
        assert highest <= lowest, f"{name}: a channel of score {highest} goes and one of {lowest} stays"


@promise
def settings_change_nothing_shared(subject: Subject, case: Case) -> None:
    """One object decides many times: what it saw before has no say."""
    made = subject.make(**subject.brief)
    before = dict(vars(made)) if hasattr(made, "__dict__") else {}
    first = made.decide(case.problem())
    made.decide(case.problem(0.1))
    assert made.decide(case.problem()).plan == first.plan, "the second time, another plan"
    kept = sorted(vars(made).keys() ^ before.keys()) if hasattr(made, "__dict__") else []
    assert not kept, f"the method remembers {kept} from one call to the next"
