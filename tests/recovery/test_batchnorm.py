"""Batch-norm statistics are those of the data afterwards, and nothing else is changed."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import nn

from secateur.errors import TrainingError
from secateur.recovery.batchnorm import reestimate_batchnorm, reestimate_batchnorm_
from secateur.train import ClassificationTask

from ..train.cases import noisy_loader, random_numbers, tiny_model

TASK = ClassificationTask()


def test_the_mean_is_that_of_the_data_also_with_a_short_last_batch():
    data = torch.randn(70, 3, 4, 4) * 3 + 5
    small = reestimate_batchnorm(nn.BatchNorm2d(3), list(data.split(32)), TASK)
    torch.testing.assert_close(small.running_mean, data.mean(dim=(0, 2, 3)))


def test_the_variance_is_the_mean_of_the_batches_unbiased_variances():
    batches = torch.randn(8, 16, 3, 4, 4)
    layer = reestimate_batchnorm(nn.BatchNorm2d(3), list(batches), TASK)
    expected = batches.transpose(1, 2).flatten(start_dim=2).var(dim=2).mean(dim=0)
    torch.testing.assert_close(layer.running_var, expected)


def test_equal_batches_give_torchs_own_cumulative_average():
    model, batches = tiny_model(), list(torch.randn(5, 8, 3, 4, 4))
    expected = copy.deepcopy(model)
    expected[1].reset_running_stats()
    expected[1].momentum = None
    expected[1].train()
    for batch in batches:
        expected[:2](batch)
    after = reestimate_batchnorm(model, batches, TASK)
    torch.testing.assert_close(dict(after[1].state_dict()), dict(expected[1].state_dict()))


def test_what_was_there_before_does_not_matter_even_if_it_is_not_finite():
    model, batches = nn.BatchNorm1d(2), list(torch.randn(3, 8, 2))
    expected = reestimate_batchnorm(model, batches, TASK)
    model.running_mean.fill_(float("nan"))
    model.num_batches_tracked.fill_(1000)
    after = reestimate_batchnorm(model, batches, TASK)
    assert torch.equal(after.running_mean, expected.running_mean)
    assert after.num_batches_tracked.item() == 3


def test_later_layers_see_the_data_normalised_by_batch_as_in_training():
    model = nn.Sequential(nn.BatchNorm1d(2, affine=False), nn.BatchNorm1d(2))
    after = reestimate_batchnorm(model, list(torch.randn(4, 8, 2) + 7), TASK)
    torch.testing.assert_close(after[1].running_mean, torch.zeros(2), atol=1e-5, rtol=0)


def test_only_so_many_batches_are_read():
    read = []

    class Counted(list):
        def __iter__(self):
            for batch in super().__iter__():
                read.append(batch)
                yield batch

    batches = Counted(torch.randn(10, 8, 3))
    after = reestimate_batchnorm(nn.BatchNorm1d(3), batches, TASK, batch_count=4)
    assert len(read) == 4
    torch.testing.assert_close(after.running_mean, torch.cat(batches[:4]).mean(dim=0))


def test_a_layer_used_twice_averages_over_both_uses():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm = nn.BatchNorm1d(1)

        def forward(self, x):
            self.norm(x)
            return self.norm(torch.cat([x, x]) + 3)

    after = reestimate_batchnorm(Twice(), [torch.tensor([[1.0], [3.0]])], TASK)
    assert after.norm.running_mean.item() == pytest.approx((2 * 2.0 + 4 * 5.0) / 6)


def test_dropout_is_off():
    model = nn.Sequential(nn.Dropout(0.5), nn.BatchNorm1d(1))
    after = reestimate_batchnorm(model, [torch.ones(50, 1)], TASK)
    assert after[1].running_mean.item() == pytest.approx(1.0)


def test_a_layer_that_no_batch_reaches_is_left_alone(caplog):
    class Branch(nn.Module):
        def __init__(self):
            super().__init__()
            self.used, self.unused = nn.BatchNorm1d(1), nn.BatchNorm1d(1)

        def forward(self, x):
            return self.used(x)

    model = Branch()
    model.unused.running_mean.fill_(4.0)
    model.unused.num_batches_tracked.fill_(9)
    after = reestimate_batchnorm(model, [torch.ones(5, 1)], TASK)
    assert after.unused.running_mean.item() == 4.0
    assert after.unused.num_batches_tracked.item() == 9
    assert "no batch reached unused" in caplog.text


def test_a_model_without_statistics_is_not_run():
    class Untouchable(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm = nn.BatchNorm1d(1, track_running_stats=False)

        def forward(self, x):
            raise AssertionError("it was run")

    assert reestimate_batchnorm(Untouchable(), [torch.ones(5, 1)], TASK).norm.running_mean is None


def test_the_copy_is_changed_and_the_model_is_not():
    model = tiny_model()
    before = copy.deepcopy(model.state_dict())
    after = reestimate_batchnorm(model, noisy_loader(), TASK)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert not torch.equal(after[1].running_mean, model[1].running_mean)


class Fails(nn.Module):
    def forward(self, x):
        raise RuntimeError("broken")


@pytest.mark.parametrize("broken", [False, True])
def test_in_place_only_statistics_change_and_after_an_exception_not_even_these(broken):
    model, generator = tiny_model(), torch.Generator().manual_seed(5)
    model[1].momentum = 0.37
    model[3].eval()
    model.append(nn.BatchNorm1d(3))
    if broken:
        model.append(Fails())
    reestimate_batchnorm_(model[:2], noisy_loader(), TASK)  # statistics worth keeping
    loader = noisy_loader(generator=generator)
    np.random.normal()
    weights, flags = copy.deepcopy(model.state_dict()), [module.training for module in model.modules()]
    before = random_numbers(), generator.get_state().tolist()
    if broken:
        with pytest.raises(RuntimeError, match="broken"):
            reestimate_batchnorm_(model, loader, TASK, batch_count=3)
    else:
        reestimate_batchnorm_(model, loader, TASK, batch_count=3)
    changed = {name for name, value in model.state_dict().items() if not torch.equal(weights[name], value)}
    expected = {
        f"{layer}.{name}" for layer in (1, 6) for name in ("running_mean", "running_var", "num_batches_tracked")
    }
    assert changed == (set() if broken else expected)
    assert flags == [module.training for module in model.modules()]
    assert before == (random_numbers(), generator.get_state().tolist())
    assert model[1].momentum == 0.37
    assert model[6].momentum == 0.1
    assert not model[1]._forward_pre_hooks


@pytest.mark.parametrize(("options", "message"), [({"batch_count": 0}, "batch_count=0"), ({}, "at least one batch")])
def test_no_batches_are_an_error_and_leave_the_model(options, message):
    model = nn.BatchNorm1d(1)
    model.running_mean.fill_(3.0)
    with pytest.raises(TrainingError, match=message):
        reestimate_batchnorm_(model, [], TASK, **options)
    assert model.running_mean.item() == 3.0
