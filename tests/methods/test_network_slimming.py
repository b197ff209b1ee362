"""Network Slimming: exact steps, planted factors, what is penalised and what is not, resume at any step."""

from __future__ import annotations

import copy
import logging
import math

import pytest
import torch
from torch import nn

from secateur import Budget, fold_constants, prune, prune_iteratively, shrink
from secateur.catalogue import find
from secateur.errors import BudgetError, MethodError, NothingToPrune
from secateur.methods import NetworkSlimming
from secateur.train import Recipe

from .scale_runs import (
    IMAGES,
    RECIPE,
    TASK,
    Residual,
    batches,
    by_hand,
    chain,
    moment,
    problem,
    set_,
    step_with,
    trained,
)
from .test_bn_scale import inverted

LOG = "secateur.methods._scales"


def attached_to(model, method=None, **options):
    return (method or NetworkSlimming()).attach(problem(model, **options))


def removed(plan):
    return {name: plan.removed(name) for name in plan if plan.removed(name)}


def gains(model):
    return {name: p.detach().clone() for name, p in model.named_parameters() if name in ("1.weight", "4.weight")}


@pytest.mark.parametrize("form", ["subgradient", "proximal"])
def test_a_step_without_gradient_moves_each_factor_by_lr_times_penalty_towards_zero(form):
    model = chain(4, 2).double()
    set_(model[1], [0.5, -0.25, 2.0, 1.0])
    model[1].double()
    before = copy.deepcopy(model.state_dict())
    run = attached_to(model, NetworkSlimming(penalty=0.125, form=form), example=IMAGES.double())
    step_with(run, moment(model, lr=0.25))
    step = 0.25 * 0.125
    assert model[1].weight.tolist() == [0.5 - step, -0.25 + step, 2.0 - step, 1.0 - step]
    assert torch.equal(model[4].weight, before["4.weight"] - step)
    others = [name for name in before if name not in ("1.weight", "4.weight")]
    assert all(torch.equal(model.state_dict()[name], before[name]) for name in others)


def test_a_factor_below_one_step_swings_by_the_subgradient_and_stays_at_zero_by_the_proximal_step():
    found = {}
    for form in ("subgradient", "proximal"):
        model = chain(4, 2)
        set_(model[1], [0.01, -0.01, 0.0, 1.0])
        run = attached_to(model, NetworkSlimming(penalty=0.5, form=form))
        here = moment(model, lr=0.1)
        step_with(run, here)
        step_with(run, here)
        found[form] = model[1].weight.detach()[:3]
    torch.testing.assert_close(found["subgradient"], torch.tensor([0.01, -0.01, 0.0]))  # there and back again
    assert found["proximal"].tolist() == [0.0, 0.0, 0.0]


