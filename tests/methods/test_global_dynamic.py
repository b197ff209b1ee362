"""GDP: T is the derivative by the mask, the ranking is global, masked filters wait as they were and may return."""

import copy
import logging

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from secateur import Budget, Limits, mask, prune, shrink, trace
from secateur.attach import attach
from secateur.errors import BudgetError, MethodError
from secateur.methods import GlobalDynamic, Problem
from secateur.methods._filter_masks import mask_gradient
from secateur.train import Attachment, ClassificationTask, Moment, Recipe, fit

from ..contract.cases import CASES
from ..graph.test_cases import prepared
from ..train.cases import KillAt, Killed
from .attached_runs import lost_on_digits

DOUBLE = torch.float64
RECIPE = Recipe(epochs=4, lr=0.02, momentum=0.9, weight_decay=1e-2, schedule="constant")
BRISK = GlobalDynamic(interval=2, window=3, recipe=RECIPE)
LOG = "secateur.methods.global_dynamic"


class Masked(nn.Module):
    """Two convolutions, one normalised, and on request the paper's masks on their filters."""

    def __init__(self):
        super().__init__()
        self.one, self.two, self.norm = nn.Conv2d(1, 4, 3), nn.Conv2d(4, 5, 3, bias=False), nn.BatchNorm2d(5)
        self.head = nn.Linear(5 * 4, 3)
        self.masks = None

    def forward(self, x):
        weight, bias, scale = self.one.weight, self.one.bias, 1.0
        if self.masks is not None:
            first, second = self.masks.split([4, 5])
            weight, bias, scale = first.view(-1, 1, 1, 1) * weight, first * bias, second.view(1, -1, 1, 1)
        x = F.relu(F.conv2d(x, weight, bias))
        return self.head(F.relu(self.norm(self.two(x)) * scale).flatten(1))


def masked_model():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        model = Masked().double()
        nn.init.normal_(model.norm.weight)
        nn.init.normal_(model.norm.bias)
    return model


def batch(seed=0, count=16, size=6):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, 1, size, size, dtype=DOUBLE, generator=generator), torch.randint(
        3, (count,), generator=generator
    )


def problem(model, remove=0.3, data=None, **options):
    data = [batch(seed) for seed in range(4)] if data is None else data
    images = data[0][0]
    return Problem(model, trace(model, images), Budget(remove), args=(images,), data=data, task=ClassificationTask(),
                   **options)  # fmt: skip


def moment(model, step=0, epoch=0, epochs=10):
    return Moment(model, torch.optim.SGD(model.parameters(), 0.1), epoch, epochs, step, 0.1)


def backward(model, images, labels):
    model.zero_grad()
    loss = F.cross_entropy(model(images), labels)
    loss.backward()
    return loss.detach()


def test_t_is_the_derivative_by_the_mask_and_the_paper_s_sum_over_the_filter():
    model, (images, labels) = masked_model(), batch()
    attached = BRISK.attach(problem(model))
    model.masks = torch.ones(9, dtype=DOUBLE, requires_grad=True)
    backward(model, images, labels)
    attached.after_backward(moment(model))
    by_mask = model.masks.grad
    torch.testing.assert_close(attached.mean, by_mask.abs())
    one, norm = model.one, model.norm
    by_filter = (one.weight * one.weight.grad).sum((1, 2, 3)) + one.bias * one.bias.grad
    by_scale = norm.weight * norm.weight.grad + norm.bias * norm.bias.grad
    torch.testing.assert_close(attached.mean, torch.cat([by_filter, by_scale]).abs().detach())
    assert bool((by_mask < 0).any()), "signs differ, so that adding up before the absolute value would show"


def test_t_of_masked_filters_is_the_derivative_from_above_though_the_filter_s_own_gradient_is_zero():
    model, (images, labels) = masked_model(), batch()
    attached = GlobalDynamic(window=1, interval=1, search=1.0).attach(problem(model, remove=0.3))
    before = copy.deepcopy(model)
    backward(model, images, labels)
    attached.after_backward(moment(model))
    attached.after_step(moment(model))
    gone = ~attached.kept
    assert gone.sum() == 3
    backward(model, images, labels)
    attached.after_backward(moment(model, 1))
    keep = attached.kept.to(DOUBLE)
    for k in gone.nonzero().flatten().tolist():
        losses = []
        for value in (0.0, 1e-7):
            before.masks = keep.index_fill(0, torch.tensor([k]), value)
            with torch.no_grad():
                losses.append(F.cross_entropy(before(images), labels))
        torch.testing.assert_close(attached.mean[k], ((losses[1] - losses[0]) / 1e-7).abs(), rtol=1e-4, atol=1e-7)
        if k < 4:
            assert not model.one.weight.grad[k].any()
    assert bool((attached.mean[gone] > 0).any())


