"""Gradual magnitude pruning: how many weights are masked when, which, that they may come back, and that runs resume."""

from __future__ import annotations

import copy
import logging
import math
from itertools import pairwise

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import secateur as sc
from secateur import Budget, WeightPlan, attach, sparsify
from secateur.errors import BudgetError, MethodError
from secateur.methods import GradualMagnitude, Magnitude, NetworkSlimming, Pattern
from secateur.methods.gradual_magnitude import removed_at
from secateur.train import ClassificationTask, fit

from ..train.cases import KillAt, Killed
from .attached_runs import POINTS, RECIPE, batches, small_net, tensors
from .weight_runs import STEPS, at, run, trainable, weight_problem

PAPER = [0.0, 0.2439, 0.4392, 0.5913, 0.7056, 0.7875, 0.8424, 0.8757, 0.8928, 0.8991, 0.9]


def layers(*sizes):
    torch.manual_seed(0)
    return nn.Sequential(*(nn.Linear(i, o, bias=False) for i, o in pairwise(sizes)))


def masks_while_frozen(method, problem, step_count):
    """Return the plan after each step of a run in which no weight moves."""
    attached, found = method.attach(problem), []
    for step in range(step_count):
        moment = at(problem.model, step, step_count)
        attached.after_backward(moment)
        attached.after_step(moment)
        found.append(WeightPlan.of_zeros(problem.model, [w.name for w in problem.weights()]))
    return [*found, attached.finish().plan]


def test_the_papers_schedule():
    assert [round(removed_at(k / 10, 0.9), 4) for k in range(11)] == PAPER
    assert removed_at(0, 0.9, 0.3) == pytest.approx(0.3)


def test_so_many_are_zero_after_each_update_and_none_goes_in_between():
    model = layers(50, 20, 50)
    plans = masks_while_frozen(GradualMagnitude(last_step=20, updates=10), weight_problem(model, 0.9), 25)
    counts = [plan.removed_count for plan in plans]
    for step, count in enumerate(counts[:20], start=1):
        assert count == 2 * math.floor(1000 * removed_at((step // 2) / 10, 0.9) + 1e-6), step
    assert set(counts[19:]) == {1800}


UNEVEN = {"0.weight": 0.9, "1.weight": 0.3, "2.weight": 0.7, "3.weight": 1}


@pytest.mark.parametrize("scope", ["layer", "global", "row", UNEVEN])
def test_masks_are_nested_while_weights_are_frozen(scope):
    """Also among small layers, where the largest remainders of a growing total may shrink the share of one."""
    model = layers(3, 5, 7, 4, 9, 2)
    plans = masks_while_frozen(GradualMagnitude(scope=scope, updates=60), weight_problem(model, 0.55), 80)
    assert len({plan.removed_count for plan in plans}) > 10
    assert_nested(plans)


@pytest.mark.parametrize("scope", ["layer", "global"])
def test_blocks_are_filled_gradually_and_nested(scope):
    problem = weight_problem(layers(8, 6, 4), 0.5, pattern=Pattern(2, 4, uneven="pad"))
    plans = masks_while_frozen(GradualMagnitude(scope=scope, updates=20), problem, 40)
    assert_nested(plans)
    assert len({plan.removed_count for plan in plans}) > 5
    assert plans[-1] == Magnitude(scope).choose(weight_problem(layers(8, 6, 4), pattern=problem.pattern)).plan


def assert_nested(plans):
    for fewer, more in pairwise(plans):
        assert not [name for name in fewer if bool((~fewer.kept[name] & more.kept[name]).any())]


def test_the_smallest_by_size_go_in_every_layer_alike():
    model = layers(4, 1, 1)
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[-9.0, 1.0, -2.0, 3.0]]))
        model[1].weight.fill_(0.1)
    plan = masks_while_frozen(GradualMagnitude(updates=1), weight_problem(model, 0.4), 4)[-1]
    assert plan.kept["0.weight"].tolist() == [[True, False, False, True]]
    assert plan.kept["1.weight"].tolist() == [[True]], "a layer keeps one of each output"


def one_layer(*values):
    model = nn.Sequential(nn.Linear(len(values), 1, bias=False))
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([values]))
    return model


