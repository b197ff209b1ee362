"""ISTA on scaling factors: closed forms, costs by hand, a rescaling that changes nothing, constants that fold away."""

from __future__ import annotations

import copy
import logging
import math

import pytest
import torch
from torch import nn

from secateur import Budget, fold_constants, prune, shrink, trace
from secateur.errors import MethodError
from secateur.methods import Decision, IstaBn
from secateur.methods._memory import memory_costs
from secateur.methods._scales import folded, soft_threshold
from secateur.methods.ista_bn import ista_step

from ..contract.cases import CASES
from .scale_runs import (
    IMAGES,
    RECIPE,
    TASK,
    Residual,
    batches,
    chain,
    moment,
    problem,
    set_,
    step_with,
    trained,
)
from .test_bn_scale import inverted


def attached_to(model, method=None, **options):
    return (method or IstaBn()).attach(problem(model, **options))


def even(penalty, **settings):
    """One penalty from the beginning."""
    return IstaBn(penalty=penalty, early_part=0.0, **settings)


def removed(plan):
    return {name: plan.removed(name) for name in plan if plan.removed(name)}


def test_the_soft_threshold_is_its_closed_form_in_both_ways_of_writing_it():
    x = torch.linspace(-2, 2, 41, dtype=torch.float64)
    t = torch.full_like(x, 0.55)
    (found,) = soft_threshold([x], [t])
    torch.testing.assert_close(found, x.sign() * (x.abs() - t).clamp(min=0))
    torch.testing.assert_close(found, x * (1 - t / x.abs().clamp(min=1e-16)).clamp(min=0))
    assert bool((found[x.abs() <= 0.55] == 0).all())
    assert bool((found[x.abs() > 0.55] != 0).all())


def test_steps_on_a_quadratic_end_at_the_soft_threshold_of_its_minimum():
    """argmin of (x - a)^2 / 2 + t |x| is soft(a, t); with t not scaled by lr, or lr twice, it is another."""
    a, t = torch.tensor([2.0, -1.0, 0.3, -0.2], dtype=torch.float64), torch.full((4,), 0.5, dtype=torch.float64)
    x = torch.ones(4, dtype=torch.float64)
    for _ in range(400):
        (x,) = ista_step([x], [x - a], [t], lr=0.1)
    torch.testing.assert_close(x, torch.tensor([1.5, -0.5, 0.0, 0.0], dtype=torch.float64))
    assert x[2:].tolist() == [0.0, 0.0]


def test_one_step_is_by_hand_dear_channels_lose_more_and_the_optimizer_has_no_say():
    model = chain(4, 2)
    set_(model[1], [1.0, -1.0, 1.0, 1.0])
    before = copy.deepcopy(model.state_dict())
    run = attached_to(model, even(0.01))
    dear = (9 * 1 + 1 * 2 + 16) / 16, (1 * 4 + 1 * 3 + 16) / 16  # own filter, readers, map of 4 x 4
    assert [run.costs[name].tolist() for name in ("0", "3")] == [[dear[0]] * 4, [dear[1]] * 2]
    gradient = torch.tensor([0.5, 0.0, -0.5, 0.0])
    here = moment(model, lr=0.1, momentum=0.9, weight_decay=0.1)
    step_with(run, here, {"1.weight": gradient.clone()})
    pull = 0.1 * 0.01 * dear[0]
    wanted = torch.tensor([1.0 - 0.05 - pull, -1.0 + pull, 1.0 + 0.05 - pull, 1.0 - pull])
    torch.testing.assert_close(model[1].weight.detach(), wanted)
    torch.testing.assert_close(model[4].weight.detach(), torch.ones(2) - 0.1 * 0.01 * dear[1])
    torch.testing.assert_close(model[0].weight.detach(), before["0.weight"] * (1 - 0.1 * 0.1))  # the optimizer's


def test_factors_that_scale_one_channel_share_its_cost():
    model = Residual()
    run = attached_to(model, even(0.01, residual="prune"), remove=0.1)
    step_with(run, moment(model, lr=0.1))
    cost = (9 * 1 + 9 * 6 + 9 * 6 + 3 + 2 * 16) / 16
    for norm in (model.stem_norm, model.norm2):
        torch.testing.assert_close(norm.weight.detach(), torch.ones(4) - 0.1 * 0.01 * cost / 2)


