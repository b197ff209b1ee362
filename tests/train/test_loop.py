"""The loop: what it computes, what it leaves as it was, what it refuses."""

from __future__ import annotations

import copy
import logging
import random
import sys

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, DistributedSampler, IterableDataset

from secateur import Budget, prune
from secateur.catalogue import find
from secateur.errors import TrainingError
from secateur.train import Attachment, ClassificationTask, Recipe, RegressionTask, evaluate, fit

from .cases import KillAt, Killed, batches_of, noisy_loader, random_numbers, tiny_model

TASK = ClassificationTask()


def state(model: nn.Module) -> dict:
    return copy.deepcopy(model.state_dict())


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_the_loop_is_the_loop_one_would_write_by_hand(optimizer):
    recipe = Recipe(epochs=3, lr=0.05, optimizer=optimizer, weight_decay=0.01, clip_norm=0.5)
    model, data = nn.Linear(4, 2), [(torch.randn(5, 4), torch.randn(5, 2)) for _ in range(4)]
    by_hand = copy.deepcopy(model)
    result = fit(model, data, RegressionTask(), recipe)
    optimizer, losses = recipe.make_optimizer(by_hand.parameters()), []
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.5 * (1 + np.cos(np.pi * step / 12)))
    for _ in range(3):
        losses.append(0.0)
        for inputs, targets in data:
            optimizer.zero_grad()
            loss = nn.functional.mse_loss(by_hand(inputs), targets)
            loss.backward()
            nn.utils.clip_grad_norm_(by_hand.parameters(), 0.5)
            optimizer.step()
            schedule.step()
            losses[-1] += loss.item() / 4
    torch.testing.assert_close(dict(model.state_dict()), dict(by_hand.state_dict()))
    assert [record.loss for record in result.history] == pytest.approx(losses)
    assert result.step_count == 12


def test_the_points_are_called_in_order_and_told_where_the_run_is():
    seen = []

    class Notes(Attachment):
        def extra_loss(self, moment):
            seen.append(("extra", moment.epoch, moment.step, round(moment.lr, 6)))

        def after_backward(self, moment):
            assert next(moment.model.parameters()).grad is not None
            seen.append(("backward", moment.step))

        def after_step(self, moment):
            seen.append(("step", moment.step))

        def after_epoch(self, moment):
            seen.append(("epoch", moment.epoch, moment.step, round(moment.lr, 6)))

    model = nn.Linear(4, 2)
    data = [(torch.randn(5, 4), torch.randn(5, 2))] * 2
    recipe = Recipe(epochs=4, lr=0.1, schedule="step", milestones=(0.75,), first_epoch=2)
    fit(model, data, RegressionTask(), recipe, attachments=[Notes()])
    assert seen == [
        *[("extra", 2, 0, 0.1), ("backward", 0), ("step", 0)],
        *[("extra", 2, 1, 0.1), ("backward", 1), ("step", 1), ("epoch", 2, 1, 0.1)],
        *[("extra", 3, 2, 0.01), ("backward", 2), ("step", 2)],
        *[("extra", 3, 3, 0.01), ("backward", 3), ("step", 3), ("epoch", 3, 3, 0.01)],
    ]


def test_extra_losses_add_up_and_are_in_the_history():
    class Constant(Attachment):
        def extra_loss(self, moment):
            return 2.0

    class Pull(Attachment):
        def extra_loss(self, moment):
            return moment.model.weight.sum()

    model, data = nn.Linear(4, 2, bias=False), [(torch.zeros(5, 4), torch.zeros(5, 2))]
    before = model.weight.detach().clone()
    recipe = Recipe(epochs=1, lr=0.1, momentum=0.0, weight_decay=0.0)
    result = fit(model, data, RegressionTask(), recipe, attachments=[Constant(), Pull(), Pull()])
    torch.testing.assert_close(model.weight.detach(), before - 0.1 * 2.0)
    assert result.loss == pytest.approx(2.0 + 2 * before.sum().item(), abs=1e-5)


def test_the_loss_of_an_epoch_weighs_every_sample_the_same():
    data = [(torch.zeros(3, 1), torch.full((3, 1), 1.0)), (torch.zeros(1, 1), torch.full((1, 1), 3.0))]
    model = nn.Linear(1, 1, bias=False)
    assert fit(model, data, RegressionTask(), Recipe(epochs=1, lr=0.1)).loss == pytest.approx((3 * 1 + 9) / 4)