def test_in_a_linear_network_t_is_exactly_what_a_filter_changes():
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 1)).double()

    class Mean(ClassificationTask):
        def loss(self, output, batch):
            return output.mean()

    images = torch.randn(6, 3, dtype=DOUBLE, generator=torch.Generator().manual_seed(0))
    attached = BRISK.attach(problem(model, data=[(images, torch.zeros(6, dtype=torch.long))]))
    loss = model(images).mean()
    loss.backward()
    attached.after_backward(moment(model))
    for k in range(4):
        cut = copy.deepcopy(model)
        with torch.no_grad():
            cut[1].weight[:, k] = 0
            torch.testing.assert_close(attached.mean[k], (loss - cut(images).mean()).abs())


def test_t_is_averaged_by_size_batch_by_batch_over_the_window():
    model = masked_model()
    attached = GlobalDynamic(window=3).attach(problem(model))
    seen = []
    for seed in range(5):
        backward(model, *batch(seed))
        reader = model.two
        both = [mask_gradient(reader.weight, reader.weight.grad, 1).abs()]
        gradient = mask_gradient(model.head.weight, model.head.weight.grad, 1).view(5, 4).sum(1)
        seen.append(torch.cat([*both, gradient.abs()]).detach())
        attached.after_backward(moment(model, seed))
        if seed < 3:
            torch.testing.assert_close(attached.mean, torch.stack(seen).mean(0))
    old = torch.stack(seen[:3]).mean(0)
    for new in seen[3:]:
        old = old + (new - old) / 3
    torch.testing.assert_close(attached.mean, old)


def with_scores(model, scores, remove, method=None, **options):
    """Return an attachment as if T had been found to be this."""
    attached = (method or GlobalDynamic()).attach(problem(model, remove, **options))
    attached.mean, attached.step_count = torch.tensor(scores, dtype=DOUBLE), 1
    return attached


def test_ranking_is_over_all_layers_and_the_kept_count_is_the_fraction_rounded_down():
    scores = [0.1, 0.9, 0.2, 0.3, 5.0, 6.0, 0.25, 7.0, 8.0]
    plan = with_scores(masked_model(), scores, 0.4).finish().plan
    assert {name: plan.removed(name) for name in plan} == {"one": (0, 2, 3), "two": (2,)}  # not 2 and 2
    for remove in (0.1, 0.25, 1 / 3, 0.5, 0.7):
        plan = with_scores(masked_model(), scores, remove).finish().plan
        assert 9 - plan.removed_count == int((1 - remove) * 9 + 1e-9)


def test_every_layer_keeps_the_least_width():
    scores = [0.1, 0.2, 0.3, 0.4, 5.0, 6.0, 7.0, 8.0, 9.0]
    assert with_scores(masked_model(), scores, 0.4).finish().plan.kept["one"] == (3,)
    limits = Limits(min_keep=2)
    assert with_scores(masked_model(), scores, 0.4, limits=limits).finish().plan.kept["one"] == (2, 3)


def test_lengths_of_layers_can_be_evened_out():
    scores = [0.1, 0.2, 0.3, 0.4, 1.0, 8.0, 8.0, 8.0, 8.0]
    assert with_scores(masked_model(), scores, 0.1).finish().plan.removed("one") == (0,)
    plan = with_scores(masked_model(), scores, 0.1, GlobalDynamic(normalise=True)).finish().plan
    assert plan.removed("two") == (0,)


def run(method, model, steps, optimizer=None, task_for=None, epochs=10):
    """Train by hand on a task per step; return the attachment."""
    attached = method.attach(problem(model))
    optimizer = optimizer or torch.optim.SGD(model.parameters(), 0.05, 0.9, weight_decay=0.1)
    for step in range(steps):
        backward(model, *(task_for or batch)(step))
        here = Moment(model, optimizer, 0, epochs, step, 0.05)
        attached.after_backward(here)
        optimizer.step()
        attached.after_step(here)
    return attached


def test_masked_filters_do_not_move_whatever_decay_and_momentum_say():
    model = masked_model()
    optimizer = torch.optim.SGD(model.parameters(), 0.05, 0.9, weight_decay=0.1)
    attached = run(GlobalDynamic(interval=3, window=3), model, 3, optimizer)
    gone_one, gone_two = ((~kept).nonzero().flatten() for kept in attached.kept.split([4, 5]))
    assert len(gone_one) + len(gone_two) == 3
    columns = (gone_two[:, None] * 4 + torch.arange(4)).flatten()
    assert not model.two.weight[:, gone_one].any()
    assert not model.head.weight[:, columns].any()
    before, hidden = copy.deepcopy(model), copy.deepcopy(attached.masks.hidden())
    for step in range(3, 5):
        backward(model, *batch(step))
        here = Moment(model, optimizer, 0, 10, step, 0.05)
        attached.after_backward(here)
        optimizer.step()
        attached.after_step(here)
    for name, index in (("one", gone_one), ("two", gone_two), ("norm", gone_two)):
        for old, new in zip(getattr(before, name).parameters(), getattr(model, name).parameters(), strict=True):
            assert torch.equal(old[index], new[index])
    assert not model.two.weight[:, gone_one].any()
    assert not model.head.weight[:, columns].any()
    assert all(torch.equal(hidden[name], tensor) for name, tensor in attached.masks.hidden().items())
    kept_one = [k for k in range(4) if k not in gone_one.tolist()]
    assert not torch.equal(before.one.weight[kept_one], model.one.weight[kept_one]), "the others train"


