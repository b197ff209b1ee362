"""Group Fisher: gradients of masks against finite differences, what is divided by what, one removal after another."""

from __future__ import annotations

import logging

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from secateur import shrink, trace
from secateur.errors import MethodError
from secateur.methods import GroupFisher
from secateur.methods.group_fisher import fisher_per_saving, memory_per_channel
from secateur.train import Recipe

from .attached_runs import (
    batches,
    lost_on_digits,
    moment_of,
    problem_of,
    run,
    small_net,
)
from .test_l1_filter import chain

RAW = {"per": "none"}
LOG = "secateur.methods.group_fisher"


class TwoReaders(nn.Module):
    """One layer of three channels that two others read."""

    def __init__(self, one, other):
        super().__init__()
        self.make = nn.Linear(3, 3, bias=False)
        self.one, self.other = nn.Linear(3, 1, bias=False), nn.Linear(3, 1, bias=False)
        with torch.no_grad():
            self.make.weight.copy_(torch.eye(3))
            self.one.weight.copy_(torch.tensor([one]))
            self.other.weight.copy_(torch.tensor([other]))
        self.double()

    def forward(self, x, mask=1.0):
        x = self.make(x) * mask
        return self.one(x) + self.other(x)


def backward(attached, model, loss):
    for parameter in model.parameters():
        parameter.grad = None
    loss.backward()
    attached.after_backward(moment_of(model))


def see(attached, model, loss):
    """A step at which the weights stay where they are."""
    backward(attached, model, loss)
    attached.after_step(moment_of(model))


def test_scores_are_squares_of_gradients_times_weights_added_up_over_batches():
    model = TwoReaders([1.0, 2.0, 3.0], [0.0, 0.0, 0.0])
    attached = GroupFisher(interval=99, **RAW).attach(problem_of(model, 1, 3, remove=1 / 3))
    for x in ([3.0, 1.0, 2.0], [-1.0, 1.0, 0.0]):
        see(attached, model, model(torch.tensor([x]).double()).sum())
    # dL/dm_c = x_c w_c: (3, 2, 6), then (-1, 2, 0)
    assert attached.finish().scores["make"].tolist() == [10.0, 8.0, 36.0]


def test_gradients_of_all_layers_that_read_a_channel_are_added_before_squaring():
    model = TwoReaders([2.0, 1.0, 5.0], [-2.0, 1.0, 5.0])  # 4 + 4 = 8 > 1 + 1 = 2 if squares were added
    attached = GroupFisher(interval=99, **RAW).attach(problem_of(model, 1, 3, remove=1 / 3))
    see(attached, model, model(torch.ones(1, 3).double()).sum())
    decision = attached.finish()
    assert decision.scores["make"].tolist() == [0.0, 4.0, 100.0]
    assert decision.plan.removed("make") == (0,)


def test_a_batch_is_one_sample_of_the_fisher_information():
    model = TwoReaders([1.0, 2.0, 3.0], [0.0, 0.0, 0.0])
    attached = GroupFisher(interval=99, **RAW).attach(problem_of(model, 1, 3, remove=1 / 3))
    see(attached, model, model(torch.tensor([[3.0, 1.0, 1.0], [-1.0, 1.0, 1.0]]).double()).mean())
    assert attached.finish().scores["make"].tolist() == [1.0, 4.0, 9.0]  # of the mean: (3 - 1) / 2 squared