def test_after_epoch_comes_before_the_evaluation():
    class Zero(Attachment):
        def after_epoch(self, moment):
            for parameter in moment.model.parameters():
                parameter.data.zero_()

    data = [(torch.randn(5, 4), torch.randn(5, 2))]
    result = fit(
        nn.Linear(4, 2), data, RegressionTask(), Recipe(epochs=1, lr=0.1), attachments=[Zero()], eval_loader=data
    )
    assert result.metric == pytest.approx(data[0][1].square().mean().item())


def test_the_reported_metric_is_of_the_last_epoch_not_of_the_best():
    class Spoil(Attachment):
        def after_epoch(self, moment):
            moment.model.bias.data.fill_(100.0 * moment.epoch)

    data = [(torch.randn(5, 4), torch.randn(5, 2))]
    result = fit(
        nn.Linear(4, 2), data, RegressionTask(), Recipe(epochs=2, lr=1e-6), attachments=[Spoil()], eval_loader=data
    )
    assert result.history[0].metric < result.history[1].metric == result.metric


def test_the_same_seed_gives_the_same_run_and_another_seed_another():
    runs = []
    for seed in (1, 1, 2):
        torch.manual_seed(random.randrange(1000))
        model = tiny_model()
        fit(model, noisy_loader(), TASK, Recipe(epochs=2, lr=0.1, seed=seed))
        runs.append(model[0].weight)
    assert torch.equal(runs[0], runs[1])
    assert not torch.equal(runs[0], runs[2])


def test_an_evaluation_in_between_does_not_change_the_training():
    models = tiny_model(), tiny_model()
    fit(models[0], noisy_loader(), TASK, Recipe(epochs=2, lr=0.1))
    fit(models[1], noisy_loader(), TASK, Recipe(epochs=2, lr=0.1), eval_loader=noisy_loader())
    assert torch.equal(models[0][0].weight, models[1][0].weight)


def test_each_epoch_is_shuffled_anew_and_the_same_for_two_models():
    orders: list[list[int]] = []

    class Model(nn.Module):
        def __init__(self, dropout):
            super().__init__()
            self.layer, self.dropout = nn.Linear(1, 1), nn.Dropout(dropout)

        def forward(self, x):
            orders[-1] += x.flatten().int().tolist()
            return self.dropout(self.layer(x))

    data = [(torch.tensor([float(index)]), torch.zeros(1)) for index in range(20)]
    for dropout in (0.0, 0.5):
        orders.append([])
        fit(Model(dropout), DataLoader(data, batch_size=5, shuffle=True), RegressionTask(), Recipe(epochs=2, lr=1e-9))
    assert orders[0] == orders[1]
    assert orders[0][:20] != orders[0][20:]
    assert sorted(orders[0][:20]) == list(range(20))


class Picky(nn.Module):
    """A model with a child that is meant to stay in eval mode."""

    def __init__(self) -> None:
        super().__init__()
        self.net, self.frozen = tiny_model(), nn.BatchNorm2d(3)
        self.frozen.eval()

    def forward(self, x):
        return self.net(self.frozen(x))


@pytest.mark.parametrize("kill", [None, KillAt("after_step", 3)])
def test_nothing_but_the_weights_is_changed(kill):
    model, generator = Picky(), torch.Generator().manual_seed(5)
    loader = noisy_loader(generator=generator)
    np.random.normal()  # leaves a cached second number, which is part of the state
    before = random_numbers(), generator.get_state().tolist(), [module.training for module in model.modules()]
    strides, marks = [parameter.stride() for parameter in model.parameters()], set(vars(model))
    recipe = Recipe(epochs=1, lr=0.1, precision="bf16", channels_last=True)
    if kill is None:
        fit(model, loader, TASK, recipe, eval_loader=loader)
    else:
        with pytest.raises(Killed):
            fit(model, loader, TASK, recipe, eval_loader=loader, attachments=[kill])
    assert before == (random_numbers(), generator.get_state().tolist(), [module.training for module in model.modules()])
    assert strides == [parameter.stride() for parameter in model.parameters()]
    assert marks == set(vars(model))
    assert all(parameter.grad is None for parameter in model.parameters())
    assert loader.generator is generator


