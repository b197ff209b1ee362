"""Pruning in steps ends where one cut ends, speaks of the original's channels, and retrains in between."""

from __future__ import annotations

import functools
import itertools

import pytest
import torch
from torch import nn

from secateur.budget import Budget, Limits
from secateur.data import digits
from secateur.errors import BudgetError, MethodError, NothingToPrune, UnknownName
from secateur.graph import trace
from secateur.iterate import prune_iteratively
from secateur.methods._problem import Decision
from secateur.methods.l1_filter import L1Filter
from secateur.models import digits_resnet
from secateur.plan import Plan
from secateur.prune import prune
from secateur.store import load, save
from secateur.surgery.record import record_of
from secateur.train import ClassificationTask, Recipe

from .contract import snapshot
from .train.cases import Killed

TASK, RECIPE = ClassificationTask(), Recipe(epochs=1, lr=0.02, schedule="constant")
IMAGE = torch.zeros(1, 1, 8, 8)


@functools.cache
def batches():
    loaders = digits().loaders(32, augment=False)
    return list(loaders.train)[:3], list(loaders.test)[:2]


@pytest.fixture(autouse=True)
def _one_thread():
    """Batches this small are slower on several threads, and much slower on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def net():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return digits_resnet()


def run(model, budget, *, steps=3, **options):
    train, test = batches()
    options = {"recipe": RECIPE, "eval_loader": test, "task": TASK, "data": train} | options
    return prune_iteratively(model, IMAGE, budget=budget, steps=steps, **options)


@pytest.mark.parametrize("of", ["channels", "macs", "params"])
def test_steps_end_at_the_budget_of_the_original(of):
    result = run(net(), Budget(0.2, of), method=L1Filter(residual="prune"))
    assert [round(step.asked, 6) for step in result.history] == [0.066667, 0.133333, 0.2]
    assert all(step.got >= step.asked for step in result.history)
    assert 0.2 <= result.removed < 0.24, "one channel of the stream is 4 % of the multiply-adds"
    assert result.removed == pytest.approx(result.history[-1].got)
    assert result.after.of(of) == trace(result.model, IMAGE).costs().of(of)
    assert result.verification.is_exact


def test_the_plan_is_in_channels_of_the_original():
    """Without training in between, the weights that are left are the original's at the plan's indices."""
    model = net()
    method = L1Filter(allocation={"stages.2.0.conv1": 1.0})
    untrained = RECIPE.replace(lr=1e-12, weight_decay=0.0, momentum=0.0)
    result = run(model, Budget(0.2), repair=(), recipe=untrained, method=method)
    kept = result.plan.kept["stages.2.0.conv1"]
    assert len(kept) == 33
    assert len(result.history) == 3
    torch.testing.assert_close(
        result.model.stages[2][0].conv1.weight, model.stages[2][0].conv1.weight[list(kept)], rtol=0, atol=1e-6
    )
    once = prune(model, IMAGE, budget=Budget(0.2), method=method, check=False)
    assert result.plan == once.plan, "the L1 norm chooses the same channels at once and in steps"
    assert record_of(result.model).kept == record_of(once.model).kept
    assert record_of(result.model).plan == result.plan.to_json()


def test_the_result_is_saved_and_loaded_like_any_other(tmp_path):
    result = run(net(), Budget(0.2), steps=2)
    save(result.model, tmp_path / "small")
    again = load(tmp_path / "small", model=net())
    images = batches()[1][0][0]
    assert torch.equal(again.eval()(images), result.model.eval()(images))


def test_each_step_contains_the_one_before():
    result = run(net(), Budget(0.2, "macs"), method="random")
    plans = [step.plan for step in result.history]
    for earlier, later in itertools.pairwise(plans):
        assert all(set(later.kept[name]) <= set(earlier.kept[name]) for name in earlier)
        assert later.removed_count > earlier.removed_count
    assert plans[-1] == result.plan


def test_one_step_is_prune_and_finetune():
    model = net()
    result = run(model, Budget(0.3), steps=1)
    once = prune(model, IMAGE, budget=Budget(0.3))
    assert len(result.history) == 1
    assert result.plan == once.plan
    assert result.after == once.after


def test_the_history_tells_the_metric_before_and_after_training():
    result = run(net(), Budget(0.3), steps=2, recipe=RECIPE.replace(epochs=3))
    for step in result.history:
        assert 0 <= step.metric_as_cut <= 1
        assert step.metric == step.training.metric
        assert len(step.training.history) == 3
    assert result.history[-1].metric > result.history[0].metric_as_cut
    assert "retrained" in str(result)
    assert "asked: remove 30.0% of channels" in str(result)
    assert run(net(), Budget(0.1), steps=1, eval_loader=None).history[0].metric_as_cut is None


def test_later_steps_choose_from_the_retrained_weights():
    seen = []

    class Watching(L1Filter):
        def decide(self, problem):
            seen.append(problem.model.stages[0][0].conv1.weight.detach().clone())
            return super().decide(problem)

    model = net()
    run(model, Budget(0.3), steps=2, method=Watching())
    first, second = seen
    assert torch.equal(first, model.stages[0][0].conv1.weight)
    assert not any(torch.allclose(filter_, known, atol=1e-4) for filter_ in second for known in first)


def test_layer_by_layer_cuts_one_layer_at_a_time_and_ends_where_one_cut_ends():
    model, budget = net(), Budget(0.15, "macs")
    result = run(model, budget, steps=2, schedule="layer_by_layer")
    once = prune(model, IMAGE, budget=budget, check=False)
    assert all(len(step.layers) == 1 for step in result.history)
    order = [step.layers[0] for step in result.history]
    inner = [f"stages.{k}.0.conv1" for k in range(3)]
    assert order == [name for name in inner for _ in range(2)]
    assert {n: len(k) for n, k in result.plan.kept.items()} == {
        n: len(k) for n, k in once.plan.kept.items() if once.plan.removed(n)
    }
    assert result.after == once.after
    assert [step.got for step in result.history] == pytest.approx([step.asked for step in result.history])


def test_layers_of_width_one_are_followed():
    """A group with one channel left vanishes from later graphs, and still counts."""
    model = nn.Sequential(
        nn.Flatten(),
        nn.Linear(64, 2),
        nn.ReLU(),
        nn.Linear(2, 8),
        nn.ReLU(),
        nn.Linear(8, 6),
        nn.ReLU(),
        nn.Linear(6, 10),
    )
    for schedule in ("together", "layer_by_layer"):
        result = run(model, Budget(0.7), steps=3, schedule=schedule, repair=())
        assert len(result.plan.kept["1"]) == 1
        assert result.removed >= 0.7
        assert result.after.params == sum(p.numel() for p in result.model.parameters())
        assert {n: len(k) for n, k in result.plan.kept.items()} == {
            n: result.model.get_submodule(n).out_features for n in result.plan.kept
        }


def test_limits_hold_at_every_step():
    limits = Limits(protect=("stages.0",), min_keep=5, round_to=4)
    result = run(net(), Budget(0.25), limits=limits)
    assert not result.plan.removed("stages.0.0.conv1")
    for step in result.history:
        assert all(len(step.plan.kept[n]) % 4 == 0 for n in step.plan)


@pytest.mark.parametrize("schedule", ["together", "layer_by_layer"])
def test_the_model_and_the_process_are_as_before(schedule):
    model = net().train()
    before, around = snapshot.of_model(model), snapshot.of_process()
    result = run(model, Budget(0.1), steps=1, schedule=schedule)
    assert snapshot.differences(before, snapshot.of_model(model)) == []
    assert snapshot.differences(around, snapshot.of_process()) == []
    assert result.model.training
    assert not {t.data_ptr() for t in model.parameters()} & {t.data_ptr() for t in result.model.parameters()}


def test_removing_nothing_takes_no_step():
    model = net().eval()
    result = run(model, Budget(0.0))
    assert result.history == ()
    assert result.plan == Plan()
    assert result.model is not model
    assert torch.equal(result.model(IMAGE), model(IMAGE))


def test_a_killed_run_takes_its_trainings_up(tmp_path):
    whole = run(net(), Budget(0.3), steps=2)

    class Dying(L1Filter):
        def decide(self, problem):
            if problem.graph.widths != trace(net(), IMAGE).widths:
                raise Killed
            return super().decide(problem)

    with pytest.raises(Killed):
        run(net(), Budget(0.3), steps=2, method=Dying(), checkpoint_dir=tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["step-001"]
    again = run(net(), Budget(0.3), steps=2, checkpoint_dir=tmp_path)
    assert again.history[0].training.resumed_from is not None
    assert again.history[1].training.resumed_from is None
    assert again.plan == whole.plan
    assert all(torch.equal(a, b) for a, b in zip(whole.model.parameters(), again.model.parameters(), strict=True))


@pytest.mark.parametrize(
    ("options", "kind", "words"),
    [
        ({"schedule": "one_by_one"}, MethodError, "schedule='one_by_one': expected one of together, layer_by_layer"),
        ({"steps": 0}, MethodError, "steps=0: expected a whole number of cuts"),
        ({"steps": 1.5}, MethodError, r"steps=1\.5"),
        ({"method": "l1_fliter"}, UnknownName, "did you mean 'l1_filter'"),
        ({"budget": 0.3}, BudgetError, r"budget=0\.3: expected Budget"),
        ({"budget": Budget(0.999, "macs")}, BudgetError, "at most"),
        ({"limits": Limits(protect=("",))}, NothingToPrune, "protected"),
    ],
)
def test_what_makes_no_sense_is_told_before_anything_is_trained(options, kind, words):
    def unread():
        raise AssertionError("trained")
        yield

    with pytest.raises(kind, match=words):
        run(net(), options.pop("budget", Budget(0.3)), **({"data": unread()} | options))


def test_a_method_that_decides_otherwise_is_followed():
    """What a step removes is what the method said, also where that is more than was asked."""

    class Greedy:
        def decide(self, problem):
            name = "stages.2.0.conv1"
            widths = problem.graph.widths
            return Decision(Plan.from_removed({name: range(10)}, widths))

    result = run(net(), Budget(0.02), steps=2, method=Greedy())
    assert len(result.plan.kept["stages.2.0.conv1"]) == 54
    assert len(result.history) == 1, "the second step's budget was met by the first"
