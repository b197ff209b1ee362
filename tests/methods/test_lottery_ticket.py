"""Lottery tickets: rounds, what is rewound to what, which recipe each round has, and exact counts."""

from __future__ import annotations

import copy
import math
from itertools import pairwise

import pytest
import torch
from torch import nn

from secateur import Budget, WeightPlan
from secateur.errors import MethodError
from secateur.methods import LotteryTicket, Magnitude, Pattern, WeightProblem, lottery_ticket
from secateur.methods.lottery_ticket import shares_of
from secateur.train import Attachment, ClassificationTask, fit

from .attached_runs import RECIPE, batches, small_net
from .weight_runs import trainable, weight_problem

SHORT = RECIPE.replace(epochs=2, schedule="cosine")


@pytest.fixture
def trained(monkeypatch):
    """What each training begins with: recipe, weights and zeros; they train as ever."""
    found, train_ = [], lottery_ticket.train_

    def spy(name, model, problem, recipe, attachments=()):
        found.append((recipe, copy.deepcopy(model.state_dict()), getattr(attachments[0], "plan", None)))
        train_(name, model, problem, recipe, attachments)

    monkeypatch.setattr(lottery_ticket, "train_", spy)
    return found


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def masked(state, plan):
    return {name: tensor * plan.kept[name] if name in plan.kept else tensor for name, tensor in state.items()}


@pytest.mark.parametrize(
    ("per_round", "remove", "expected"),
    [(0.5, 0.75, [0.5, 0.75]), (0.5, 0.8, [0.5, 0.75, 0.8]), (0.9, 0.5, [0.5]), (0.2, 0.36, [0.2, 0.36])],
)
def test_each_round_takes_its_part_of_what_is_left_and_the_last_less(per_round, remove, expected):
    assert [share * remove for share in shares_of(per_round, round(1000 * remove), 1000)] == pytest.approx(expected)


def test_every_round_of_weight_rewinding_begins_with_the_weights_of_the_start(trained):
    model = small_net()
    start = copy.deepcopy(model.state_dict())
    decision = LotteryTicket(0.4, recipe=SHORT).choose(trainable(model, 0.7))
    assert len(trained) == 4, "the whole, then 40, 64 and 70 % gone"
    for recipe, weights, plan in trained:
        assert recipe == SHORT.replace(seed=RECIPE.seed)
        assert same(weights, start if plan is None else masked(start, plan))
    assert trained[-1][2] == decision.plan
    assert same(model.state_dict(), start), "the model that was given stays"


def test_the_ticket_is_the_start_under_the_mask_and_the_mask_is_of_trained_weights():
    model = small_net()
    decision = LotteryTicket(0.9, train_last=False, recipe=SHORT).choose(trainable(model, 0.5))
    assert same(decision.model.state_dict(), masked(model.state_dict(), decision.plan))
    fit(model, batches(), ClassificationTask(), SHORT.replace(seed=RECIPE.seed), progress=False)
    assert decision.plan == Magnitude().choose(weight_problem(model, 0.5)).plan
    assert decision.plan != Magnitude().choose(weight_problem(small_net(), 0.5)).plan


class WeightsAfter(Attachment):
    def __init__(self, epoch):
        self.epoch, self.weights = epoch, {}

    def after_epoch(self, moment):
        if moment.epoch == self.epoch:
            self.weights = copy.deepcopy(moment.model.state_dict())


def test_rewinding_to_an_epoch_takes_its_weights_and_statistics_and_trains_from_there(trained):
    recipe, seen = RECIPE.replace(schedule="cosine"), WeightsAfter(0)
    decision = LotteryTicket(0.3, rewind_epoch=1, recipe=recipe).choose(trainable(remove=0.5))
    fit(small_net(), batches(), ClassificationTask(), recipe, attachments=[seen], progress=False)
    assert [own.first_epoch for own, _, _ in trained] == [0, 1, 1]
    for _, weights, plan in trained[1:]:
        assert same(weights, masked(seen.weights, plan))
    assert WeightPlan.of_zeros(decision.model, decision.plan) == decision.plan


