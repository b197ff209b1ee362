"""Networks, data and loops that the tests of methods with penalised scales share."""

from __future__ import annotations

import torch
from torch import nn

from secateur import Budget, Limits, trace
from secateur.methods import Problem
from secateur.train import ClassificationTask, Moment, Recipe, fit

TASK = ClassificationTask()
RECIPE = Recipe(epochs=2, lr=0.1, momentum=0.9, schedule="constant", seed=3)
IMAGES = torch.zeros(2, 1, 4, 4)


def set_(norm, gains, shifts=None):
    norm.weight.data = torch.tensor(gains)
    norm.bias.data = torch.tensor(shifts or [0.0] * len(gains))
    return norm


def chain(first=4, second=6, *, seed=0, padding=1):
    """Two convolutions with batch norm, then a linear head over the mean."""
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(1, first, 3, padding=padding, bias=False), nn.BatchNorm2d(first), nn.ReLU(),
        nn.Conv2d(first, second, 1, bias=False), nn.BatchNorm2d(second), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(second, 3),
    )  # fmt: skip


class Residual(nn.Module):
    """A stem, a block around an identity, and a head."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(1)
        self.stem, self.stem_norm = nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.one, self.norm1 = nn.Conv2d(4, 6, 3, padding=1), nn.BatchNorm2d(6)
        self.two, self.norm2 = nn.Conv2d(6, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.head = nn.Linear(4, 3)

    def forward(self, x):
        x = self.stem_norm(self.stem(x)).relu()
        x = (x + self.norm2(self.two(self.norm1(self.one(x)).relu()))).relu()
        return self.head(x.mean((2, 3)))


def batches(count=4, size=8):
    generator = torch.Generator().manual_seed(5)
    labels = torch.randint(3, (count, size), generator=generator)
    images = torch.randn(count, size, 1, 4, 4, generator=generator) + labels[..., None, None, None]
    return list(zip(images, labels, strict=True))


def problem(model, *, remove=0.5, of="channels", data=None, example=IMAGES, **limits):
    task = None if data is None else TASK
    graph = trace(model, example)
    return Problem(model, graph, Budget(remove, of), Limits(**limits), (example,), {}, data, task)


def moment(model, *, lr=0.1, momentum=0.0, weight_decay=0.0, epoch=0, step=0, epoch_count=2):
    optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=momentum, weight_decay=weight_decay)
    return Moment(model, optimizer, epoch, epoch_count, step, lr)


def step_with(attached, here, gradients=None):
    """One step of a loop of one's own, on gradients that are given by name; 0 for all others."""
    for name, parameter in here.model.named_parameters():
        parameter.grad = torch.zeros_like(parameter) if gradients is None or name not in gradients else gradients[name]
    attached.after_backward(here)
    here.optimizer.step()
    attached.after_step(here)


def by_hand(model, attached, recipe=RECIPE, data=None):
    """A loop of one's own with what every plain loop has, and the four points."""
    optimizer = torch.optim.SGD(model.parameters(), recipe.lr, recipe.momentum, weight_decay=recipe.weight_decay)
    model.train()
    for epoch in range(recipe.epochs):
        for number, (images, labels) in enumerate(data or batches()):
            step = epoch * len(data or batches()) + number
            here = Moment(model, optimizer, epoch, recipe.epochs, step, recipe.lr)
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(model(images), labels)
            extra = attached.extra_loss(here)
            (loss if extra is None else loss + extra).backward()
            attached.after_backward(here)
            optimizer.step()
            attached.after_step(here)
        attached.after_epoch(here)
    return attached.finish()


def trained(model, attached, recipe=RECIPE, **options):
    fit(model, batches(), TASK, recipe, attachments=[attached], progress=False, **options)
    return attached.finish()
