"""AOFP: damages by hand and on their own, the search on simulated damages, and training that never notices."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from secateur import mask
from secateur.budget import Budget, Limits
from secateur.errors import BudgetError, MethodError
from secateur.graph import trace
from secateur.methods import Aofp, Problem
from secateur.methods._damage import Damages, relative_damage
from secateur.methods.aofp import Search
from secateur.train import ClassificationTask, Recipe, fit

# -- the search, on damages made up ------------------------------------------------------------------------------------


def simulate(own, *, threshold, batches=100, floor=1, moves=None, halves=1000):
    """Search with damages that add up: a mask does what its channels do alone. Returns the moves."""
    search, found = Search(len(own), floor, seed=3), []
    for _ in range(halves):
        if not search.is_open or len(found) == moves:
            break
        for _ in range(batches):
            drawn = search.draw()
            search.note(drawn, float(own[drawn].sum()))
        if gone := search.halve(threshold):
            found.append(gone)
    return found


def test_additive_damages_are_ranked_as_the_channels_alone_would_be():
    own = torch.tensor([5.0, 1.0, 7.0, 3.0, 2.0, 8.0, 6.0, 4.0])
    search = Search(8, 1, seed=0)
    for _ in range(3000):
        drawn = search.draw()
        search.note(drawn, float(own[drawn].sum()))
    assert search.means.argsort().tolist() == own.argsort().tolist()
    expected = own + 3 / 7 * (own.sum() - own)  # a_j + (g - 1) / (n - 1) * what the others do
    torch.testing.assert_close(search.means, expected.double(), rtol=0.02, atol=0)


def test_a_mask_is_half_of_the_space_and_only_of_the_space():
    search = Search(7, 1, seed=0)
    search._search(torch.tensor([1, 2, 4, 5, 6]))
    drawn = torch.stack([search.draw() for _ in range(200)])
    assert drawn.sum(dim=1).tolist() == [2] * 200
    assert drawn.any(dim=0).tolist() == [False, True, True, False, True, True, True]


def test_only_dead_channels_go_until_none_is_left():
    own = torch.ones(16)
    dead = [1, 2, 5, 8, 9, 12, 14, 15]
    own[dead] = 0.0
    found = simulate(own, threshold=0.5, halves=60)
    gone = [channel for move in found for channel in move]
    assert sorted(gone) == dead
    assert len(gone) == len(set(gone))


def test_the_search_goes_down_to_one_channel_before_it_starts_anew():
    search, sizes = Search(16, 1, seed=0), []
    for _ in range(5):
        sizes.append(len(search.space))
        search.note(search.draw() | True, 1.0)  # every channel credited alike, above the threshold
        assert search.halve(0.5) == []
    assert sizes == [16, 8, 4, 2, 16]


def test_the_worst_of_the_better_half_decides_and_has_to_be_below_the_threshold():
    for last, gone in ((0.49, [2, 0]), (0.5, [])):
        search = Search(5, 1, seed=0)
        for channel, damage in enumerate([last, 3.0, 0.1, 4.0, 5.0]):
            search.note(torch.arange(5) == channel, damage)
        assert search.halve(0.5) == gone
        assert search.space.tolist() == ([1, 3, 4] if gone else [0, 2])


def test_a_channel_that_no_mask_held_does_not_go():
    search = Search(4, 1, seed=0)
    search.note(torch.tensor([True, False, False, False]), 0.0)
    assert search.halve(0.5) == []  # of the better half one was never measured
    assert 0 in search.space.tolist()


def test_no_fewer_stay_than_have_to():
    found = simulate(torch.arange(10).float(), threshold=math.inf, floor=4)
    gone = [channel for move in found for channel in move]
    assert sorted(gone) == [0, 1, 2, 3, 4, 5]
    assert [len(move) for move in found] == [5, 1]


# -- damages on a network ----------------------------------------------------------------------------------------------


def test_the_damage_is_relative_and_squared():
    assert relative_damage(torch.tensor([[2.0, 0.0]]), torch.tensor([[1.0, 1.0]])) == 0.5
    assert relative_damage(torch.zeros(3), torch.zeros(3)) == 0.0
    assert relative_damage(torch.zeros(3), torch.ones(3)) == math.inf


class Net(nn.Module):
    """Two normalised convolutions, a pool, a flattened map."""

    def __init__(self):
        super().__init__()
        self.one, self.bn1 = nn.Conv2d(2, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6)
        self.two, self.bn2 = nn.Conv2d(6, 8, 3), nn.BatchNorm2d(8)
        self.relu, self.head = nn.ReLU(inplace=True), nn.Linear(8 * 4, 3)

    def forward(self, x):
        x = self.relu(self.bn1(self.one(x)))
        return self.head(F.max_pool2d(self.relu(self.bn2(self.two(x))), 2).flatten(1))


@pytest.fixture
def net():
    torch.manual_seed(0)
    model = Net()
    for bn in (model.bn1, model.bn2):
        nn.init.uniform_(bn.weight, 0.5, 2.0), nn.init.normal_(bn.bias), nn.init.normal_(bn.running_mean)
    return model


IMAGES = torch.randn(12, 2, 6, 6, generator=torch.Generator().manual_seed(1))


def chosen(width, *channels):
    return torch.isin(torch.arange(width), torch.tensor(channels))


def test_the_damage_is_seen_after_norm_and_activation_with_the_batchs_own_statistics(net):
    damages = Damages.of(trace(net, IMAGES[:1]), ["one", "two"])
    with torch.no_grad():
        net.eval()
        one = F.relu(net.bn1(net.one(IMAGES)))
        net.train()
        after = [F.relu(copy.deepcopy(net.bn2)(net.two(x))) for x in (one, one * ~chosen(6, 1, 4).view(1, -1, 1, 1))]
        net.eval()
        two = F.max_pool2d(F.relu(net.bn2(net.two(one))), 2)
        logits = [net.head(x.flatten(1)) for x in (two, two * ~chosen(8, 3).view(1, -1, 1, 1))]
    found = damages.measure(net.train(), ((IMAGES,), {}), {"one": chosen(6, 1, 4), "two": chosen(8, 3)})
    assert found["one"] == pytest.approx(relative_damage(*after), rel=1e-4)
    assert found["two"] == pytest.approx(relative_damage(*logits), rel=1e-4)


def test_masks_of_different_layers_do_not_mix(net):
    damages = Damages.of(trace(net, IMAGES[:1]), ["one", "two"])
    masks = {"one": chosen(6, 0, 1, 2), "two": chosen(8, 0, 7)}
    together = damages.measure(net, ((IMAGES,), {}), masks)
    for name, own in masks.items():
        assert damages.measure(net, ((IMAGES,), {}), {name: own}) == {name: together[name]}


def test_nothing_is_damaged_just_where_nothing_reads(net):
    for bn in (net.bn1, net.bn2):  # no channel is dead by itself
        bn.bias.data.fill_(2.0), bn.running_mean.zero_()
    net.two.weight.data[:, 1] = 0.0
    net.head.weight.data.view(3, 8, 4)[:, 5] = 0.0
    damages = Damages.of(trace(net, IMAGES[:1]), ["one", "two"])
    found = [damages.measure(net, ((IMAGES,), {}), {"one": chosen(6, k), "two": chosen(8, k)}) for k in range(6)]
    assert [each["one"] == 0.0 for each in found] == [False, True, False, False, False, False]
    assert [each["two"] == 0.0 for each in found] == [False] * 5 + [True]


class Fork(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.left, self.right = nn.Conv2d(2, 4, 1), nn.Conv2d(4, 3, 1), nn.Conv2d(4, 3, 1)

    def forward(self, x):
        x = torch.tanh(self.stem(x))
        return self.left(x), torch.sigmoid(self.right(x))


def test_a_group_suffers_what_all_its_readers_suffer():
    model = Fork()
    damages = Damages.of(trace(model, IMAGES[:1]), ["stem"])
    with torch.no_grad():
        x = torch.tanh(model.stem(IMAGES))
        y = x * ~chosen(4, 2).view(1, -1, 1, 1)
        wanted = relative_damage(model.left(x), model.left(y))
        wanted += relative_damage(torch.sigmoid(model.right(x)), torch.sigmoid(model.right(y)))
    assert damages.measure(model, ((IMAGES,), {}), {"stem": chosen(4, 2)})["stem"] == pytest.approx(wanted, rel=1e-4)


def test_measuring_leaves_no_trace(net):
    before = copy.deepcopy(net.train().state_dict())
    Damages.of(trace(net, IMAGES[:1]), ["one"]).measure(net, ((IMAGES,), {}), {"one": chosen(6, 0)})
    assert all(torch.equal(before[name], tensor) for name, tensor in net.state_dict().items())
    assert net.training


# -- the method --------------------------------------------------------------------------------------------------------


LABELS = torch.randint(3, (12,), generator=torch.Generator().manual_seed(2))
DATA = [(IMAGES[k : k + 4], LABELS[k : k + 4]) for k in (0, 4, 8)]


def problem(model, remove=0.25, of="channels", **limits):
    return Problem(
        model,
        trace(model, IMAGES[:1]),
        Budget(remove, of),
        Limits(**limits),
        (IMAGES[:1],),
        data=DATA,
        task=ClassificationTask(),
        seed=5,
    )


def test_training_does_not_notice_the_masks(net):
    plain = copy.deepcopy(net)
    recipe = Recipe(4, 0.05, schedule="constant", seed=5)
    fit(plain, DATA, ClassificationTask(), recipe)
    never = Aofp(threshold=1e-12, iters_per_half=2, warmup=0, epochs=4, lr=0.05)
    trained = never.decide(problem(net)).model
    changed = [n for n, t in plain.state_dict().items() if not torch.equal(t, trained.state_dict()[n])]
    assert not changed


def test_the_last_move_takes_no_more_than_the_budget(net):
    always = Aofp(threshold=1e9, iters_per_half=3, warmup=0, epochs=20)
    for remove, count in ((0.25, 4), (0.05, 1), (0.6, 9)):
        decision = always.decide(problem(net, remove))
        assert decision.plan.removed_count == count
        gone = {name: decision.plan.removed(name) for name in decision.plan}
        zero = {
            "one": tuple((decision.model.one.weight.flatten(1) == 0).all(dim=1).nonzero().flatten().tolist()),
            "two": tuple((decision.model.two.weight.flatten(1) == 0).all(dim=1).nonzero().flatten().tolist()),
        }
        assert zero == {"one": gone.get("one", ()), "two": gone.get("two", ())}


def test_the_trained_model_is_the_one_without_what_went(net):
    own = problem(net, 0.4)
    decision = Aofp(threshold=1e9, iters_per_half=3, warmup=0, epochs=20).decide(own)
    again = mask(decision.model, own.graph, decision.plan)
    with torch.no_grad():
        torch.testing.assert_close(again.eval()(IMAGES), decision.model.eval()(IMAGES), rtol=0, atol=0)


def test_training_goes_on_until_a_layer_gives_something_up(net):
    with torch.no_grad():  # three filters of the second layer feed nothing
        net.head.weight.view(3, 8, 4)[:, [1, 5, 6]] = 0.0
        net.bn2.weight[[1, 5, 6]], net.bn2.bias[[1, 5, 6]] = 0.0, 0.0
    patient = Aofp(threshold=1e-6, iters_per_half=30, warmup=0, epochs=200, weight_decay=0.0, shortfall="error")
    decision = patient.decide(problem(net, 3 / 14))
    assert {n: decision.plan.removed(n) for n in decision.plan if decision.plan.removed(n)} == {"two": (1, 5, 6)}


def test_a_budget_that_moves_do_not_reach_is_filled_up_or_refused(net, caplog):
    strict = {"threshold": 1e-12, "iters_per_half": 4, "warmup": 0, "epochs": 2}
    decision = Aofp(**strict).decide(problem(net, 0.5))
    assert decision.plan.removed_count == 7
    assert "reached 0.0%" in caplog.text
    for name in ("one", "two"):
        gone, kept = list(decision.plan.removed(name)), list(decision.plan.kept[name])
        assert decision.scores[name][gone].max() <= decision.scores[name][kept].min()
    with pytest.raises(MethodError, match=r"reached 0\.0%.*raise epochs= or threshold="):
        Aofp(**strict, shortfall="error").decide(problem(net, 0.5))


def test_warm_up_and_stagger_are_waited_for(net, monkeypatch):
    seen = []
    real = Damages.measure

    def measure(self, model, inputs, masks):
        seen.append(sorted(masks))
        return real(self, model, inputs, masks)

    monkeypatch.setattr(Damages, "measure", measure)
    Aofp(threshold=1e-12, iters_per_half=6, warmup=4, epochs=4).decide(problem(net))
    assert seen == [["one"]] * 3 + [["one", "two"]] * 5  # 12 steps, from the 4th on, the second layer 6 // 2 later


def test_limits_hold_while_it_searches(net):
    always = Aofp(threshold=1e9, iters_per_half=2, warmup=0, epochs=30)
    plan = always.decide(problem(net, 0.5, min_keep=3)).plan
    assert min(len(plan.kept[name]) for name in ("one", "two")) >= 3
    plan = always.decide(problem(net, 0.4, round_to=2)).plan
    assert all(len(plan.kept[name]) % 2 == 0 for name in ("one", "two"))
    with pytest.raises(BudgetError, match="at most"):
        always.decide(problem(net, 0.9, min_keep=5))


def test_nothing_to_remove_is_no_reason_to_train(net):
    decision = Aofp().decide(problem(net, 0.0))
    assert decision.model is None
    assert not decision.plan.removed_count


def test_bad_values_are_reported_with_their_layer(net):
    own = problem(net)
    bad = [(torch.full_like(images, float("nan")), labels) for images, labels in DATA]
    with pytest.raises(MethodError, match="NaN or infinite"):
        Aofp(warmup=0, epochs=1).decide(Problem(net, own.graph, own.budget, data=bad, task=own.task))


def test_batches_of_another_shape_are_reported(net):
    own = problem(net)
    with pytest.raises(MethodError, match="has to fit the model"):
        Aofp(warmup=0, epochs=1).decide(
            Problem(net, own.graph, own.budget, data=[(torch.zeros(2, 5, 6, 6), LABELS[:2])], task=own.task)
        )


def test_channels_of_a_grouped_convolution_and_before_a_depthwise_one_are_masked_where_they_are_read():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(2, 4, 1), nn.Conv2d(4, 4, 3, groups=4), nn.ReLU(), nn.Conv2d(4, 6, 1, groups=2), nn.Conv2d(6, 2, 1)
    )
    graph = trace(model, IMAGES[:1])
    damages = Damages.of(graph, list(graph.groups))
    (name,) = (name for name, group in graph.groups.items() if {"0:out", "1:out"} <= group.labels)
    width = graph.groups[name].width
    with torch.no_grad():
        read = model[:3](IMAGES)
        places = [k for k in range(4) if k % width == 1]  # channel k of each block goes with channel k of the other
        out, masked = model[3](read), model[3](read * ~chosen(4, *places).view(1, -1, 1, 1))
    found = damages.measure(model, ((IMAGES,), {}), {name: chosen(width, 1)})
    assert found[name] == pytest.approx(relative_damage(out, masked), rel=1e-4)


@pytest.mark.parametrize(
    "setting",
    [{"threshold": 0.0}, {"iters_per_half": 0}, {"warmup": -1}, {"epochs": 0}, {"lr": 0.0}, {"shortfall": "x"}],
)
def test_settings_without_sense_are_refused(setting):
    with pytest.raises(MethodError, match=next(iter(setting))):
        Aofp(**setting)