def test_frozen_parameters_stay():
    model = tiny_model()
    model[0].weight.requires_grad_(False)
    before = state(model)
    fit(model, noisy_loader(), TASK, Recipe(epochs=1, lr=0.1))
    assert torch.equal(before["0.weight"], model[0].weight)
    assert not torch.equal(before["5.weight"], model[5].weight)


def test_images_and_weights_are_channels_last_while_training():
    seen = []

    class Look(Attachment):
        def after_step(self, moment):
            seen.append(moment.model[0].weight.is_contiguous(memory_format=torch.channels_last))

    model = tiny_model()
    model[0].register_forward_pre_hook(
        lambda _, args: seen.append(args[0].is_contiguous(memory_format=torch.channels_last))
    )
    data = list(batches_of(1))
    fit(model, data, TASK, Recipe(epochs=1, lr=0.1, channels_last=True), attachments=[Look()])
    assert seen == [True, True]


def test_bf16_computes_in_bf16_and_keeps_the_weights_in_fp32():
    seen = []
    model = tiny_model()
    model[5].register_forward_hook(lambda _, args, output: seen.append(output.dtype))
    fit(model, list(batches_of(1)), TASK, Recipe(epochs=1, lr=0.1, precision="bf16"))
    assert seen == [torch.bfloat16]
    assert model[5].weight.dtype is torch.float32


def test_a_loss_that_is_not_finite_stops_before_it_reaches_the_weights(tmp_path):
    class Explode(Attachment):
        def extra_loss(self, moment):
            return float("nan") if moment.step == 7 else None

    model = tiny_model()
    recipe = Recipe(epochs=3, lr=0.05)
    said = r"loss [\d.]+, extra loss of Explode nan, in epoch 2, step 7, at lr 0.0276.*clip_norm.*last good checkpoint"
    with pytest.raises(TrainingError, match=said):
        fit(model, noisy_loader(), TASK, recipe, attachments=[Explode()], checkpoint_dir=tmp_path)
    assert all(bool(torch.isfinite(value).all()) for value in model.state_dict().values())
    assert [path.name for path in tmp_path.iterdir()] == ["epoch-0001-step-00000005"]


def test_weights_that_are_not_finite_are_never_saved(tmp_path):
    class Poison(Attachment):
        def after_step(self, moment):
            if moment.step == 4:
                moment.model[5].bias.data[0] = float("inf")

    with pytest.raises(TrainingError, match="a weight is, in epoch 1, step 5"):
        fit(
            tiny_model(),
            noisy_loader(),
            TASK,
            Recipe(epochs=2, lr=0.05),
            attachments=[Poison()],
            checkpoint_dir=tmp_path,
        )
    assert list(tmp_path.iterdir()) == []


def test_a_generator_is_refused_for_two_epochs_and_taken_for_one():
    recipe = Recipe(epochs=1, lr=0.1)
    assert fit(tiny_model(), batches_of(2), TASK, recipe).step_count == 2
    with pytest.raises(TrainingError, match="2 epochs were asked for, and the loader is a generator"):
        fit(tiny_model(), batches_of(2), TASK, recipe.replace(epochs=2))


def test_an_iterable_without_a_length_trains_with_one_rate_per_epoch():
    class Endless:
        def __iter__(self):
            return batches_of(2)

    rates = []

    class Look(Attachment):
        def after_step(self, moment):
            rates.append(round(moment.lr, 6))

    fit(tiny_model(), Endless(), TASK, Recipe(epochs=2, lr=0.1), attachments=[Look()])
    assert rates == [0.1, 0.1, 0.05, 0.05]


class Streamed(IterableDataset):
    """Samples as they come: how many there are, it does not say."""

    def __iter__(self):
        for images, labels in batches_of(3):
            yield from zip(images, labels, strict=True)


def test_a_loader_over_an_iterable_dataset_trains_and_evaluates():
    loader, model = DataLoader(Streamed(), batch_size=4), tiny_model()
    listed = list(loader)
    result = fit(model, loader, TASK, Recipe(epochs=2, lr=0.1), eval_loader=loader)
    assert result.step_count == 2 * len(listed) > 2
    assert result.metric == evaluate(model, listed, TASK)


@pytest.mark.parametrize("method", ["autopruner", "hrank", "sensitivity", "taylor"])
def test_a_method_reads_a_loader_over_an_iterable_dataset(method):
    model, loader = tiny_model(), DataLoader(Streamed(), batch_size=4)
    made = find(method).make(**find(method).brief)
    budget = Budget(remove=0.25, of="channels")
    assert prune(model, listed_image(loader), method=made, budget=budget, data=loader, task=TASK).removed > 0


