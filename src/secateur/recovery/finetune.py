"""Fine-tune: train the smaller network some more, on a copy."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from secateur.train.attachment import Attachment
from secateur.train.checkpoint import digest_of
from secateur.train.loop import TrainResult, fit
from secateur.train.schedules import RECIPES, Recipe
from secateur.train.task import Task
from secateur.train.tracking import Tracking


def finetune(
    model: nn.Module,
    loader: Iterable[Any],
    task: Task,
    recipe: Recipe = RECIPES["cifar-finetune"],
    *,
    attachments: Sequence[Attachment] = (),
    eval_loader: Iterable[Any] | None = None,
    checkpoint_dir: str | Path | None = None,
    checkpoint_steps: int | None = None,
    resume: bool = True,
    progress: bool | None = None,
    tracking: Tracking | None = None,
) -> tuple[nn.Module, TrainResult]:
    """Return a fine-tuned copy of the model, and what the run did. The model itself is not changed.

    For learning-rate rewinding pass `original_recipe.rewound(epoch_count)`; for the usual tenth of the rate,
    `original_recipe.finetuning(epochs)`.

    Args:
        model: a trained, usually cut, network.
        loader: see `train.fit`, as the other arguments.
        task: how to feed a batch, the loss and the metric.
        recipe: how to train.
        attachments: what takes part in the loop, e.g. to hold masked weights at zero.
        eval_loader: data for the metric after each epoch.
        checkpoint_dir: where to keep checkpoints. One is only taken up by a run that starts from the same weights.
        checkpoint_steps: also write one whenever the step count is a multiple of this.
        resume: go on from the newest whole checkpoint if there is one.
        progress: True or False to force the progress bar; None = where there is a terminal.
        tracking: where to write what there is to see after each epoch.

    Raises:
        TrainingError: as in `train.fit`.

    >>> import torch
    >>> from secateur.train.task import ClassificationTask
    >>> _ = torch.manual_seed(0)
    >>> batches, model = [(torch.eye(2), torch.tensor([0, 1]))], nn.Linear(2, 2)
    >>> tuned, result = finetune(model, batches, ClassificationTask(), Recipe(epochs=50, lr=0.5), eval_loader=batches)
    >>> result.metric, tuned is model
    (1.0, False)
    """
    tuned = copy.deepcopy(model)
    result = fit(
        tuned,
        loader,
        task,
        recipe,
        attachments=attachments,
        eval_loader=eval_loader,
        checkpoint_dir=checkpoint_dir,
        checkpoint_steps=checkpoint_steps,
        resume=resume,
        run_id="" if checkpoint_dir is None else f"weights {digest_of(model)}",
        progress=progress,
        tracking=tracking,
    )
    return tuned, result
