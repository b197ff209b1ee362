"""Runs of a method that takes part in training: whole, killed and taken up again, and in a loop written by hand."""

from __future__ import annotations

import functools

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from secateur import Budget, prune, trace
from secateur.data import digits
from secateur.methods import Problem
from secateur.models import digits_resnet
from secateur.train import ClassificationTask, Moment, Recipe, evaluate, fit, recipe

from ..train.cases import KillAt, Killed

RECIPE = Recipe(epochs=3, lr=0.02, schedule="constant", seed=3)  # 4 steps per epoch
POINTS = [("after_backward", 1), ("after_step", 5), ("after_epoch", 7), ("extra_loss", 8), ("after_step", 11)]


def small_net(dtype=torch.float64):
    """Two convolutions without padding, with batch normalisation and a bias to take constants up."""
    torch.manual_seed(7)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 6, 3),
        nn.BatchNorm2d(6),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(6, 3),
    )
    return model.to(dtype)


@functools.cache
def batches(dtype=torch.float64):
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(4, 8, 3, 6, 6, generator=generator, dtype=torch.float64).to(dtype)
    return [(own, own[:, :, 0, 0].argmax(dim=1)) for own in images]


def problem_of(model, *shape, remove=0.5, dtype=torch.float64, **parts):
    example = torch.zeros(shape or (1, 3, 6, 6), dtype=dtype)
    return Problem(model, trace(model, example), Budget(remove), args=(example,), **parts)


def run(method, *others, remove=0.5, recipe=RECIPE, folder=None):
    """Train the small net with a method; return it, its attachment and the decision."""
    model = small_net()
    attached = method.attach(problem_of(model, remove=remove))
    fit(
        model,
        batches(),
        ClassificationTask(),
        recipe,
        attachments=[*others, attached],
        checkpoint_dir=folder,
        checkpoint_steps=1 if folder else None,
        progress=False,
    )
    return model, attached, attached.finish()


def assert_resumes(method, point, step, folder):
    """Killed at this point and taken up from the step before, a run ends with the same weights, plan and scores."""
    whole, _, decision = run(method)
    with pytest.raises(Killed):
        run(method, KillAt(point, step), folder=folder)
    resumed, _, again = run(method, KillAt("never", 0), folder=folder)
    assert_same(decision, again)
    assert all(torch.equal(one, other) for one, other in zip(tensors(whole), tensors(resumed), strict=True))


def assert_same(one, other):
    assert one.plan == other.plan
    assert one.scores.keys() == other.scores.keys()
    assert all(torch.equal(one.scores[name], other.scores[name]) for name in one.scores)


def tensors(model):
    return list(model.state_dict().values())


def run_by_hand(method, recipe=RECIPE, remove=0.5):
    """The same run in a loop of one's own."""
    model = small_net().train()
    attached = method.attach(problem_of(model, remove=remove))
    optimizer = recipe.make_optimizer(model.parameters())
    step = 0
    for epoch in range(recipe.epochs):
        for images, labels in batches():
            moment = Moment(model, optimizer, epoch, recipe.epochs, step, recipe.lr)
            loss = F.cross_entropy(model(images), labels)
            extra = attached.extra_loss(moment)
            optimizer.zero_grad()
            (loss if extra is None else loss + extra).backward()
            attached.after_backward(moment)
            optimizer.step()
            attached.after_step(moment)
            step += 1
        attached.after_epoch(moment)
    return model, attached.finish()


def moment_of(model, epoch=0, epoch_count=1, step=0, lr=0.1, optimizer=None):
    optimizer = optimizer or torch.optim.SGD(model.parameters(), lr=lr)
    return Moment(model, optimizer, epoch, epoch_count, step, lr)


@functools.cache
def _trained_on_digits():
    torch.manual_seed(0)
    model, loaders = digits_resnet(), digits().loaders(64, augment=False)
    fit(model, loaders.train, ClassificationTask(), recipe("digits").replace(epochs=5), progress=False)
    return model, loaders, evaluate(model, loaders.test, ClassificationTask())


def lost_on_digits(method, remove=0.4):
    """Return the accuracy that a network trained on digits loses with this part of its MACs, without fine-tuning."""
    model, loaders, before = _trained_on_digits()
    task, example = ClassificationTask(), torch.zeros(1, 1, 8, 8)
    result = prune(model, example, method=method, budget=Budget(remove, "macs"), data=loaders.train, task=task)
    assert result.removed >= remove
    return before - evaluate(result.model, loaders.test, task)
