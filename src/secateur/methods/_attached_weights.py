"""Methods that remove single weights while a model trains: one object per run, the same in every kind of loop.

The counterpart of `_attached` for single weights: `attach(problem)` returns an attachment of the training loop that
removes weights as it is told of each step, remembers what it needs in `state_dict`, and in the end gives its plan.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Protocol, runtime_checkable

from torch import nn

from ..surgery.shrink import clone
from ..train.attachment import Attachment
from ..train.schedules import Recipe
from ._training import train_
from ._weights import WeightDecision, WeightProblem


class AttachedWeights(Attachment):
    """A method at work in one training run of `problem.model`, whose weights it may change at each point.

    Attributes:
        problem: the model that is trained, in place, and its budget.
    """

    def __init__(self, problem: WeightProblem) -> None:
        self.problem = problem

    @property
    def model(self) -> nn.Module:
        """The model that is trained."""
        return self.problem.model

    def finish(self) -> WeightDecision:
        """Decide, once training is over; the trained model then has its zeros."""
        raise TypeError(f"{type(self).__name__} does not say how it decides: it has to define finish().")


@runtime_checkable
class TrainingWeightMethod(Protocol):
    """A method for single weights that takes part in training; `choose` of such a method follows its `recipe`."""

    @property
    def recipe(self) -> Recipe:
        """How `choose` trains."""

    def attach(self, problem: WeightProblem) -> AttachedWeights:
        """Return an attachment for one training run of `problem.model`."""

    def choose(self, problem: WeightProblem) -> WeightDecision:
        """Train a copy by `recipe` and decide which weights stay."""


def train_and_choose(name: str, method: TrainingWeightMethod, problem: WeightProblem) -> WeightDecision:
    """Train a copy of the problem's model with a method attached, by our own loop, and return its decision.

    With nothing to remove nothing is trained. The seed of the run is the problem's.

    Raises:
        MethodError: no data, no task, or training that fails.
    """
    attached = method.attach(replace(problem, model=clone(problem.model)))
    if problem.budget.remove == 0:
        return replace(attached.finish(), model=None)
    train_(name, attached.model, problem, method.recipe.replace(seed=problem.seed), [attached])
    return replace(attached.finish(), model=attached.model)
