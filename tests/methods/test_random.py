"""Random pruning cuts the same layers by the same counts as a filter method, and draws which channels."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from secateur.budget import Budget, Limits
from secateur.errors import MethodError, NothingToPrune
from secateur.graph import trace
from secateur.methods._problem import Problem
from secateur.methods.l1_filter import L1Filter
from secateur.methods.random import Random
from secateur.models import digits_resnet


def net():
    return nn.Sequential(nn.Conv2d(1, 16, 1), nn.ReLU(), nn.Conv2d(16, 8, 1), nn.ReLU(), nn.Conv2d(8, 2, 1))


def decide(model, *, seed=0, remove=0.5, method=None, shape=(1, 1, 2, 2), **limits):
    example = torch.zeros(shape)
    problem = Problem(model, trace(model, example), Budget(remove), Limits(**limits), (example,), seed=seed)
    return (method or Random()).decide(problem).plan


def test_the_same_seed_draws_the_same_channels_and_another_seed_others():
    model = net()
    assert decide(model, seed=3) == decide(model, seed=3)
    assert len({decide(model, seed=seed) for seed in range(20)}) == 20


def test_the_global_random_numbers_are_neither_read_nor_changed():
    model = net()
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = decide(model)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    assert decide(model) == first


def test_weights_do_not_matter():
    model = net()
    plan = decide(model)
    with torch.no_grad():
        model[0].weight.copy_(torch.arange(16.0).view(16, 1, 1, 1) * 1000)
    assert decide(model) == plan


def test_every_channel_is_drawn_equally_often():
    example = torch.zeros(1, 1, 2, 2)
    problem = Problem(net(), trace(net(), example), Budget(0.5), Limits(), (example,))
    counts = torch.zeros(16)
    for seed in range(400):
        counts[list(Random().decide(replace(problem, seed=seed)).plan.removed("0"))] += 1
    # 200 expected of each; 5 standard deviations of a fair coin are 50
    assert counts.sum() == 400 * 8
    assert (counts - 200).abs().max() < 50


def test_layers_are_drawn_independently():
    model = nn.Sequential(nn.Conv2d(1, 8, 1), nn.Conv2d(8, 8, 1), nn.Conv2d(8, 2, 1))
    plans = [decide(model, seed=seed) for seed in range(20)]
    assert any(plan.removed("0") != plan.removed("1") for plan in plans)


@pytest.mark.parametrize("residual", ["projection", "skip", "prune"])
@pytest.mark.parametrize("remove", [0.1, 0.2])
def test_it_cuts_what_a_filter_method_cuts(residual, remove):
    model = digits_resnet()
    plans = [
        decide(model, method=kind(residual=residual), remove=remove, shape=(1, 1, 8, 8)) for kind in (Random, L1Filter)
    ]
    counts = [{name: len(kept) for name, kept in plan.kept.items()} for plan in plans]
    assert counts[0] == counts[1]
    assert plans[0] != plans[1]


def test_a_draw_over_all_layers_spreads_unevenly():
    model = nn.Sequential(nn.Conv2d(1, 16, 1), nn.Conv2d(16, 16, 1), nn.Conv2d(16, 2, 1))
    plans = [decide(model, seed=seed, method=Random(allocation="global")) for seed in range(10)]
    assert all(plan.removed_count == 16 for plan in plans)
    assert any(len(plan.removed("0")) != 8 for plan in plans)


def test_protected_layers_stay_whole():
    plan = decide(net(), remove=0.2, protect=["0"])
    assert not plan.removed("0")
    with pytest.raises(NothingToPrune, match="2 of them protected"):
        decide(net(), protect=["0", "2"])


def test_weights_that_are_not_finite_are_refused_although_none_is_read():
    model = net()
    with torch.no_grad():
        model[2].weight[0, 0, 0, 0] = torch.inf
    with pytest.raises(MethodError, match=r"'2\.weight' holds NaN or infinite"):
        decide(model)