def test_the_gradient_of_a_mask_is_the_finite_difference_of_the_loss():
    """On convolutions with batch normalisation in training mode, and a flattened map."""
    torch.manual_seed(0)
    model = nn.Sequential(
        *(nn.Conv2d(2, 5, 3), nn.BatchNorm2d(5), nn.Tanh()),
        *(nn.Conv2d(5, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU()),
        *(nn.Flatten(), nn.Linear(16, 3)),
    ).double()
    images, labels = torch.randn(6, 2, 4, 4).double(), torch.randint(3, (6,))
    attached = GroupFisher(interval=99, **RAW).attach(problem_of(model, 1, 2, 4, 4))
    backward(attached, model, F.cross_entropy(model(images), labels))
    found = dict(zip(("0", "3"), attached._fisher.split([5, 4]), strict=True))

    def loss(after, mask):
        x = images
        for k, module in enumerate(model):
            x = module(x) * mask.view(1, -1, 1, 1) if k == after else module(x)
        return F.cross_entropy(x, labels).item()

    for name, after in (("0", 2), ("3", 5)):
        for c in range(len(found[name])):
            step = torch.zeros(len(found[name])).double()
            step[c] = 1e-4
            slope = (loss(after, 1 + step) - loss(after, 1 - step)) / 2e-4
            assert found[name][c].item() == pytest.approx(slope**2, rel=1e-4, abs=1e-12)


def pyramid():
    """A large map of two channels, then a small one of four."""
    return nn.Sequential(nn.Conv2d(1, 2, 3, padding=1), nn.Conv2d(2, 4, 3, stride=4), nn.Conv2d(4, 1, 2)).double()


def test_memory_of_a_channel_is_its_map():
    assert memory_per_channel(trace(pyramid(), torch.zeros(1, 1, 8, 8).double())) == {"0": 64.0, "1": 4.0}


def test_memory_of_a_residual_stream_and_of_a_head_is_all_that_holds_them():
    class Stream(nn.Module):
        def __init__(self):
            super().__init__()
            self.enter, self.inner, self.back = nn.Linear(2, 3), nn.Linear(3, 5), nn.Linear(5, 3)
            self.head = nn.Linear(3, 1)

        def forward(self, x):
            x = self.enter(x)
            return self.head(x + self.back(self.inner(x).relu()))

    assert memory_per_channel(trace(Stream(), torch.zeros(7, 2))) == {"enter": 14.0, "inner": 7.0}


def test_macs_saved_are_those_of_the_network_as_it_is_now():
    model = pyramid()
    attached = GroupFisher(per="macs").attach(problem_of(model, 1, 1, 8, 8, remove=0.5))
    # a channel of 0: 9 * 64 to make it and 4 channels * 4 places * 9 to read it; of 1: 2 * 9 * 4 and 4
    assert attached._saved() == {"0": 576.0 + 144.0, "1": 72.0 + 4.0}
    attached._gone["1"] = [0, 2]
    assert attached._saved() == {"0": 576.0 + 72.0, "1": 72.0 + 4.0}
    attached._gone["0"] = [1]
    assert attached._saved() == {"0": 576.0 + 72.0, "1": 36.0 + 4.0}


def test_dividing_by_what_is_saved_changes_what_goes():
    found = {}
    for per in ("none", "memory", "macs"):
        model = pyramid()
        attached = GroupFisher(interval=99, per=per).attach(problem_of(model, 1, 1, 8, 8, remove=1 / 6))
        attached._fisher = torch.tensor([200.0, 300.0, 22.0, 15.0, 30.0, 40.0], dtype=torch.float64)
        attached._step_count = 1
        plan = attached.finish().plan
        found[per] = {name: plan.removed(name) for name in plan if plan.removed(name)}
    # memory: 3.1, 4.7 and 5.5, 3.75, 7.5, 10; macs: 0.28, 0.42 and 0.29, 0.197, ...
    assert found == {"none": {"1": (1,)}, "memory": {"0": (0,)}, "macs": {"1": (1,)}}


def test_channels_go_one_at_a_time_and_sums_start_anew():
    model = TwoReaders([1.0, 2.0, 3.0], [0.0, 0.0, 0.0])
    attached = GroupFisher(interval=2, **RAW).attach(problem_of(model, 1, 3, remove=2 / 3))
    x = torch.tensor([[9.0, 1.0, 1.0]]).double()  # s: 81, 4, 9
    see(attached, model, model(x).sum())
    assert attached._gone == {"make": []}
    see(attached, model, model(x).sum())
    assert attached._gone == {"make": [1]}
    assert not model.make.weight[1].any()
    assert not model.one.weight[:, 1].any()
    assert not attached._fisher.any()
    x = torch.tensor([[1.0, 9.0, 1.0]]).double()  # now the first matters least, the one that has gone not at all
    see(attached, model, model(x).sum())
    see(attached, model, model(x).sum())
    decision = attached.finish()
    assert decision.plan.removed("make") == (0, 1)
    assert attached._is_done
    assert decision.scores["make"].tolist() == [0.0, 0.0, 18.0]


def test_a_bigger_step_removes_several_at_once():
    _, attached, decision = run(GroupFisher(interval=3, channels_per_removal=4))
    assert attached._is_done
    assert decision.plan.removed_count == 7


def test_what_has_gone_stays_at_zero_and_the_cut_computes_what_the_trained_model_does(caplog):
    with caplog.at_level(logging.WARNING, logger=LOG):
        model, attached, decision = run(GroupFisher(interval=1))
    assert not caplog.text
    assert decision.plan.removed_count == 7
    gone = list(decision.plan.removed("0")) + list(decision.plan.removed("3"))
    assert len(gone) == 7
    small, images = shrink(model, attached.problem.graph, decision.plan).eval(), batches()[0][0]
    torch.testing.assert_close(small(images), model.eval()(images), rtol=0, atol=1e-12)


def test_the_log_says_when_training_was_too_short(caplog):
    with caplog.at_level(logging.WARNING, logger=LOG):
        _, _, decision = run(GroupFisher(interval=5))
    assert decision.plan.removed_count == 7
    assert "group_fisher: 5 of 7 channels go at once as training ended after 12 steps" in caplog.text


@pytest.mark.parametrize("allocation", ["uniform", {"0": 1.0}])
def test_other_allocations_say_how_many_go_where(allocation):
    _, _, decision = run(GroupFisher(interval=1, allocation=allocation), remove=0.25)
    wanted = [2, 2] if allocation == "uniform" else [4, 0]
    assert [len(decision.plan.removed(name)) for name in "03"] == wanted


def test_untrained_and_frozen_models_are_refused():
    with pytest.raises(MethodError, match="group_fisher has seen no step"):
        GroupFisher().attach(problem_of(small_net())).finish()
    frozen = chain([[1.0], [2.0]], [[1.0, 1.0]]).double().requires_grad_(False)
    with pytest.raises(MethodError, match=r"group_fisher can mask.*does not train"):
        GroupFisher().attach(problem_of(frozen, 1, 1, 1, 1))


@pytest.mark.parametrize(
    ("name", "value"), [("interval", 0), ("interval", 2.5), ("channels_per_removal", 0), ("per", "latency")]
)
def test_settings_without_sense_are_refused(name, value):
    with pytest.raises(MethodError, match=rf"{name}={value!r}: expected"):
        GroupFisher(**{name: value})


def test_savings_below_one_count_as_one():
    assert fisher_per_saving(torch.tensor([4.0]), torch.tensor([0.0])).tolist() == [4.0]


@pytest.mark.slow
def test_digits_lose_less_than_two_points():
    assert lost_on_digits(GroupFisher(interval=3, recipe=Recipe(epochs=20, lr=0.01))) < 0.02
