"""Recipes: learning rates against torch's own schedulers, and values that make no sense."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from secateur.errors import TrainingError, UnknownName
from secateur.train import RECIPES, Recipe, recipe


def rates_of(scheduler_class, epochs: int, **options) -> list[float]:
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.1)
    scheduler = scheduler_class(optimizer, **options)
    rates = []
    for _ in range(epochs):
        rates.append(scheduler.get_last_lr()[0])
        optimizer.step()
        scheduler.step()
    return rates


def test_the_step_schedule_is_torchs_multi_step():
    mine = Recipe(epochs=7, lr=0.1, schedule="step", milestones=(3 / 7, 5 / 7))
    theirs = rates_of(torch.optim.lr_scheduler.MultiStepLR, 7, milestones=[3, 5], gamma=0.1)
    assert [mine.lr_at(epoch) for epoch in range(7)] == pytest.approx(theirs)


def test_the_cosine_schedule_is_torchs_cosine_annealing():
    mine = Recipe(epochs=9, lr=0.1)
    theirs = rates_of(torch.optim.lr_scheduler.CosineAnnealingLR, 9, T_max=9)
    assert [mine.lr_at(epoch) for epoch in range(9)] == pytest.approx(theirs)
    assert mine.lr_at(9) == pytest.approx(0)


def test_the_warm_up_rises_linearly_from_its_first_step_to_the_peak():
    mine = Recipe(epochs=10, lr=0.4, warmup_epochs=2, schedule="constant")
    rates = [mine.lr_at(step / 2, tick=0.5) for step in range(6)]
    assert rates == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.4, 0.4])


def test_cosine_starts_after_the_warm_up():
    mine = Recipe(epochs=10, lr=0.4, warmup_epochs=2)
    assert mine.lr_at(2) == pytest.approx(0.4)
    assert mine.lr_at(6) == pytest.approx(0.2)


@pytest.mark.parametrize(("epoch", "lr"), [(90, 0.1), (91, 0.01), (135, 0.01), (136, 0.001)])
def test_the_rewinding_schedule_falls_at_epochs_91_and_136(epoch, lr):
    assert recipe("cifar-rewind").lr_at(epoch) == pytest.approx(lr)


def test_rewinding_keeps_the_schedule_and_starts_later():
    rewound = recipe("cifar").rewound(50)
    assert rewound.first_epoch == 150
    assert rewound.lr_at(150) == pytest.approx(recipe("cifar").lr_at(150))


def test_finetuning_has_a_tenth_of_the_rate_and_no_warm_up():
    tuned = Recipe(epochs=90, lr=0.2, warmup_epochs=5).finetuning(epochs=10)
    assert (tuned.epochs, tuned.lr, tuned.warmup_epochs) == (10, pytest.approx(0.02), 0.0)


@pytest.mark.parametrize("name", RECIPES)
def test_every_named_recipe_says_where_it_comes_from(name):
    assert RECIPES[name].source
    assert RECIPES[name].batch_size


def test_an_unknown_recipe_gets_a_suggestion():
    with pytest.raises(UnknownName, match="did you mean 'cifar-finetune'"):
        recipe("cifar_finetune")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"epochs": 0}, "epochs=0: expected a whole number >= 1"),
        ({"epochs": 1.5}, "epochs=1.5"),
        ({"lr": 0.0}, "lr=0.0: expected a number > 0"),
        ({"lr": float("nan")}, "lr=nan"),
        ({"optimizer": "lion"}, "optimizer='lion': expected one of sgd, adamw"),
        ({"schedule": "step"}, "milestones=.*: expected rising fractions"),
        ({"schedule": "step", "milestones": (0.7, 0.5)}, "rising fractions"),
        ({"schedule": "step", "milestones": (91, 136)}, "rising fractions"),
        ({"milestones": (0.5,)}, "none with another schedule"),
        ({"nesterov": True, "optimizer": "adamw"}, "nesterov=True: expected False, unless"),
        ({"nesterov": True, "momentum": 0.0}, "nesterov=True"),
        ({"warmup_epochs": 10}, "warmup_epochs=10"),
        ({"epochs": 1, "warmup_epochs": 1}, "a run of one epoch needs warmup_epochs=0"),
        ({"first_epoch": 10}, "first_epoch=10"),
        ({"clip_norm": 0}, "clip_norm=0"),
        ({"precision": "fp16"}, "precision='fp16': expected one of fp32, bf16"),
        ({"seed": -1}, "seed=-1"),
    ],
)
def test_a_value_that_makes_no_sense_or_would_be_ignored_is_an_error(changes, message):
    with pytest.raises(TrainingError, match=message):
        Recipe(**{"epochs": 10, "lr": 0.1} | changes)


def test_the_optimizer_is_what_the_recipe_says():
    weight = nn.Parameter(torch.zeros(1))
    sgd = Recipe(epochs=1, lr=0.2, momentum=0.8, weight_decay=0.01, nesterov=True).make_optimizer([weight])
    assert isinstance(sgd, torch.optim.SGD)
    assert {key: sgd.defaults[key] for key in ("lr", "momentum", "weight_decay", "nesterov")} == {
        "lr": 0.2,
        "momentum": 0.8,
        "weight_decay": 0.01,
        "nesterov": True,
    }
    adamw = Recipe(epochs=1, lr=0.2, momentum=0.8, optimizer="adamw").make_optimizer([weight])
    assert isinstance(adamw, torch.optim.AdamW)
    assert adamw.defaults["betas"] == (0.8, 0.999)