@pytest.mark.parametrize("retrain", ["rewind_lr", "finetune"])
def test_the_others_keep_the_weights_they_have(retrain, trained):
    model = small_net()
    method = LotteryTicket(0.3, retrain, rewind_epoch=1, recipe=RECIPE)
    decision = method.choose(trainable(model, 0.5))
    first, second = trained
    assert same(first[1], masked(model.state_dict(), first[2]))
    assert first[2].removed_count == math.floor(0.3 * first[2].weight_count)
    assert not same(second[1], masked(model.state_dict(), decision.plan)), "trained between the rounds"
    if retrain == "rewind_lr":
        assert first[0] == second[0] == RECIPE.replace(first_epoch=1)
    else:
        assert first[0] == second[0] == RECIPE.replace(epochs=2, lr=RECIPE.lr / 10)


def test_one_round_of_fine_tuning_is_one_shot_magnitude_pruning():
    model = small_net()
    decision = LotteryTicket(0.9, "finetune", train_last=False).choose(trainable(model, 0.6))
    assert decision.plan == Magnitude().choose(weight_problem(model, 0.6)).plan
    assert same(decision.model.state_dict(), masked(model.state_dict(), decision.plan))


@pytest.mark.parametrize("retrain", ["rewind_weights", "rewind_lr", "finetune"])
@pytest.mark.parametrize("scope", ["global", "layer", "row"])
def test_counts_are_exact_and_what_is_gone_stays_gone(retrain, scope, trained):
    method = LotteryTicket(0.3, retrain, scope=scope, recipe=SHORT.replace(epochs=1))
    decision = method.choose(trainable(remove=0.613))
    plans = [plan for _, _, plan in trained if plan is not None]
    assert decision.plan.removed_count == math.ceil(0.613 * decision.plan.weight_count)
    assert decision.plan == plans[-1]
    for fewer, more in pairwise(plans):
        assert not [name for name in fewer if bool((~fewer.kept[name] & more.kept[name]).any())]
    assert WeightPlan.of_zeros(decision.model, decision.plan) == decision.plan


def test_what_is_gone_does_not_come_back_where_another_weight_came_to_be_zero():
    """The other one is zero too, and comes first: a tie by position would take it and rewind the one that is gone."""
    model = nn.Linear(4, 1, bias=False)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[0.0, 0.0, 3.0, 4.0]]))
    before = WeightPlan({"weight": torch.tensor([[True, False, True, True]])})
    plan, scores = LotteryTicket()._remove(model, WeightProblem(model, Budget(0.25, "weights")), 1.0, before)
    assert plan.kept["weight"].tolist() == [[True, False, True, True]]
    assert scores["weight"].tolist() == [[0.0, -1.0, 3.0, 4.0]]


def test_blocks_are_exact():
    decision = LotteryTicket(0.3, recipe=SHORT.replace(epochs=1)).choose(
        trainable(remove=0.5, pattern=Pattern(1, 2, uneven="pad"))
    )
    kept = decision.plan.kept["8.weight"].unflatten(1, (-1, 2))
    assert bool((kept.sum(-1) == 1).all())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"per_round": 0.0}, "per_round=0.0"),
        ({"per_round": 1}, "per_round=1"),
        ({"retrain": "rewind"}, "retrain='rewind'"),
        ({"rewind_epoch": 182}, "epochs 0 to 181"),
        ({"rewind_epoch": 2, "recipe": RECIPE.replace(epochs=9, first_epoch=3)}, "epochs 3 to 8"),
        ({"scope": "all"}, "scope="),
    ],
)
def test_settings_without_sense_are_refused(settings, message):
    with pytest.raises(MethodError, match=message):
        LotteryTicket(**settings)
