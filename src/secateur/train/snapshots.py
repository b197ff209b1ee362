"""Keep a network's weights as they were at the beginning of chosen epochs, to go back to them later."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch

from ..errors import TrainingError
from .attachment import Attachment, Moment


class Snapshots(Attachment):
    """Copies the weights as they are when chosen epochs begin; part of a run's checkpoints.

    Source: Renda, Frankle, Carbin, "Comparing Rewinding and Fine-tuning in Neural Network Pruning", ICLR 2020,
    arXiv:2003.02389 (weight rewinding needs the weights of an earlier epoch).

    Attributes:
        epochs: at whose beginning, 1 or more. What an untrained network holds is copied before training it.
        states: epoch -> state dict, on the CPU, of those that have begun.

    Raises:
        TrainingError: an epoch is no whole number, 1 or more.
    """

    def __init__(self, epochs: Iterable[int]) -> None:
        self.epochs = tuple(epochs)
        for epoch in self.epochs:
            if isinstance(epoch, bool) or not isinstance(epoch, int) or epoch < 1:
                raise TrainingError(
                    f"a snapshot of epoch {epoch!r}: expected a whole number, 1 or more; before the first, copy the "
                    "state dict before training."
                )
        self.states: dict[int, dict[str, torch.Tensor]] = {}

    def after_epoch(self, moment: Moment) -> None:
        """Take the copy of the epoch that begins now."""
        if moment.epoch + 1 in self.epochs:
            self._copy(moment, moment.epoch + 1)

    def _copy(self, moment: Moment, epoch: int) -> None:
        self.states[epoch] = {
            name: tensor.detach().to("cpu", copy=True) for name, tensor in moment.model.state_dict().items()
        }

    def state_dict(self) -> dict[str, Any]:
        """Return the copies."""
        return {str(epoch): dict(state) for epoch, state in self.states.items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take the copies up again."""
        self.states = {int(epoch): dict(copied) for epoch, copied in state.items()}