def test_a_masked_weight_comes_back_with_its_value_where_others_have_become_smaller():
    model = one_layer(1.0, -2.0, 3.0, 4.0)
    attached = GradualMagnitude(updates=1, last_step=3, initial=0.5).attach(weight_problem(model, 0.5))
    attached.after_backward(at(model, 0))
    assert model[0].weight.tolist() == [[0.0, 0.0, 3.0, 4.0]]
    with torch.no_grad():
        model[0].weight[0, 2] = 0.5
    for step in range(3):
        attached.after_step(at(model, step))
    assert model[0].weight.tolist() == [[0.0, -2.0, 0.0, 4.0]]
    assert attached.finish().plan.kept["0.weight"].tolist() == [[False, True, False, True]]


def test_masked_weights_get_no_updates_and_come_back_without_momentum():
    model = one_layer(0.01, 2.0)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=0.1)
    attached = GradualMagnitude(updates=1, last_step=6, initial=0.5).attach(weight_problem(model, 0.5))
    seen = []
    for step in range(4):
        moment = at(model, step, optimizer=optimizer)
        optimizer.zero_grad()
        (-model(torch.ones(1, 2))).sum().backward()
        attached.after_backward(moment)
        optimizer.step()
        attached.after_step(moment)
        seen.append(model[0].weight[0, 0].item())
    assert seen == [0.0] * 4
    assert optimizer.state[model[0].weight]["momentum_buffer"][0, 0] == 0
    with torch.no_grad():
        model[0].weight[0, 1] = 0.001
    attached.after_step(at(model, 5, optimizer=optimizer))
    assert model[0].weight.tolist() == [[pytest.approx(0.01), 0.0]]


def test_the_count_is_exact_and_the_zeros_are_in_the_model():
    model, _, decision = run(GradualMagnitude(updates=3), remove=0.613)
    total = sum(own.weight.numel() for own in (model[0], model[3], model[8]))
    assert decision.plan.removed_count == math.ceil(0.613 * total)
    assert WeightPlan.of_zeros(model, decision.plan) == decision.plan


def test_choosing_trains_a_copy_and_returns_it_with_its_zeros():
    model = small_net()
    before = copy.deepcopy(model.state_dict())
    decision = GradualMagnitude(recipe=RECIPE).choose(trainable(model))
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    attached_model, _, attached = run(GradualMagnitude())
    assert decision.plan == attached.plan
    assert all(torch.equal(a, b) for a, b in zip(tensors(decision.model), tensors(attached_model), strict=True))


@pytest.mark.parametrize(("point", "step"), [*POINTS, ("after_step", 2), ("after_backward", 4)])
def test_a_run_that_is_killed_ends_with_the_same_plan_and_weights(point, step, tmp_path):
    method = GradualMagnitude(updates=5, last_step=10)
    whole, _, decision = run(method)
    with pytest.raises(Killed):
        run(method, KillAt(point, step), folder=tmp_path)
    resumed, _, again = run(method, KillAt("never", 0), folder=tmp_path)
    assert decision.plan == again.plan
    assert all(torch.equal(one, other) for one, other in zip(tensors(whole), tensors(resumed), strict=True))


def test_what_masked_weights_were_is_in_the_state():
    """A run that is taken up without it could not bring a weight back."""
    method = GradualMagnitude(updates=1, last_step=3, initial=0.5)
    model = one_layer(1.0, -2.0, 3.0, 4.0)
    attached = method.attach(weight_problem(model, 0.5))
    attached.after_backward(at(model, 0))
    later = copy.deepcopy(model)
    again = method.attach(weight_problem(later, 0.5))
    again.load_state_dict(attached.state_dict())
    with torch.no_grad():
        later[0].weight[0, 2] = 0.5
    again.after_step(at(later, 2))
    assert later[0].weight.tolist() == [[0.0, -2.0, 0.0, 4.0]]


def test_a_loop_by_hand_gives_the_same(tmp_path):
    ours, _, decision = run(GradualMagnitude())
    model = small_net().train()
    attached = attach(model, method=GradualMagnitude(), budget=Budget(0.5, "weights"))
    optimizer = RECIPE.make_optimizer(model.parameters())
    for step, (images, labels) in enumerate(batches() * RECIPE.epochs):
        moment = at(model, step, optimizer=optimizer)
        optimizer.zero_grad()
        F.cross_entropy(model(images), labels).backward()
        attached.after_backward(moment)
        optimizer.step()
        attached.after_step(moment)
    assert attached.finish().plan == decision.plan
    assert all(torch.equal(a, b) for a, b in zip(ours.parameters(), model.parameters(), strict=True))