def test_a_channel_at_zero_stays_at_exactly_zero_until_its_gradient_outweighs_the_penalty():
    model = chain(4, 2)
    set_(model[1], [0.0, 0.0, 0.0, 1.0])
    run = attached_to(model, even(0.1))
    outweighs = 0.1 * float(run.costs["0"][0])
    gradient = outweighs * torch.tensor([0.99, -0.99, 1.01, 0.0])
    here = moment(model, momentum=0.9, weight_decay=0.1)
    for _ in range(3):
        step_with(run, here, {"1.weight": gradient.clone()})
    assert model[1].weight[:2].tolist() == [0.0, 0.0]
    assert model[1].weight[2] < 0


def test_the_penalty_is_small_at_first():
    run = attached_to(chain(), IstaBn(penalty=0.4, early_penalty=0.1, early_part=0.375))
    found = [run._penalty(moment(run.model, epoch=epoch, epoch_count=8)) for epoch in range(8)]
    assert found == [0.1, 0.1, 0.1, 0.4, 0.4, 0.4, 0.4, 0.4]


def test_costs_follow_the_graph():
    residual = memory_costs(trace(Residual(), IMAGES))
    assert residual["one"].tolist() == [(9 * 4 + 9 * 4 + 16) / 16] * 6
    stem = 9 * 1 + 9 * 6 + 9 * 6 + 3  # made by stem and two, read by one and head
    assert residual["stem"].tolist() == [(stem + 2 * 16) / 16] * 4
    depthwise = memory_costs(trace(inverted([1.0, 1.0], [1.0, 1.0]), IMAGES))
    assert depthwise["0"].tolist() == [(1 + 9 + 1 + 2 * 16) / 16] * 2  # the 9 of the depthwise filter once
    grouped = memory_costs(CASES["grouped"].graph)
    # Each is one channel in both halves of the grouped convolution, and is read by the filters of its half.
    assert grouped["enter"].tolist() == [2 * (9 * 3 + 9 * 6 + 64) / 64] * 4
    assert grouped["grouped"].tolist() == [2 * (9 * 4 + 10 + 64) / 64] * 6
    flat = nn.Sequential(nn.Conv2d(1, 2, 1), nn.Flatten(), nn.Linear(32, 3))
    assert memory_costs(trace(flat, IMAGES))["0"].tolist() == [(1 + 16 * 3 + 16) / 16] * 2
    mlp = nn.Sequential(nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 3))
    assert memory_costs(trace(mlp, torch.zeros(7, 5)))["0"].tolist() == [5 + 3 + 1] * 4


def test_costs_are_counted_anew_over_the_channels_that_are_left():
    model = chain(4, 6)
    run = attached_to(model)
    set_(model[1], [0.0, 0.0, 0.0, 1.0])
    set_(model[4], [0.0, 0.0, 1.0, 1.0, 1.0, 1.0])
    assert float(run.costs["0"][0]) == (9 + 6 + 16) / 16
    run.after_epoch(moment(model))
    assert run.costs["0"].tolist() == [(9 + 4 + 16) / 16] * 4
    assert run.costs["3"].tolist() == [(1 + 3 + 16) / 16] * 6
    weights = 3 * run.costs["0"][0] + 2 * run.costs["3"][0], 4 * run.costs["0"][0] + 6 * run.costs["3"][0]
    assert run.zero_fraction == pytest.approx(float(weights[0] / weights[1]))
    fresh = attached_to(chain(4, 6))
    fresh.load_state_dict(run.state_dict())
    assert fresh.costs["0"].tolist() == run.costs["0"].tolist()


