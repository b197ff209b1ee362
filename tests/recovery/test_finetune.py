"""Fine-tuning trains a copy, and takes up only checkpoints that started from the same weights."""

from __future__ import annotations

import copy

import pytest
import torch

from secateur.errors import TrainingError
from secateur.recovery.finetune import finetune
from secateur.train import ClassificationTask, Recipe, fit

from ..train.cases import KillAt, Killed, batches_of, noisy_loader, tiny_model

TASK, RECIPE = ClassificationTask(), Recipe(epochs=2, lr=0.05)


@pytest.mark.parametrize("kill", [KillAt("never", 0), KillAt("after_step", 3)])
def test_the_model_is_not_changed(kill):
    model = tiny_model().eval()
    model[0].weight.grad = torch.ones_like(model[0].weight)
    before = copy.deepcopy(model.state_dict())
    try:
        finetune(model, noisy_loader(), TASK, RECIPE, attachments=[kill])
    except Killed:
        assert kill.point == "after_step"
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert not any(module.training for module in model.modules())
    assert torch.equal(model[0].weight.grad, torch.ones_like(model[0].weight))


def test_it_is_fit_on_a_copy():
    by_fit = tiny_model()
    expected = fit(by_fit, noisy_loader(), TASK, RECIPE)
    tuned, result = finetune(tiny_model(), noisy_loader(), TASK, RECIPE)
    assert result == expected
    assert all(torch.equal(by_fit.state_dict()[name], value) for name, value in tuned.state_dict().items())


def test_a_killed_run_is_taken_up_from_the_same_weights_only(tmp_path):
    whole = finetune(tiny_model(), noisy_loader(), TASK, RECIPE)
    with pytest.raises(Killed):
        finetune(
            tiny_model(), noisy_loader(), TASK, RECIPE, checkpoint_dir=tmp_path, attachments=[KillAt("after_step", 7)]
        )
    other = tiny_model()
    other[0].bias.data += 1
    with pytest.raises(TrainingError, match="run_id is 'weights"):
        finetune(other, noisy_loader(), TASK, RECIPE, checkpoint_dir=tmp_path, attachments=[KillAt("never", 0)])
    tuned, result = finetune(
        tiny_model(), noisy_loader(), TASK, RECIPE, checkpoint_dir=tmp_path, attachments=[KillAt("never", 0)]
    )
    assert result.resumed_from == 5
    assert torch.equal(tuned[0].weight, whole[0][0].weight)


def test_without_a_recipe_it_is_the_papers_tenth_of_the_rate():
    class Halt(KillAt):
        def after_step(self, moment):
            assert (moment.lr, moment.epoch_count) == (0.01, 40)
            raise Killed

    with pytest.raises(Killed):
        finetune(tiny_model(), list(batches_of(1)), TASK, attachments=[Halt("never", 0)])