def test_by_name_and_in_the_one_call():
    attached = attach(small_net(), method="gradual_magnitude", pattern="1:2", protect=["0"], include=())
    assert str(attached.problem.pattern) == "1:2"
    result = sparsify(
        small_net(),
        budget=Budget(0.5, "weights"),
        method=GradualMagnitude(recipe=RECIPE.replace(epochs=1)),
        data=batches(),
        task=ClassificationTask(),
    )
    assert WeightPlan.of_zeros(result.model, result.plan) == result.plan


def test_a_run_that_ends_early_meets_the_budget_and_says_so(caplog):
    model = small_net()
    attached = GradualMagnitude(last_step=100).attach(weight_problem(model, 0.5))
    with caplog.at_level(logging.WARNING, logger="secateur"):
        fit(model, batches(), ClassificationTask(), RECIPE, attachments=[attached], progress=False)
        decision = attached.finish()
    assert decision.plan.removed == pytest.approx(0.5, abs=1e-2)
    assert WeightPlan.of_zeros(model, decision.plan) == decision.plan
    assert "ended after update 12 of 100" in caplog.text


def test_nothing_is_logged_where_the_schedule_ends_in_time(caplog):
    with caplog.at_level(logging.WARNING, logger="secateur"):
        run(GradualMagnitude())
    assert not caplog.text


def test_a_loop_that_does_not_know_its_length_is_told_what_to_do():
    model = small_net()
    attached = GradualMagnitude().attach(weight_problem(model))
    with pytest.raises(MethodError, match=r"step_count=.*last_step="):
        attached.after_backward(at(model, 0, None))
    GradualMagnitude(last_step=5).attach(weight_problem(model)).after_backward(at(model, 0, None))


def test_the_loops_of_this_package_say_how_long_they_are():
    seen = []

    class Look(KillAt):
        def after_step(self, moment):
            seen.append(moment.step_count)

    run(GradualMagnitude(), Look("never", 0))
    assert set(seen) == {STEPS}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"first_step": -1}, "first_step=-1"),
        ({"first_step": 5, "last_step": 5}, "last_step=5.*first_step=5"),
        ({"updates": 0}, "updates=0"),
        ({"updates": True}, "updates=True"),
        ({"initial": 1.0}, "initial=1.0"),
        ({"scope": "everything"}, "scope="),
    ],
)
def test_settings_without_sense_are_refused(settings, message):
    with pytest.raises(MethodError, match=message):
        GradualMagnitude(**settings)


def test_more_at_first_than_in_the_end_is_refused():
    with pytest.raises(MethodError, match=r"initial=0\.8"):
        GradualMagnitude(initial=0.8).attach(weight_problem(small_net(), 0.5))


@pytest.mark.parametrize(
    ("method", "remove", "message"),
    [(GradualMagnitude(updates=7), 0.5, "updates=100"), (GradualMagnitude(), 0.6, "budget=remove 50.0%")],
)
def test_the_state_of_another_run_is_refused(method, remove, message):
    state = GradualMagnitude().attach(weight_problem(small_net(), 0.5)).state_dict()
    with pytest.raises(MethodError, match=message):
        method.attach(weight_problem(small_net(), remove)).load_state_dict(state)
    with pytest.raises(MethodError, match="soft_filter"):
        GradualMagnitude().attach(weight_problem(small_net(), 0.5)).load_state_dict({"method": "soft_filter"})


def test_what_describes_channels_is_refused_for_weights_and_the_other_way_round():
    model, images = small_net(), torch.zeros(1, 3, 6, 6, dtype=torch.float64)
    with pytest.raises(MethodError, match=r"limits= is about channels"):
        attach(model, method=GradualMagnitude(), budget=Budget(0.5, "weights"), limits=sc.Limits())
    with pytest.raises(MethodError, match=r"pattern=, protect= is about single weights"):
        attach(model, images, method=NetworkSlimming(), budget=Budget(0.5), pattern="2:4", protect=["0"])
    with pytest.raises(MethodError, match=r"takes no part in training.*sparsify"):
        attach(model, method="magnitude", budget=Budget(0.5, "weights"))
    with pytest.raises(MethodError, match="takes no part"):
        attach(model, method=GradualMagnitude, budget=Budget(0.5, "weights"))


def test_a_budget_that_does_not_fit_the_method_is_refused():
    with pytest.raises(BudgetError, match="nothing says how much"):
        attach(small_net(), method="gradual_magnitude")
    with pytest.raises(BudgetError, match="nothing says how much"):
        attach(small_net(), torch.zeros(1, 3, 6, 6), method="network_slimming")
    with pytest.raises(BudgetError, match="single weights are counted"):
        attach(small_net(), method="gradual_magnitude", budget=Budget(0.5, "macs"))