class Mixed(nn.Module):
    """A transposed and a grouped convolution, branches side by side and a flattened map."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.enter, self.norm = nn.Conv2d(1, 4, 1), nn.BatchNorm2d(4)
        self.up, self.up_norm = nn.ConvTranspose2d(4, 6, 2, stride=2), nn.BatchNorm2d(6)
        self.left, self.right = nn.Conv2d(6, 4, 3, groups=2), nn.Conv2d(6, 2, 3)
        self.joined_norm, self.head = nn.BatchNorm2d(6), nn.Linear(6 * 9, 3)

    def forward(self, x):
        x = self.up_norm(self.up(self.norm(self.enter(x)).relu())).relu()
        x = self.joined_norm(torch.cat([self.left(x), self.right(x)], 1)).relu()
        return self.head(nn.functional.max_pool2d(x, 2).flatten(1))


def spread_out(model):
    generator = torch.Generator().manual_seed(3)
    model = model.double().eval()
    with torch.no_grad():
        for tensor in (*model.parameters(), *model.buffers()):
            if tensor.is_floating_point():
                tensor.copy_(torch.rand(tensor.shape, generator=generator) + 0.5)
                tensor.mul_(torch.where(torch.rand(tensor.shape, generator=generator) < 0.3, -1, 1)).abs_().sub_(
                    0.0 if tensor.min() > 0 else 0.2
                )
    return model


@pytest.mark.parametrize("alpha", [1.0, 0.3, 0.01])
@pytest.mark.parametrize("make", [chain, Mixed, Residual, lambda: inverted([1.0, 2.0], [3.0, -1.0])])
def test_rescaling_leaves_the_function_and_shrinks_the_scales(make, alpha):
    model = spread_out(make())
    images = torch.randn(2, 1, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    before, wanted = copy.deepcopy(model.state_dict()), model(images)
    run = attached_to(model, IstaBn(rescale=alpha, residual="prune"), example=images, remove=0.1)
    torch.testing.assert_close(model(images), wanted, rtol=1e-9, atol=1e-9)
    for name in run.scales.names:
        torch.testing.assert_close(model.state_dict()[name], alpha * before[name])
        shift = name.replace("weight", "bias")
        torch.testing.assert_close(model.state_dict()[shift], alpha * before[shift])
    run.after_epoch(moment(model, epoch=0))
    assert run.state_dict()["is_rescaled"] == (alpha < 1)
    run.after_epoch(moment(model, epoch=1))
    assert not run.state_dict()["is_rescaled"]
    for name, value in model.state_dict().items():
        torch.testing.assert_close(value, before[name], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("activation", [nn.Sigmoid(), nn.SiLU()])
def test_rescaling_is_refused_where_it_would_change_the_function_and_nothing_is_changed(activation):
    model = chain()
    model[5] = activation
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(MethodError, match=r"rescale=0.1 would change what the model computes .*as ReLU does"):
        attached_to(model, IstaBn(rescale=0.1))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_scales_reach_zero_sooner_after_rescaling():
    found = {}
    for alpha in (1.0, 0.1):
        model = chain()
        method = even(0.05, rescale=alpha)
        trained(model, attached_to(model, method), RECIPE.replace(epochs=6))
        found[alpha] = int((model[1].weight == 0).sum() + (model[4].weight == 0).sum())
    assert found[0.1] > found[1.0]


class Joined(nn.Module):
    def __init__(self):
        super().__init__()
        self.left, self.right = nn.Conv2d(1, 4, 1), nn.Conv2d(1, 4, 1)
        self.norm, self.head = nn.BatchNorm2d(8), nn.Conv2d(8, 3, 3)

    def forward(self, x):
        return self.head(self.norm(torch.cat([self.left(x), self.right(x)], 1)).relu()).mean((2, 3))


class Unpadded(Residual):
    def __init__(self):
        super().__init__()
        self.one, self.two = nn.Conv2d(4, 6, 1), nn.Conv2d(6, 4, 1)


@pytest.mark.parametrize("make", [lambda: chain(4, 6, padding=0), Joined, Unpadded])
def test_constants_leave_without_a_trace_where_nothing_is_padded(make):
    model = spread_out(make())
    for norm in (module for module in model.modules() if isinstance(module, nn.BatchNorm2d)):
        norm.weight.data[[0, -1]] = 0.0
    images = torch.randn(2, 1, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    given = problem(model, example=images, remove=2 / 12)
    found = IstaBn(residual="prune").attach(given).finish()
    assert found.plan.removed_count >= 2
    assert all(float(found.scores[name][i]) == 0 for name in found.plan for i in found.plan.removed(name))
    decision = folded(Decision(found.plan, model), given)
    small = shrink(decision.model, given.graph, found.plan)
    torch.testing.assert_close(small(images), model(images), rtol=1e-9, atol=1e-9)
    bare = shrink(model, given.graph, found.plan)
    assert (bare(images) - model(images)).abs().max() > 1e-3
    again = fold_constants(decision.model, given.graph, found.plan)  # as repair="fold" would
    torch.testing.assert_close(shrink(again, given.graph, found.plan)(images), model(images), rtol=1e-9, atol=1e-9)


def test_residual_streams_and_frozen_parts_of_a_norm_are_the_optimizers():
    model = Residual()
    run = attached_to(model, even(0.1), remove=0.3)
    assert run.scales.names == ("norm1.weight",)
    model = Joined()
    run = attached_to(model, even(0.1), protect=("left",), remove=0.25)
    gradient = torch.ones(8)
    here = moment(model, lr=0.1, momentum=0.5)
    for _ in range(2):
        step_with(run, here, {"norm.weight": gradient.clone()})
    torch.testing.assert_close(model.norm.weight[:4].detach(), torch.full((4,), 1 - 0.1 - 0.15))  # with momentum
    pull = 2 * 0.1 * 0.1 * float(run.costs["right"][0])
    torch.testing.assert_close(model.norm.weight[4:].detach(), torch.full((4,), 1 - 0.2 - pull))


def test_training_makes_exact_zeros_that_go_first_and_the_cut_model_computes_the_same(caplog):
    method = even(0.12, recipe=RECIPE.replace(epochs=40))
    given = problem(chain(padding=0, first=8, second=8), remove=0.25, data=batches())
    with caplog.at_level(logging.INFO):
        decision = method.decide(given)
    zeros = {name: own == 0 for name, own in decision.scores.items()}
    count = sum(int(own.sum()) for own in zeros.values())
    assert count >= 4
    assert all(bool(zeros[name][i]) for name in decision.plan for i in decision.plan.removed(name))
    assert "% of the penalty is at zero" in caplog.text
    assert (f"{count} channels are at zero and 4 of them go; more could" in caplog.text) == (count > 4)


def test_a_budget_that_training_did_not_reach_says_how_far_it_is(caplog):
    model = chain()
    set_(model[1], [0.0, 0.0, 0.5, 1.0])
    with caplog.at_level(logging.WARNING):
        attached_to(model, remove=0.5).finish()
    assert (
        "training brought 2 of the 5 channels that go to (nearly) zero; the largest of their scales is 1" in caplog.text
    )


def test_the_costs_of_the_epoch_before_count_when_a_run_is_taken_up():
    """Zeros of the epoch under way have no say, neither in a run that goes through nor in one that is taken up."""
    model = chain(4, 6)
    run = attached_to(model)
    state = run.state_dict()
    set_(model[1], [0.0, 0.0, 0.0, 1.0])
    fresh = attached_to(model)
    assert fresh.costs["3"].tolist() != run.costs["3"].tolist()
    fresh.load_state_dict(state)
    assert fresh.costs["3"].tolist() == run.costs["3"].tolist()


def test_bad_input_is_refused():
    plain = nn.Sequential(nn.Conv2d(1, 4, 1), nn.ReLU(), nn.Conv2d(4, 3, 1), nn.Flatten())
    with pytest.raises(MethodError, match=r"ista_bn trains the gains of normalisations.*method='l1_filter'"):
        attached_to(plain)


@pytest.mark.parametrize(
    "settings",
    [
        {"penalty": -1.0}, {"early_penalty": math.inf}, {"early_part": 1.5}, {"rescale": 0.0}, {"rescale": 2.0},
        {"rescale": math.nan},
    ],
)  # fmt: skip
def test_settings_without_sense_are_refused(settings):
    with pytest.raises(MethodError, match=f"{next(iter(settings))}="):
        IstaBn(**settings)


def test_pruning_keeps_what_was_learnt():
    result = prune(
        chain(8, 8), IMAGES, budget=Budget(0.5), data=batches(), task=TASK,
        method=even(0.01, recipe=RECIPE.replace(epochs=20)),
    )  # fmt: skip
    assert result.verification.is_exact
    images, labels = (torch.cat(each) for each in zip(*batches(), strict=True))
    with torch.no_grad():
        before = (result.decision.model.eval()(images).argmax(1) == labels).float().mean()
        after = (result.model.eval()(images).argmax(1) == labels).float().mean()
    assert after >= before - 0.02
    assert after > 0.6  # chance is a third
