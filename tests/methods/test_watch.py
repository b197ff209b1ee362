"""Where channels stand after each epoch: as the method itself would cut, and without a trace on its run."""

from __future__ import annotations

import dataclasses
import json

import pytest
import torch
from torch import nn

import secateur as sc
from secateur.catalogue import CATALOGUE
from secateur.errors import MethodError
from secateur.methods import GroupFisher, NetworkSlimming, SoftFilter, Watch
from secateur.methods._attached import TrainingMethod
from secateur.methods._history import Standing, costs_of_widths
from secateur.train import ClassificationTask, Recipe, Tracking, fit

from ..train.cases import KillAt, Killed
from .attached_runs import RECIPE, batches, moment_of, problem_of, run, small_net

TRAINING_METHODS = [name for name, row in CATALOGUE.items() if isinstance(row.make(), TrainingMethod)]


def trained(method, *others, folder=None, watched=True):
    model = small_net()
    attached = method.attach(problem_of(model, remove=0.4))
    watch = Watch(attached)
    fit(
        model,
        batches(),
        ClassificationTask(),
        RECIPE,
        attachments=[*others, attached, *([watch] if watched else [])],
        checkpoint_dir=folder,
        checkpoint_steps=1 if folder else None,
        progress=False,
    )
    return model, attached, watch


@pytest.mark.parametrize("name", TRAINING_METHODS)
def test_every_method_shows_where_its_channels_stand_and_that_is_what_it_cuts(name):
    row = CATALOGUE[name]
    _, attached, watch = trained(row.make(**{k: v for k, v in row.brief.items() if k != "recipe"}))
    history, graph = watch.history, attached.problem.graph
    assert [view.epoch for view in history.epochs] == [1, 2, 3]
    for view in history.epochs:
        assert {n: len(scores) for n, scores in view.scores.items()} == history.widths
        assert all(0 <= view.live[n] <= width for n, width in history.widths.items())
        assert view.if_cut.channels <= 0.6 * history.before.channels + 1
    plan = attached.finish().plan
    assert history.epochs[-1].kept == {n: len(plan.kept[n]) for n in history.epochs[-1].kept}
    assert history.epochs[-1].if_cut == graph.costs(plan)
    assert json.loads(json.dumps(history.to_dict()))["epochs"][2]["kept"] == history.epochs[-1].kept


@pytest.mark.parametrize("name", TRAINING_METHODS)
def test_looking_leaves_no_trace(name):
    row = CATALOGUE[name]
    settings = {k: v for k, v in row.brief.items() if k != "recipe"}
    (one, first, _), (other, second, _) = trained(row.make(**settings), watched=False), trained(row.make(**settings))
    state = torch.random.get_rng_state()
    second.standing()
    assert torch.equal(state, torch.random.get_rng_state())
    assert first.finish().plan == second.finish().plan
    assert all(torch.equal(one.state_dict()[key], value) for key, value in other.state_dict().items())


def test_a_resumed_run_remembers_earlier_epochs(tmp_path):
    method = NetworkSlimming()
    whole = trained(method)[2].history
    with pytest.raises(Killed):
        trained(method, KillAt("after_step", 6), folder=tmp_path)
    resumed = trained(method, KillAt("never", 0), folder=tmp_path)[2].history
    assert resumed.to_dict() == whole.to_dict()


def test_zeroed_filters_are_out_and_those_that_moved_again_are_not():
    model = small_net()
    attached = SoftFilter().attach(problem_of(model, remove=0.5))
    assert set(attached.standing().out.values()) == {0}
    attached.after_epoch(moment_of(model))
    assert attached.standing().out == {"0": 4, "3": 3}
    with torch.no_grad():
        model[0].weight.add_(0.01)
    assert attached.standing().out == {"0": 0, "3": 3}


def test_gains_at_zero_are_out_for_methods_that_penalise_them():
    model = small_net()
    with torch.no_grad():
        model[1].weight[:3] = 0.0
    standing = NetworkSlimming(fold=False).attach(problem_of(model, remove=0.2)).standing()
    assert standing.out == {"0": 3, "3": 0}
    assert standing.scores["0"].tolist() == [0.0] * 3 + [1.0] * 5
    assert standing.kept == {"0": 5, "3": 6}


def test_removed_channels_are_out_and_the_rest_goes_at_the_cut():
    _, attached, decision = run(GroupFisher(interval=6), remove=0.4)
    standing = attached.standing()
    assert sum(standing.out.values()) == 2, "12 steps, one every 6"
    assert sum(standing.kept.values()) == 14 - decision.plan.removed_count < 12


def test_a_budget_by_sensitivity_is_not_guessed():
    attached = NetworkSlimming(allocation="sensitivity").attach(problem_of(small_net()))
    watch = Watch(attached)
    assert attached.standing().kept == {}
    watch.after_epoch(moment_of(attached.model))
    assert watch.history.epochs[0].if_cut is None
    assert not [name for name in watch.measurements() if "if_cut" in name]


