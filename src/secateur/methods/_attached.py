"""Methods that take part in training: one object per run, the same in every kind of loop.

Such a method has `attach(problem)`, which returns an `Attached`: an attachment of the training loop that is told of
each step and epoch, remembers what it needs in `state_dict`, and in the end reads its decision off the trained model.
Our own loop, other libraries' callbacks and hand-written loops call the same object at the same four points.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from ..surgery.shrink import clone
from ..train.attachment import Attachment, Moment
from ..train.schedules import Recipe
from ._history import Standing
from ._problem import Decision, Problem
from ._scores import Allocation, counts_for
from ._taking_part import check_optimizer
from ._training import train_
from ._watch import Watch


class Attached(Attachment):
    """A method at work in one training run of `problem.model`, whose weights it may change at each point.

    Attributes:
        problem: the model that is trained, in place, its graph and budget.
    """

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        self._optimizer_seen: torch.optim.Optimizer | None = None

    @property
    def model(self) -> nn.Module:
        """The model that is trained."""
        return self.problem.model

    def check_optimizer(self, method: str, moment: Moment, names: Iterable[str]) -> None:
        """Check, at the first call with an optimizer, that it moves all trainable parameters that the method works on.

        Raises:
            MethodError: see `_taking_part.check_optimizer`.
        """
        if self._optimizer_seen is not moment.optimizer:
            check_optimizer(method, moment, names)
            self._optimizer_seen = moment.optimizer

    def standing(self) -> Standing | None:
        """Return where channels stand now, and change nothing; None = this method does not say."""
        return None

    def finish(self) -> Decision:
        """Decide, once training is over. Where the decision has no model, it is about the trained one as it is."""
        raise TypeError(f"{type(self).__name__} does not say how it decides: it has to define finish().")


@runtime_checkable
class TrainingMethod(Protocol):
    """A method that takes part in training; `decide` of such a method follows its `recipe`."""

    @property
    def recipe(self) -> Recipe:
        """How the paper trains with it."""

    def attach(self, problem: Problem) -> Attached:
        """Return an attachment for one training run of `problem.model`."""

    def decide(self, problem: Problem) -> Decision:
        """Train a copy by `recipe` and decide which channels stay."""


def train_and_decide(name: str, method: TrainingMethod, problem: Problem) -> Decision:
    """Train a copy of the problem's model with a method attached, by our own loop, and return its decision.

    With nothing to remove nothing is trained. The seed of the run is the problem's.

    Raises:
        MethodError: no data, no task, or training that fails.
    """
    attached = method.attach(replace(problem, model=clone(problem.model)))
    if problem.budget.remove == 0:
        return replace(attached.finish(), model=None)
    watch, recipe = Watch(attached), method.recipe.replace(seed=problem.seed)
    folder = None if problem.checkpoint_dir is None else _folder(Path(problem.checkpoint_dir), problem)
    attachments = [attached, watch]
    train_(name, attached.model, problem, recipe, attachments, tracking=problem.tracking, checkpoint_dir=folder)
    decision = attached.finish()
    model = attached.model if decision.model is None else decision.model
    return replace(decision, model=model, repair="batchnorm", history=watch.history)


def _folder(root: Path, problem: Problem) -> Path:
    """Where a cut that failed leaves groups whole, the run is another one and starts anew."""
    whole = "-".join(sorted(problem.graph.rigid))
    return root / hashlib.sha256(whole.encode()).hexdigest()[:16] if whole else root


def counts_now(problem: Problem, allocation: Allocation, scores: Mapping[str, Tensor]) -> dict[str, int]:
    """Return how many channels each group would keep by these scores; empty if only a pass over data would tell."""
    return {} if allocation == "sensitivity" else counts_for(problem, list(scores), allocation, scores)
