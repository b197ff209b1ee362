"""Weights as they were when an epoch began, also through a kill."""

import copy

import pytest
import torch
from torch import nn

from secateur.errors import TrainingError
from secateur.train import ClassificationTask, Recipe, fit
from secateur.train.snapshots import Snapshots

TASK = ClassificationTask()
BATCHES = [(torch.randn(4, 5, generator=torch.Generator().manual_seed(i)), torch.arange(4) % 3) for i in range(3)]


def trained(epochs, snapshots, schedule_epochs=4):
    torch.manual_seed(0)
    model = nn.Linear(5, 3)
    recipe = Recipe(epochs=schedule_epochs, lr=0.1, schedule="constant")
    fit(model, BATCHES, TASK, recipe.replace(epochs=epochs), attachments=[snapshots], progress=False)
    return model


def test_the_copy_of_an_epoch_is_what_training_up_to_it_gives():
    kept = Snapshots((2,))
    trained(4, kept)
    assert torch.equal(kept.states[2]["weight"], trained(2, Snapshots(())).weight)


def test_later_training_does_not_reach_the_copy():
    kept = Snapshots((1,))
    model = trained(3, kept)
    assert not torch.equal(kept.states[1]["weight"], model.weight)


def test_a_resumed_run_still_has_it():
    kept, again = Snapshots((1,)), Snapshots((1,))
    trained(2, kept)
    again.load_state_dict(copy.deepcopy(kept.state_dict()))
    assert torch.equal(again.states[1]["weight"], kept.states[1]["weight"])


@pytest.mark.parametrize("epoch", [-1, 0, 0.5, True, "1"])
def test_an_epoch_that_is_none_is_refused(epoch):
    with pytest.raises(TrainingError, match="whole number"):
        Snapshots((epoch,))