class Switch(nn.Module):
    """Four features of the input, each read by one weight; nothing between."""

    def __init__(self):
        super().__init__()
        self.features, self.head = nn.Linear(4, 4, bias=False), nn.Linear(4, 1, bias=False)
        self.features.weight.data, self.head.weight.data = torch.eye(4), torch.ones(1, 4)

    def forward(self, x):
        return self.head(F.relu(self.features(x)))


def test_a_filter_made_useful_again_returns_with_the_weights_it_had():
    class Wanted(ClassificationTask):
        def loss(self, output, batch):
            return ((output[:, 0] - batch[1]) ** 2).mean()

    def task(wanted):
        images = torch.eye(4).repeat(2, 1)
        return images, (images * torch.tensor(wanted)).sum(1)

    model = Switch()
    early, late = task([9.0, 6.0, 4.0, 1.1]), task([1.0, 1.0, 4.0, 9.0])  # filter 3 hardly matters, then it does
    given = Problem(model, trace(model, early[0]), Budget(0.25), args=(early[0],), data=[early], task=Wanted())
    attached = GlobalDynamic(interval=4, window=4).attach(given)
    optimizer, row = torch.optim.SGD(model.parameters(), 0.01), []
    for step in range(12):
        images, wanted = early if step < 4 else late
        model.zero_grad()
        ((model(images)[:, 0] - wanted) ** 2).mean().backward()
        here = Moment(model, optimizer, 0, 10, step, 0.01)
        attached.after_backward(here)
        optimizer.step()
        attached.after_step(here)
        if step == 3:
            assert attached.kept.tolist() == [True, True, True, False]
            assert model.head.weight[0, 3] == 0
            row = model.features.weight[3].tolist(), attached.masks.hidden()["head.weight"][0, 3].item()
        if step == 7:
            assert attached.kept[3]
            assert (model.features.weight[3].tolist(), model.head.weight[0, 3].item()) == row
            assert model.head.weight[0].count_nonzero() == 3
    assert attached.kept[3]


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_the_small_network_is_the_one_that_was_trained(case):
    given = case.problem(0.3, dtype=DOUBLE)
    method = GlobalDynamic(interval=2, search=0.5, recipe=RECIPE)
    attached = method.attach(given)
    fit(given.model, given.data, given.task, RECIPE, attachments=[attached], progress=False)
    plan = attached.finish().plan
    images, model = case.images(DOUBLE), given.model.eval()
    with torch.no_grad():
        wanted = model(images)
        torch.testing.assert_close(mask(model, case.graph, plan)(images), wanted)
        torch.testing.assert_close(shrink(model, case.graph_in(DOUBLE), plan)(images), wanted)


def test_masks_are_fixed_after_the_search_and_t_is_no_longer_asked_for():
    case, seen = CASES["plain"], []
    given = case.problem(0.3)
    attached = GlobalDynamic(interval=1, search=0.5).attach(given)

    class Look(Attachment):
        def after_step(self, here):
            seen.append((here.epoch, attached.kept.clone(), attached.step_count))

    recipe = RECIPE.replace(lr=0.1)
    fit(given.model, given.data, given.task, recipe, attachments=[attached, Look()], progress=False)
    assert len({tuple(kept.tolist()) for epoch, kept, _ in seen if epoch >= 2}) == 1
    assert {count for epoch, _, count in seen if epoch >= 2} == {8}
    decision = attached.finish()
    assert torch.equal(torch.cat(list(decision.scores.values())), attached.scores)


def test_a_run_shorter_than_the_interval_sets_its_masks_at_the_end_of_the_search():
    decision = GlobalDynamic(recipe=RECIPE).decide(CASES["plain"].problem(0.3))
    assert decision.plan.removed_count == 9
    gone = list(decision.plan.removed("conv1"))
    assert not decision.model.conv2.weight[:, gone].any()


