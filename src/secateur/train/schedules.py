"""Recipes: everything that decides a training run besides the model, the data and the task, as one frozen value."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import nn

from secateur.errors import TrainingError, UnknownName


@dataclass(frozen=True)
class Recipe:
    """How to train.

    Attributes:
        epochs: length of the schedule, in passes over the data.
        lr: peak learning rate.
        optimizer: "sgd" or "adamw".
        momentum: of SGD; the first beta of AdamW.
        weight_decay: on every parameter (coupled for SGD, decoupled for AdamW).
        nesterov: Nesterov momentum (SGD only).
        schedule: "cosine" (to 0), "step" or "constant".
        milestones: for "step": where the rate falls, as fractions of `epochs`.
        milestone_factor: for "step": what the rate is multiplied with there.
        warmup_epochs: linear rise from 0 to `lr`; inside `epochs`.
        first_epoch: where in the schedule to start; the epochs before it are not run.
        clip_norm: largest allowed norm of the whole gradient, None = no limit.
        precision: "fp32", or "bf16" for autocast with fp32 weights.
        channels_last: lay images and their weights out channels last while training.
        batch_size: what the learning rate was tuned for. The loader decides; `fit` logs a warning if it differs.
        seed: of data order, augmentation and dropout.
        source: where the numbers come from.

    Raises:
        TrainingError: a value makes no sense, or would be ignored.
    """

    epochs: int
    lr: float
    optimizer: str = "sgd"
    momentum: float = 0.9
    weight_decay: float = 1e-4
    nesterov: bool = False
    schedule: str = "cosine"
    milestones: tuple[float, ...] = ()
    milestone_factor: float = 0.1
    warmup_epochs: float = 0.0
    first_epoch: int = 0
    clip_norm: float | None = None
    precision: str = "fp32"
    channels_last: bool = False
    batch_size: int | None = None
    seed: int = 0
    source: str = ""

    def __post_init__(self) -> None:
        for name, choices in _CHOICES.items():
            if getattr(self, name) not in choices:
                raise TrainingError(f"{name}={getattr(self, name)!r}: expected one of {', '.join(choices)}.")
        for name, (is_valid, wanted) in _LIMITS.items():
            if not is_valid(self):
                raise TrainingError(f"{name}={getattr(self, name)!r}: expected {wanted}.")

    def lr_at(self, epoch: float, tick: float = 0.0) -> float:
        """Return the learning rate of the step that starts at `epoch`.

        Args:
            epoch: progress in epochs since the schedule's beginning, e.g. 2.5.
            tick: length of one step in epochs; the warm-up counts it, so that its first step is not at rate 0.

        >>> recipe = Recipe(epochs=200, lr=0.1, schedule="step", milestones=(0.5, 0.75))
        >>> [round(recipe.lr_at(epoch), 6) for epoch in (0, 99.9, 100, 150)]
        [0.1, 0.1, 0.01, 0.001]
        """
        if epoch < self.warmup_epochs:
            return self.lr * min((epoch + tick) / self.warmup_epochs, 1.0)
        if self.schedule == "step":
            # A rounding margin: 0.29 * 100 is 28.999999999999996, and 3 / 7 * 7 may come out above 3.
            passed = sum(epoch >= fraction * self.epochs - 1e-6 for fraction in self.milestones)
            return self.lr * self.milestone_factor**passed
        if self.schedule == "cosine":
            done = (epoch - self.warmup_epochs) / (self.epochs - self.warmup_epochs)
            return self.lr * 0.5 * (1.0 + math.cos(math.pi * min(done, 1.0)))
        return self.lr

    def replace(self, **changes: object) -> Recipe:
        """Return the same recipe with some values changed.

        >>> recipe("cifar").replace(epochs=2, seed=1).epochs
        2
        """
        return dataclasses.replace(self, **changes)  # type: ignore[arg-type]  # checked by __post_init__

    def finetuning(self, epochs: int) -> Recipe:
        """Return the recipe to fine-tune a network that this one trained: a tenth of the rate, no warm-up.

        >>> round(recipe("cifar").finetuning(epochs=40).lr, 6)
        0.01
        """
        return self.replace(epochs=epochs, lr=self.lr * 0.1, warmup_epochs=0.0, first_epoch=0)

    def rewound(self, epoch_count: int) -> Recipe:
        """Return the recipe that replays this one's last `epoch_count` epochs (learning-rate rewinding).

        Source: Renda et al. 2020, "Comparing Rewinding and Fine-tuning in Neural Network Pruning", arXiv:2003.02389.

        >>> recipe("cifar").rewound(50).first_epoch
        150
        """
        return self.replace(first_epoch=self.epochs - epoch_count)

    def make_optimizer(self, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
        """Return a fresh optimizer over `parameters` at the peak learning rate."""
        if self.optimizer == "sgd":
            return torch.optim.SGD(
                parameters,
                lr=self.lr,
                momentum=self.momentum,
                weight_decay=self.weight_decay,
                nesterov=self.nesterov,
            )
        return torch.optim.AdamW(parameters, lr=self.lr, betas=(self.momentum, 0.999), weight_decay=self.weight_decay)


_CHOICES = {
    "optimizer": ("sgd", "adamw"),
    "schedule": ("cosine", "step", "constant"),
    "precision": ("fp32", "bf16"),
}

_LIMITS: dict[str, tuple[Callable[[Recipe], bool], str]] = {
    "epochs": (lambda r: isinstance(r.epochs, int) and r.epochs >= 1, "a whole number >= 1"),
    "lr": (lambda r: 0 < r.lr < math.inf, "a number > 0"),
    "momentum": (lambda r: 0 <= r.momentum < 1, "a number in [0, 1)"),
    "weight_decay": (lambda r: 0 <= r.weight_decay < math.inf, "a number >= 0"),
    "nesterov": (
        lambda r: not r.nesterov or (r.optimizer == "sgd" and r.momentum > 0),
        "False, unless the optimizer is sgd with momentum > 0",
    ),
    "milestones": (
        lambda r: (
            bool(r.milestones) == (r.schedule == "step")
            and all(0 < m < 1 for m in r.milestones)
            and list(r.milestones) == sorted(set(r.milestones))
        ),
        "rising fractions in (0, 1) with schedule='step', and none with another schedule",
    ),
    "milestone_factor": (lambda r: 0 < r.milestone_factor < 1, "a number in (0, 1)"),
    "warmup_epochs": (
        lambda r: 0 <= r.warmup_epochs < r.epochs,
        "a number of epochs >= 0 and below `epochs`; a run of one epoch needs warmup_epochs=0",
    ),
    "first_epoch": (
        lambda r: isinstance(r.first_epoch, int) and 0 <= r.first_epoch < r.epochs,
        "a whole number >= 0 and below `epochs`",
    ),
    "clip_norm": (lambda r: r.clip_norm is None or 0 < r.clip_norm < math.inf, "None or a number > 0"),
    "batch_size": (lambda r: r.batch_size is None or r.batch_size >= 1, "None or a whole number >= 1"),
    "seed": (lambda r: isinstance(r.seed, int) and r.seed >= 0, "a whole number >= 0"),
}

RECIPES: dict[str, Recipe] = {
    "digits": Recipe(
        epochs=12,
        lr=0.1,
        warmup_epochs=1,
        batch_size=64,
        source="our own, for ResNet-8 on the embedded digits; seconds on one core",
    ),
    "cifar": Recipe(
        epochs=200,
        lr=0.1,
        schedule="step",
        milestones=(0.5, 0.75),
        batch_size=128,
        source="akamaster/pytorch_resnet_cifar10: ResNet-20 to -56 (the 110-layer one starts with an epoch at 0.01)",
    ),
    "cifar-slimming": Recipe(
        epochs=160,
        lr=0.1,
        schedule="step",
        milestones=(0.5, 0.75),
        batch_size=64,
        source="Liu et al. 2017, Network Slimming, arXiv:1708.06519, as in the co-author's repository",
    ),
    "cifar-rewind": Recipe(
        epochs=182,
        lr=0.1,
        weight_decay=2e-4,
        schedule="step",
        milestones=(91 / 182, 136 / 182),
        batch_size=128,
        source="Renda et al. 2020, arXiv:2003.02389; use .rewound(epoch_count)",
    ),
    "cifar-finetune": Recipe(
        epochs=40,
        lr=0.01,
        batch_size=128,
        source="a tenth of the training rate, as usual after pruning; 40 epochs as in He et al. 2019 (FPGM), Table 3",
    ),
    "imagenet-finetune": Recipe(
        epochs=20,
        lr=0.01,
        batch_size=256,
        source="a tenth of the training rate, as usual after pruning; papers run 20 to 100 epochs",
    ),
}


def recipe(name: str) -> Recipe:
    """Return the recipe of that name.

    Raises:
        UnknownName: there is none; says which are near.

    >>> recipe("cifar").lr
    0.1
    """
    if name not in RECIPES:
        raise UnknownName("recipe", name, RECIPES)
    return RECIPES[name]