def listed_image(loader):
    return next(iter(loader))[0][:1]


def test_an_iterable_is_told_which_epoch_comes():
    told = []

    class Knows(list):
        def set_epoch(self, epoch):
            told.append(epoch)

    fit(tiny_model(), Knows(batches_of(1)), TASK, Recipe(epochs=3, lr=0.1, first_epoch=1))
    assert told == [1, 2]


def test_a_samplers_epoch_is_set_and_put_back():
    data = [(torch.randn(3, 4, 4), 0) for _ in range(8)]
    sampler = DistributedSampler(data, num_replicas=2, rank=0)
    sampler.set_epoch(40)
    fit(tiny_model(), DataLoader(data, batch_size=2, sampler=sampler), TASK, Recipe(epochs=2, lr=0.1))
    assert sampler.epoch == 40


def test_an_empty_loader_is_an_error():
    with pytest.raises(TrainingError, match="the loader gave no batch in epoch 1"):
        fit(tiny_model(), [], TASK, Recipe(epochs=2, lr=0.1))


def test_a_model_without_trainable_parameters_is_an_error():
    with pytest.raises(TrainingError, match="nothing to train"):
        fit(nn.ReLU(), [], TASK, Recipe(epochs=1, lr=0.1))


def test_checkpoint_steps_without_a_folder_are_an_error():
    with pytest.raises(TrainingError, match="checkpoint_steps=3: expected a count >= 1, with a checkpoint_dir"):
        fit(tiny_model(), [], TASK, Recipe(epochs=1, lr=0.1), checkpoint_steps=3)


def test_without_accelerate_the_error_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "accelerate", None)
    with pytest.raises(TrainingError, match=r'pip install "secateur\[train\]"'):
        fit(tiny_model(), [], TASK, Recipe(epochs=1, lr=0.1))


def test_the_environment_of_accelerate_does_not_overrule_the_recipe(monkeypatch):
    plain = tiny_model()
    fit(plain, list(noisy_loader(shuffle=False)), TASK, Recipe(epochs=1, lr=0.1))
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "4")
    model, seen = tiny_model(), []
    model[5].register_forward_hook(lambda _, args, output: seen.append(output.dtype))
    fit(model, list(noisy_loader(shuffle=False)), TASK, Recipe(epochs=1, lr=0.1))
    assert set(seen) == {torch.float32}


def test_gradient_accumulation_of_the_environment_does_not_scale_the_loss(monkeypatch):
    data, models = list(batches_of(3)), [tiny_model(), tiny_model()]
    fit(models[0], data, TASK, Recipe(epochs=1, lr=0.1))
    monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "4")
    fit(models[1], data, TASK, Recipe(epochs=1, lr=0.1))
    assert torch.equal(models[0][0].weight, models[1][0].weight)


def test_accelerate_is_left_free_for_others():
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState, GradientState

    fit(tiny_model(), list(batches_of(1)), TASK, Recipe(epochs=1, lr=0.1))
    try:
        others = Accelerator(mixed_precision="bf16", gradient_accumulation_steps=4)
        seen, model = [], tiny_model()
        model[5].register_forward_hook(lambda _, args, output: seen.append(output.dtype))
        fit(model, list(batches_of(1)), TASK, Recipe(epochs=1, lr=0.1))
        assert seen == [torch.float32]
        assert others.mixed_precision == "bf16"
        assert others.gradient_accumulation_steps == 4
    finally:
        AcceleratorState._reset_state()
        GradientState._reset_state()


def test_a_batch_size_that_the_rate_is_not_meant_for_is_logged(caplog):
    with caplog.at_level(logging.WARNING):
        fit(tiny_model(), noisy_loader(), TASK, Recipe(epochs=1, lr=0.1, batch_size=128))
    assert "lr=0.1 is meant for batches of 128, and these are of 8" in caplog.text


def test_the_result_holds_one_record_per_epoch():
    data = list(batches_of(2))
    result = fit(tiny_model(), data, TASK, Recipe(epochs=3, lr=0.1), eval_loader=data)
    assert [record.epoch for record in result.history] == [0, 1, 2]
    assert [record.lr for record in result.history] == pytest.approx([0.1, 0.075, 0.025])
    assert result.metric_name == "accuracy"
    assert 0 <= result.metric <= 1
    assert result.seconds > 0
