"""Runs of methods that remove single weights while training: whole, and in a loop written by hand."""

from __future__ import annotations

import torch

from secateur import Budget
from secateur.methods import WeightProblem
from secateur.train import ClassificationTask, Moment, fit

from .attached_runs import RECIPE, batches, small_net

STEPS = RECIPE.epochs * 4


def weight_problem(model, remove=0.5, of="weights", **parts):
    return WeightProblem(model, Budget(remove, of), **parts)


def trainable(model=None, remove=0.5, **parts):
    given = {"data": batches(), "task": ClassificationTask(), "seed": RECIPE.seed}
    return weight_problem(model or small_net(), remove, **(given | parts))


def run(method, *others, remove=0.5, folder=None):
    """Train the small net with a method; return it, its attachment and the decision."""
    model = small_net()
    attached = method.attach(weight_problem(model, remove))
    fit(
        model,
        batches(),
        ClassificationTask(),
        RECIPE,
        attachments=[*others, attached],
        checkpoint_dir=folder,
        checkpoint_steps=1 if folder else None,
        progress=False,
    )
    return model, attached, attached.finish()


def at(model, step, step_count=STEPS, optimizer=None):
    """Return the moment of a step."""
    return Moment(model, optimizer or torch.optim.SGD(model.parameters(), lr=0.1), 0, 1, step, 0.1, step_count)