def test_costs_of_widths_are_those_of_the_cut_model():
    net = nn.Sequential(nn.Conv2d(3, 8, 3, bias=False), nn.ReLU(), nn.Conv2d(8, 2, 1, bias=False))
    costs = costs_of_widths(sc.trace(net, torch.zeros(1, 3, 6, 6)), {"0": 5})
    assert (costs.macs, costs.params) == (16 * (5 * 27 + 5 * 2), 5 * 27 + 5 * 2)


def test_measurements_name_widths_costs_and_scores():
    _, attached, watch = trained(SoftFilter())
    found, view = watch.measurements(), watch.history.epochs[-1]
    assert found["width_if_cut/0"] == view.kept["0"]
    assert found["width_so_far/3"] == view.live["3"]
    assert found["budget/macs_so_far"] == view.so_far.macs
    assert found["budget/channels_if_cut"] == view.if_cut.channels
    assert torch.equal(found["scores/0"], view.scores["0"])
    assert Watch(attached).measurements() == {}


def test_a_method_that_does_not_say_leaves_an_empty_history():
    attached = SoftFilter().attach(problem_of(small_net()))
    attached.standing = lambda: None
    watch = Watch(attached)
    watch.after_epoch(moment_of(attached.model))
    assert watch.history.epochs == ()
    assert watch.history.to_dict()["widths"] == {}


def test_scores_in_the_history_do_not_change_with_the_model():
    attached = NetworkSlimming().attach(problem_of(small_net()))
    standing = Standing({"0": torch.ones(8)}, {"0": 4}, {"0": 0})
    attached.standing = lambda: standing
    watch = Watch(attached)
    watch.after_epoch(moment_of(attached.model))
    standing.scores["0"].zero_()
    assert watch.history.epochs[0].scores["0"].tolist() == [1.0] * 8


def shortly(dtype=torch.float32):
    return {"budget": sc.Budget(0.4), "data": batches(dtype), "task": ClassificationTask()}


def test_prune_returns_the_history_of_a_training_method_only():
    model, images = small_net(torch.float32), torch.zeros(1, 3, 6, 6)
    method = SoftFilter(recipe=Recipe(epochs=2, lr=0.01))
    history = sc.prune(model, images, method=method, **shortly()).decision.history
    assert [view.epoch for view in history.epochs] == [1, 2]
    assert history.budget == sc.Budget(0.4)
    assert sc.prune(model, images, method="l1_filter", **shortly()).decision.history is None


@pytest.mark.filterwarnings("ignore")
def test_prune_shows_a_training_method_in_tensorboard(tmp_path):
    pytest.importorskip("tensorboard")
    from ..train.test_tracking import events

    model, images = small_net(torch.float32), torch.zeros(1, 3, 6, 6)
    method = SoftFilter(recipe=Recipe(epochs=2, lr=0.01))
    shown = Tracking("tensorboard", tmp_path, "sfp")
    history = sc.prune(model, images, method=method, tracking=shown, **shortly()).decision.history
    found = events(tmp_path / "sfp")
    assert [e.value for e in found.Scalars("budget/macs_if_cut")] == [view.if_cut.macs for view in history.epochs]
    assert [e.histogram_value.num for e in found.Histograms("scores/0")] == [8, 8]


def test_tracking_a_method_that_takes_no_part_in_training_is_refused(monkeypatch, tmp_path):
    monkeypatch.setattr("secateur.train.tracking.find_spec", lambda name: True)
    shown = dataclasses.replace(Tracking("mlflow"), folder=tmp_path)
    with pytest.raises(MethodError, match="L1Filter takes no part in training"):
        sc.prune(small_net(torch.float32), torch.zeros(1, 3, 6, 6), method="l1_filter", tracking=shown, **shortly())


def test_prune_goes_on_from_checkpoints_of_a_training_method_and_refuses_them_elsewhere(tmp_path):
    model, images = small_net(torch.float32), torch.zeros(1, 3, 6, 6)
    method = SoftFilter(recipe=Recipe(epochs=2, lr=0.01))
    first = sc.prune(model, images, method=method, checkpoint_dir=tmp_path, **shortly())
    assert len(list(tmp_path.glob("epoch-*"))) == 2
    untrained = shortly() | {"data": [(batch[0] * torch.nan, *batch[1:]) for batch in shortly()["data"]]}
    untrained |= {"repair": ()}
    again = sc.prune(model, images, method=method, checkpoint_dir=tmp_path, **untrained)
    assert again.plan == first.plan, "nothing is trained again: these batches cannot be trained on"
    with pytest.raises(MethodError, match="nothing to keep"):
        sc.prune(model, images, method="l1_filter", checkpoint_dir=tmp_path, **shortly())
