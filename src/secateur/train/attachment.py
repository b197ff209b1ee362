"""How a method takes part in training: four points of the loop, each told the moment it is called at."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Moment:
    """Where a run is.

    Attributes:
        model: the model being trained, never a wrapper around it.
        optimizer: the optimizer that steps it.
        epoch: 0 = the schedule's first.
        epoch_count: length of the schedule.
        step: optimizer steps of this run before this one.
        lr: learning rate of this step.
        step_count: optimizer steps of the whole run; None where the loop cannot know.
    """

    model: nn.Module
    optimizer: torch.optim.Optimizer
    epoch: int
    epoch_count: int
    step: int
    lr: float
    step_count: int | None = None


class Attachment(Protocol):
    """Something that takes part in training. Inherit from it and override what is needed.

    Whatever it remembers between calls belongs in `state_dict`, else a resumed run differs from an uninterrupted
    one: tensors, numbers, strings, None, and lists, tuples and dicts of them.

    >>> class L1(Attachment):
    ...     def extra_loss(self, moment):
    ...         return 1e-4 * sum(p.abs().sum() for p in moment.model.parameters())
    """

    def extra_loss(self, moment: Moment) -> Tensor | None:
        """Return a scalar to add to the loss of this step, after the forward pass; None adds nothing."""
        return None

    def after_backward(self, moment: Moment) -> None:
        """Look at or change the gradients, before they are clipped and used."""
        return None

    def after_step(self, moment: Moment) -> None:
        """Look at or change the weights, right after the optimizer did (a proximal step, a mask)."""
        return None

    def after_epoch(self, moment: Moment) -> None:
        """Look at or change the weights at the end of an epoch, before it is evaluated and saved."""
        return None

    def measurements(self) -> Mapping[str, float | Tensor]:
        """Return what to show of the epoch that ended: numbers, and tensors for the distribution of their elements.

        Asked for after `after_epoch`, and only where a run is tracked.
        """
        return {}

    def state_dict(self) -> dict[str, Any]:
        """Return all that is remembered between calls."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up what `state_dict` returned."""
        return None