@pytest.mark.parametrize("step", [0, 2, 3, 5, 9, 13])
def test_a_run_killed_at_any_step_ends_with_the_same_plan_and_weights(tmp_path, step):
    case = CASES["concat"]

    def train(kill, folder):
        given = case.problem(0.3)
        attached = BRISK.attach(given)
        options = {"checkpoint_dir": folder, "checkpoint_steps": 1, "progress": False}
        fit(given.model, given.data, given.task, RECIPE, attachments=[attached, kill], **options)
        return attached.finish(), given.model

    whole, model = train(KillAt("never", 0), tmp_path / "whole")
    with pytest.raises(Killed):
        train(KillAt("after_step", step), tmp_path / "killed")
    resumed, other = train(KillAt("never", 0), tmp_path / "killed")
    assert resumed.plan == whole.plan
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True))
    assert all(torch.equal(whole.scores[name], resumed.scores[name]) for name in whole.scores)


def test_state_of_another_method_or_model_is_refused():
    attached = BRISK.attach(CASES["plain"].problem())
    other = BRISK.attach(CASES["concat"].problem()).state_dict()
    for state in ({"method": "soft_filter"}, {}, other):
        with pytest.raises(MethodError, match=r"global_dynamic was given .* to go on from"):
            attached.load_state_dict(state)


def test_a_loop_of_one_s_own_gives_what_ours_gives():
    case = CASES["concat"]
    given, task = case.problem(), ClassificationTask()
    model = given.model
    attached = attach(model, case.images(), method=BRISK, budget=given.budget)
    optimizer = RECIPE.make_optimizer(model.parameters())
    model.train()
    for step in range(16):
        images, labels = case.data()[step % 4]
        here = Moment(model, optimizer, step // 4, 4, step, RECIPE.lr)
        optimizer.zero_grad()
        task.loss(model(images), (images, labels)).backward()
        attached.after_backward(here)
        optimizer.step()
        attached.after_step(here)
        if step % 4 == 3:
            attached.after_epoch(here)
    ours = BRISK.decide(case.problem(data=case.data()))
    assert attached.finish().plan == ours.plan
    for one, other in zip(model.parameters(), ours.model.parameters(), strict=True):
        torch.testing.assert_close(one, other)


def test_residual_streams_are_masked_on_request():
    case = CASES["residual"]
    assert sorted(GlobalDynamic().attach(case.problem(0.2)).widths) == ["conv1", "conv3"]
    method = GlobalDynamic(interval=2, residual="prune", recipe=RECIPE)
    given = {"data": case.data(), "task": ClassificationTask(), "budget": Budget(0.3)}
    result = prune(case.model(), case.images(), method=method, **given)
    assert result.verification.is_exact
    assert sorted(method.attach(case.problem(0.2)).widths) == ["conv1", "conv3", "conv4", "stem"]


def test_what_no_weight_reads_is_refused_with_the_reason():
    model, args, kwargs, graph = prepared("mean_over_channels")
    with pytest.raises(MethodError, match=r"global_dynamic can mask the channels of no group.*by mean"):
        GlobalDynamic().attach(Problem(model, graph, Budget(0.2), args=args, kwargs=kwargs))


def test_readers_that_do_not_train_leave_what_they_read_whole(caplog):
    model = masked_model()
    model.two.weight.requires_grad_(False)
    with caplog.at_level(logging.INFO, logger="secateur.methods"):
        assert list(GlobalDynamic().attach(problem(model, 0.2)).widths) == ["two"]
    assert "one ('two.weight' does not train)" in caplog.text


def test_an_optimizer_without_the_masked_weights_is_refused():
    model = masked_model()
    attached = GlobalDynamic().attach(problem(model))
    optimizer = torch.optim.SGD(model.one.parameters(), 0.1)
    with pytest.raises(MethodError, match=r"'two.weight', and the SGD of this run does not hold it"):
        attached.after_backward(Moment(model, optimizer, 0, 1, 0, 0.1))


def test_a_model_that_was_not_trained_and_a_budget_out_of_reach_are_told(caplog):
    with pytest.raises(MethodError, match="has seen no step"):
        GlobalDynamic().attach(problem(masked_model())).finish()
    with pytest.raises(BudgetError, match="at most"):
        GlobalDynamic().attach(problem(masked_model(), 0.99))
    with caplog.at_level(logging.WARNING, logger=LOG):
        with_scores(masked_model(), [1.0] * 9, 0.2).finish()
    assert "before masks were first set (interval=500)" in caplog.text


@pytest.mark.parametrize(
    ("setting", "value"), [("interval", 0), ("window", 0), ("search", 0.0), ("search", 1.5), ("search", float("nan"))]
)
def test_senseless_setting_is_refused(setting, value):
    with pytest.raises(MethodError, match=f"{setting}="):
        GlobalDynamic(**{setting: value})


@pytest.mark.slow
def test_digits_lose_less_than_two_points():
    assert lost_on_digits(GlobalDynamic(interval=20, window=20, recipe=Recipe(epochs=8, lr=0.01))) < 0.02
