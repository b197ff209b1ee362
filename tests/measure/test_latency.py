"""A latency is a plain value, and taking it leaves model, arguments and process as they were."""

import math

import pytest
import torch
from torch import nn

from secateur.measure import latency as module
from secateur.measure.latency import compare, latency


class Watched(nn.Module):
    """Notes in which mode it was run; fails from the `fails_at`-th call on."""

    def __init__(self, fails_at=math.inf):
        super().__init__()
        self.frozen = nn.BatchNorm1d(3).eval()
        self.linear = nn.Linear(3, 2)
        self.drop = nn.Dropout()
        self.seen, self.fails_at = [], fails_at

    def forward(self, x, scale=1.0):
        self.seen.append((self.training, torch.is_grad_enabled(), torch.get_num_threads()))
        torch.rand(1)
        if len(self.seen) >= self.fails_at:
            raise RuntimeError("broken on purpose")
        return self.drop(self.linear(self.frozen(x))) * scale


@pytest.fixture
def three_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(before)


def state(model):
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    return weights, [m.training for m in model.modules()], torch.get_rng_state(), torch.get_num_threads()


def same(before, after):
    assert before[1] == after[1]
    assert before[3] == after[3]
    assert torch.equal(before[2], after[2])
    assert all(torch.equal(tensor, after[0][name]) for name, tensor in before[0].items())


def test_a_latency_says_what_was_measured():
    found = latency(nn.Linear(3, 2), torch.zeros(5, 3), threads=2, min_run_time_s=0.01)
    assert 0 < found.median_ms < math.inf
    assert 0 <= found.iqr_ms < math.inf
    assert (found.threads, found.batch, found.device) == (2, 5, "cpu")
    assert found.runs >= 1


def test_the_model_runs_in_evaluation_mode_without_gradients_on_the_threads_asked_for(three_threads):
    model = Watched()
    latency(model, [torch.zeros(5, 3)], kwargs={"scale": 2.0}, threads=2, min_run_time_s=0.01)
    assert set(model.seen) == {(False, False, 2)}


@pytest.mark.parametrize("fails_at", [1, 3, 40])
def test_everything_is_restored_after_an_error(three_threads, fails_at):
    model, good = Watched(fails_at), Watched()
    before, good_before = state(model), state(good)
    with pytest.raises(RuntimeError, match="broken on purpose"):
        latency(model, torch.zeros(5, 3), threads=1, min_run_time_s=0.05)
    same(before, state(model))
    model.seen.clear()
    with pytest.raises(RuntimeError, match="broken on purpose"):
        compare(good, model, torch.zeros(5, 3), threads=1, min_run_time_s=0.05)
    same(before, state(model))
    same(good_before, state(good))
    assert not model.frozen.training
    assert model.training


def test_everything_is_restored_after_success(three_threads):
    model = Watched()
    before = state(model)
    latency(model, torch.zeros(5, 3), threads=1, min_run_time_s=0.01)
    compare(model, model, torch.zeros(5, 3), threads=1, min_run_time_s=0.01)
    same(before, state(model))


def test_a_device_is_reached_with_a_copy():
    model, x = Watched(), torch.zeros(5, 3)
    found = latency(model, (x,), threads=1, device="meta", min_run_time_s=0.01)
    assert found.device == "meta"
    assert model.linear.weight.device.type == x.device.type == "cpu"
    assert not model.seen


def test_a_model_without_tensors_counts_as_batch_one():
    class Constant(nn.Module):
        def forward(self, x):
            return x + 1

    found = latency(Constant(), 3, threads=1, min_run_time_s=0.01)
    assert (found.batch, found.device) == (1, "cpu")


def test_two_models_take_turns(monkeypatch):
    order, blocks = [], []
    real = module.Timer.timeit

    def timeit(timer, number):
        order.clear()
        result = real(timer, number)
        blocks.append(set(order))
        return result

    def named(name):
        model = nn.Linear(3, 2)
        model.register_forward_pre_hook(lambda *_: order.append(name))
        return model

    monkeypatch.setattr(module.Timer, "timeit", timeit)
    found = compare(named("before"), named("after"), torch.zeros(5, 3), threads=1, min_run_time_s=0.02)
    turns = blocks[-2 * module.FEWEST_ROUNDS :]
    assert turns == [{"before"}, {"after"}] * module.FEWEST_ROUNDS
    assert found.before.runs >= module.FEWEST_ROUNDS
    assert found.after.runs >= module.FEWEST_ROUNDS


def test_the_speed_up_is_time_before_over_time_after_within_each_round(monkeypatch):
    class Measured:
        def __init__(self, mean):
            self.mean = mean

    slow, fast = nn.Linear(3, 2), nn.Linear(3, 1)
    clock = iter([1.0, 1.0, 8.0, 2.0, 4.0, 4.0, 8.0, 2.0, 12.0, 4.0, 8.0, 1.0])  # quotients 4, 1, 4, 3, 8
    monkeypatch.setattr(module.Timer, "timeit", lambda timer, number: Measured(next(clock)))
    found = compare(slow, fast, torch.zeros(5, 3), threads=1)
    assert found.speed_up == 4.0
    assert found.speed_up_iqr == 1.0
    assert found.before.median_ms == 8000.0
    assert found.after.median_ms == 2000.0
    assert found.before.runs == found.after.runs == 5
    assert str(found).startswith("4.00x (IQR 1.00): 8e+03 ms")


@pytest.mark.parametrize(("threads", "seconds", "message"), [(0, 1.0, "threads=0"), (1, 0.0, "min_run_time_s=0.0")])
def test_senseless_settings_are_refused(threads, seconds, message):
    model, x = nn.Linear(3, 2), torch.zeros(5, 3)
    with pytest.raises(ValueError, match=message):
        latency(model, x, threads=threads, min_run_time_s=seconds)
    with pytest.raises(ValueError, match=message):
        compare(model, model, x, threads=threads, min_run_time_s=seconds)
