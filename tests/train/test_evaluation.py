"""Evaluation: exact means, and no trace."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import nn

from secateur.errors import TrainingError
from secateur.train import ClassificationTask, FunctionTask, Recipe, evaluate, fit

from .cases import noisy_loader, random_numbers, tiny_model

TASK = ClassificationTask()


def test_uneven_batches_average_over_samples_not_over_batches():
    logits = torch.eye(2)
    batches = [(logits[[0, 0, 0]], torch.tensor([0, 0, 0])), (logits[[0]], torch.tensor([1]))]
    assert evaluate(nn.Identity(), batches, TASK) == 0.75


class Fails(nn.Module):
    def forward(self, x):
        raise RuntimeError("broken")


@pytest.mark.parametrize("broken", [False, True])
def test_an_evaluation_leaves_no_trace(broken):
    model, generator = tiny_model(), torch.Generator().manual_seed(5)
    model.train()
    model[1].eval()
    model[1].momentum = 1.0
    if broken:
        model.append(Fails())
    loader = noisy_loader(generator=generator)
    np.random.normal()
    flags = [module.training for module in model.modules()]
    before = copy.deepcopy(model.state_dict()), random_numbers(), generator.get_state().tolist()
    if broken:
        with pytest.raises(TrainingError, match=r"a batch of the loader cannot be run: RuntimeError: broken"):
            evaluate(model, loader, TASK)
    else:
        evaluate(model, loader, TASK)
    after = model.state_dict(), random_numbers(), generator.get_state().tolist()
    assert all(torch.equal(before[0][name], after[0][name]) for name in before[0])
    assert before[1:] == after[1:]
    assert flags == [module.training for module in model.modules()]
    assert not any(parameter.grad is not None for parameter in model.parameters())


def test_an_evaluation_of_random_data_can_be_repeated():
    model, loader = tiny_model(), noisy_loader()
    task = FunctionTask(
        inputs=lambda batch: batch[0], loss=lambda o, b: o.mean(), metric=lambda o, b: o.square().sum(dim=1)
    )
    assert evaluate(model, loader, task) == evaluate(model, loader, task)


def test_the_model_is_in_eval_mode_without_gradients():
    seen = []

    class Look(nn.Module):
        def forward(self, x):
            seen.append((self.training, torch.is_grad_enabled()))
            return x

    evaluate(Look(), [(torch.eye(2), torch.tensor([0, 1]))], TASK)
    assert seen == [(False, False)]


def test_bf16_is_used_where_it_is_asked_for():
    seen = []
    model = tiny_model()
    model[5].register_forward_hook(lambda _, args, output: seen.append(output.dtype))
    evaluate(model, noisy_loader(batch_size=40), TASK, precision="bf16")
    evaluate(model, noisy_loader(batch_size=40), TASK)
    assert seen == [torch.bfloat16, torch.float32]


def test_a_metric_that_is_one_number_for_a_batch_is_refused():
    task = FunctionTask(inputs=lambda b: b, loss=lambda o, b: o.mean(), metric=lambda o, b: o.mean(), name="mean")
    with pytest.raises(TrainingError, match=r"metric 'mean' gave a tensor of shape \(\).*one score per sample"):
        evaluate(nn.Identity(), [torch.ones(2)], task)


@pytest.mark.parametrize("batch", [(torch.ones(2, 9), torch.zeros(2, dtype=torch.long)), 3])
def test_batches_that_do_not_fit_are_explained(batch):
    model = nn.Linear(2, 2)
    before = copy.deepcopy(model.state_dict())
    words = r"a batch of the loader cannot be run: \w+Error: .*Batches have to be what task= expects"
    with pytest.raises(TrainingError, match=words):
        evaluate(model, [batch], TASK)
    with pytest.raises(TrainingError, match=words):
        fit(model, [batch], TASK, Recipe(epochs=1, lr=0.1))
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_nothing_to_evaluate_is_an_error():
    with pytest.raises(TrainingError, match="gave no sample to evaluate"):
        evaluate(nn.Identity(), [], TASK)


def test_dictionary_outputs_are_scored_in_fp32_under_bf16():
    class Wrapped(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = tiny_model()

        def forward(self, x):
            return {"logits": self.net(x), "hidden": [self.net(x)]}

    seen = []
    task = FunctionTask(
        inputs=lambda b: b[0],
        loss=lambda o, b: o["logits"].mean(),
        metric=lambda o, b: (seen.extend([o["logits"].dtype, o["hidden"][0].dtype]), o["logits"][:, 0])[1],
    )
    evaluate(Wrapped(), noisy_loader(batch_size=40), task, precision="bf16")
    assert seen == [torch.float32, torch.float32]