def test_the_penalty_is_the_gradient_of_the_sum_of_absolute_factors():
    model, twin = chain(), chain()
    run = attached_to(model, NetworkSlimming(penalty=0.01))
    by_hand(model, run, RECIPE.replace(epochs=1))
    optimizer = torch.optim.SGD(twin.parameters(), 0.1, 0.9, weight_decay=1e-4)
    for images, labels in batches():
        optimizer.zero_grad()
        penalty = 0.01 * (twin[1].weight.abs().sum() + twin[4].weight.abs().sum())
        (nn.functional.cross_entropy(twin(images), labels) + penalty).backward()
        optimizer.step()
    for (name, one), other in zip(model.named_parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(one, other, msg=name)


def test_of_planted_factors_exactly_the_smallest_go_whatever_layer_they_are_in():
    model = chain(10, 10)
    order = torch.randperm(20, generator=torch.Generator().manual_seed(2))
    signs = torch.tensor([1.0, -1.0]).repeat(10)
    values = (order + 1) * signs
    set_(model[1], values[:10].tolist())
    set_(model[4], values[10:].tolist())
    plan = attached_to(model, remove=0.3).finish().plan
    smallest = order.argsort()[: math.ceil(0.3 * 20)].tolist()
    assert removed(plan) == {
        "0": tuple(sorted(i for i in smallest if i < 10)),
        "3": tuple(sorted(i - 10 for i in smallest if i >= 10)),
    }


def test_ties_at_the_threshold_do_not_all_go_and_no_layer_is_emptied(caplog):
    model = chain(10, 10)
    set_(model[1], [0.0] * 10)
    with caplog.at_level(logging.WARNING, logger=LOG):
        plan = attached_to(model, remove=0.3).finish().plan
        assert removed(plan) == {"0": tuple(range(6))}
        plan = attached_to(model, remove=0.6, min_keep=2).finish().plan
    assert len(plan.kept["0"]) == 2
    assert plan.removed_count == 12
    assert "no scale to speak of in 0: at least 2 channels stay there" in caplog.text
    assert "8 of the 12 channels that go to (nearly) zero; the largest of their scales is 1" in caplog.text


def test_a_dead_channel_with_a_shift_folds_into_the_next_layer_without_a_trace():
    model = chain(4, 6).eval()
    model[3] = nn.Conv2d(4, 6, 1)
    set_(model[1], [1.0, 0.0, 1.5, 2.0], [0.1, 0.7, -0.2, 0.3])
    run = attached_to(model, remove=0.1)
    plan = run.finish().plan
    assert removed(plan) == {"0": (1,)}
    images, graph = batches()[0][0], run.problem.graph
    small = shrink(fold_constants(model, graph, plan), graph, plan)
    bare = shrink(model, graph, plan)
    with torch.no_grad():
        torch.testing.assert_close(small(images), model(images), atol=1e-5, rtol=0)
        assert (bare(images) - model(images)).abs().max() > 1e-3


@pytest.mark.parametrize("fold", [True, False])
def test_the_decision_folds_what_its_channels_contributed_unless_asked_not_to(fold):
    model = chain()
    set_(model[4], [1.0, 0.0, 1.0, 1.0, 1.0, 1.0], [0.0, 0.7, 0.0, 0.0, 0.0, 0.0])
    method = NetworkSlimming(penalty=0.0, fold=fold, recipe=RECIPE.replace(lr=1e-9, weight_decay=0.0))
    decision = method.decide(problem(model, remove=0.1, data=batches()))
    assert removed(decision.plan) == {"3": (1,)}
    wanted = model[8].bias + (0.7 * model[8].weight[:, 1] if fold else 0.0)
    torch.testing.assert_close(decision.model[8].bias, wanted)
    again = fold_constants(decision.model, problem(model).graph, decision.plan)
    if fold:
        torch.testing.assert_close(again[8].bias, wanted)


def test_residual_streams_are_neither_penalised_nor_cut_unless_asked_for():
    model = Residual()
    before = copy.deepcopy(model.state_dict())
    run = attached_to(model, NetworkSlimming(penalty=1.0), remove=0.3)
    assert run.scales.names == ("norm1.weight",)
    step_with(run, moment(model))
    assert torch.equal(model.stem_norm.weight, before["stem_norm.weight"])
    assert torch.equal(model.norm2.weight, before["norm2.weight"])
    assert not torch.equal(model.norm1.weight, before["norm1.weight"])
    assert list(removed(run.finish().plan)) == ["one"]
    model = Residual()
    run = attached_to(model, NetworkSlimming(penalty=1.0, residual="prune"))
    assert run.scales.names == ("stem_norm.weight", "norm1.weight", "norm2.weight")
    set_(model.stem_norm, [0.0, 4.0, 1.0, 0.0])
    set_(model.norm2, [0.0, 0.0, 2.0, -5.0])
    assert run.finish().scores["stem"].tolist() == [0.0, 2.0, 1.5, 2.5]


def test_a_norm_behind_a_depthwise_convolution_is_left_alone():
    model = inverted([1.0, 2.0], [-5.0, 0.0])
    run = attached_to(model, NetworkSlimming(penalty=1.0))
    assert run.scales.names == ("1.weight",)
    assert run.finish().scores["0"].tolist() == [1.0, 2.0]
    lone = nn.Sequential(*list(model)[:1], *list(model)[3:])  # without the first norm there is only the second
    assert attached_to(lone).finish().scores["0"].tolist() == [5.0, 0.0]


def test_of_a_norm_over_joined_branches_only_the_part_that_may_go_is_penalised():
    class Joined(nn.Module):
        def __init__(self):
            super().__init__()
            self.left, self.right = nn.Conv2d(1, 2, 1), nn.Conv2d(1, 2, 1)
            self.norm, self.head = set_(nn.BatchNorm2d(4), [1.0, 2.0, 4.0, 3.0]), nn.Conv2d(4, 1, 1)

        def forward(self, x):
            return self.head(self.norm(torch.cat([self.left(x), self.right(x)], dim=1)))

    model = Joined()
    run = attached_to(model, NetworkSlimming(penalty=1.0), protect=("left",), remove=0.25)
    step_with(run, moment(model, lr=0.5))
    assert model.norm.weight.tolist() == [1.0, 2.0, 3.5, 2.5]
    assert removed(run.finish().plan) == {"right": (1,)}


def test_the_penalty_drives_scales_to_zero_and_none_without_it():
    found = {}
    for penalty in (0.0, 0.05):
        model = chain()
        method = NetworkSlimming(penalty=penalty, form="proximal")
        trained(model, attached_to(model, method), RECIPE.replace(epochs=20, weight_decay=0.0))
        found[penalty] = int((torch.cat(list(gains(model).values())) == 0).sum())
    assert found[0.0] == 0
    assert 0 < found[0.05] < 10


def test_scales_start_where_asked_and_stay_otherwise():
    model = Residual()
    for norm in (model.stem_norm, model.norm1, model.norm2):
        nn.init.uniform_(norm.weight, 1, 2), nn.init.uniform_(norm.bias, 1, 2)
    before = copy.deepcopy(model.state_dict())
    attached_to(model, remove=0.3)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    attached_to(model, NetworkSlimming(initial_scale=0.5), remove=0.3)
    for norm in (model.stem_norm, model.norm1, model.norm2):  # in the paper's code all of them
        assert set(norm.weight.tolist()) == {0.5}
        assert set(norm.bias.tolist()) == {0.0}
    given = problem(chain(), data=batches())
    NetworkSlimming(initial_scale=0.5, recipe=RECIPE).decide(given)
    assert set(given.model[1].weight.tolist()) == {1.0}


def test_the_state_of_other_settings_is_refused():
    run = attached_to(chain())
    run.load_state_dict(run.state_dict())
    other = attached_to(chain(), NetworkSlimming(penalty=0.5))
    with pytest.raises(MethodError, match=r"a run with penalty=0.5: this one has penalty=0.0001"):
        run.load_state_dict(other.state_dict())


def test_an_optimizer_that_does_not_hold_the_scales_is_refused():
    model = chain()
    run = attached_to(model)
    here = moment(model)
    here.optimizer.param_groups[0]["params"] = [model[1].weight, model[0].weight]
    with pytest.raises(MethodError, match=r"the optimizer does not hold 4.weight: give it model.parameters"):
        run.after_backward(here)
    model[1].weight.requires_grad_(False)
    with pytest.raises(MethodError, match=r"1.weight does not require gradients: set requires_grad, or protect"):
        attached_to(model)


def test_a_model_without_normalisation_is_refused_and_told_what_would_do():
    plain = nn.Sequential(nn.Conv2d(1, 4, 1), nn.ReLU(), nn.Conv2d(4, 3, 1), nn.Flatten())
    with pytest.raises(MethodError, match=r"none follows any of the 1 groups .*\(0\): use .*method='l1_filter'"):
        attached_to(plain)
    affine = nn.Sequential(nn.Conv2d(1, 4, 1), nn.BatchNorm2d(4, affine=False), nn.Conv2d(4, 3, 1))
    with pytest.raises(MethodError, match="network_slimming trains the gains of normalisations"):
        attached_to(affine)


def test_groups_without_a_norm_stay_whole_and_are_named(caplog):
    model = nn.Sequential(nn.Conv2d(1, 4, 1), nn.ReLU(), *chain(4, 6)[3:6], nn.Conv2d(6, 1, 1))
    with caplog.at_level(logging.INFO, logger=LOG):
        plan = attached_to(model, remove=0.5).finish().plan
    assert "left whole: 0" in caplog.text
    assert list(removed(plan)) == ["2"]
    with pytest.raises(BudgetError, match="at most 50"):
        attached_to(model, remove=0.6)


def test_what_cannot_be_is_told_before_training():
    class Untouchable(list):
        def __iter__(self):
            raise AssertionError("it reads data")

    for method, options, error, message in [
        (NetworkSlimming(), {"remove": 0.95}, BudgetError, "at most"),
        (NetworkSlimming(residual="keep"), {}, MethodError, "residual='keep'"),
        (NetworkSlimming(allocation="even"), {}, MethodError, "allocation='even'"),
        (NetworkSlimming(), {"protect": ("",)}, NothingToPrune, "protect"),
    ]:
        with pytest.raises(error, match=message):
            method.decide(problem(chain(), data=Untouchable(), **options))


@pytest.mark.parametrize(
    "settings",
    [
        {"penalty": -1.0}, {"penalty": math.nan}, {"penalty": math.inf}, {"form": "huber"}, {"initial_scale": 0.0},
    ],
)  # fmt: skip
def test_settings_without_sense_are_refused(settings):
    with pytest.raises(MethodError, match=f"{next(iter(settings))}="):
        NetworkSlimming(**settings)


def test_training_that_diverges_says_so():
    model = chain()
    model[1].weight.data[0] = math.nan
    with pytest.raises(MethodError, match=r"'1.weight' holds NaN or infinite"):
        attached_to(model)
    model = chain()
    run = attached_to(model)
    model[4].weight.data[0] = math.inf
    with pytest.raises(MethodError, match="the gains of 3 are not finite after training"):
        run.finish()


def test_several_passes_train_with_the_penalty_before_every_cut():
    method = NetworkSlimming(penalty=0.01, recipe=RECIPE.replace(epochs=1))
    result = prune_iteratively(
        chain(), IMAGES, budget=Budget(0.5), steps=2, data=batches(), task=TASK, method=method,
        recipe=RECIPE.replace(epochs=1), progress=False,
    )  # fmt: skip
    assert result.plan.removed_count == 5
    assert [round(step.got, 2) for step in result.history] == [0.3, 0.5]


def test_a_recipe_may_be_given_as_changes_to_the_papers():
    made = find("network_slimming").make(recipe={"epochs": 2, "seed": 1})
    assert made.recipe == NetworkSlimming().recipe.replace(epochs=2, seed=1)
    assert find("network_slimming").make(recipe=RECIPE).recipe == RECIPE
    assert isinstance(made.recipe, Recipe)


def test_pruning_keeps_what_was_learnt():
    result = prune(
        chain(8, 8), IMAGES, budget=Budget(0.5), data=batches(), task=TASK,
        method=NetworkSlimming(penalty=0.05, form="proximal", recipe=RECIPE.replace(epochs=20)),
    )  # fmt: skip
    assert result.verification.is_exact
    images, labels = (torch.cat(each) for each in zip(*batches(), strict=True))
    with torch.no_grad():
        before = (result.decision.model.eval()(images).argmax(1) == labels).float().mean()
        after = (result.model.eval()(images).argmax(1) == labels).float().mean()
    assert after >= before - 0.02
    assert after > 0.6  # chance is a third
