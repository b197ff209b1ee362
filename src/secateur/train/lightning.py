"""Attachments in a Lightning `Trainer`, as a callback."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

from torch import nn

from secateur.errors import MissingExtra, TrainingError
from secateur.extras import require
from secateur.train.attachment import Attachment, Moment
from secateur.train.points import Points


class LightningCallback:
    """A Lightning callback that lets attachments take part in training; a `lightning.pytorch.Callback`.

    `trainer.fit` calls the attachments where `secateur.train.fit` would: the extra loss after the forward pass, by its
    gradient (equal by linearity, so the loss that Lightning logs is without it); `after_backward` before gradients are
    clipped; `after_step` after the optimizer; `after_epoch` before validation. What they remember is in Lightning's
    own checkpoints and comes back with `fit(ckpt_path=...)`. With `accumulate_grad_batches` the extra loss is asked for
    once per step, at its first batch.

    Args:
        *attachments: what takes part, in this order, e.g. what `secateur.attach` returned. One callback takes all.
        model: what moments name; None = what the first attachment is attached to, else the LightningModule.

    Raises:
        MissingExtra: neither `lightning` nor `pytorch_lightning` is installed.
        TrainingError: no attachment; or, when training starts, manual optimization, several optimizers, an unknown
            number of epochs, a strategy that shards the weights, an attachment to another model, or a checkpoint
            without these attachments.
    """

    def __new__(cls, *_: Attachment, **__: Any) -> LightningCallback:
        """Make an instance that is a callback of the installed library too."""
        return object.__new__(_with_base(cls))

    def __init__(self, *attachments: Attachment, model: nn.Module | None = None) -> None:
        self._points = Points(attachments, model)
        self._step_count: int | None = None

    @property
    def state_key(self) -> str:
        """Under which name Lightning keeps the state."""
        return "secateur"

    def state_dict(self) -> dict[str, Any]:
        """Return what the attachments remember."""
        return self._points.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up what the attachments remembered."""
        self._points.load_state_dict(state_dict)

    def on_load_checkpoint(self, trainer: Any, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        """Refuse to go on from a checkpoint in which the attachments took no part."""
        if trainer.state.fn == "fit" and self.state_key not in checkpoint["callbacks"]:
            raise TrainingError(
                "the checkpoint holds no state of the attachments, so the method would start anew in the middle of "
                "training: resume from one that was written with this callback."
            )

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Start afresh; a checkpoint is loaded after this."""
        if stage == "fit":
            self._points.begin()

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Refuse what the attachments cannot take part in."""
        self._points.model_in(pl_module)
        strategy, plain = trainer.strategy, _module("strategies")
        if not isinstance(strategy, plain.SingleDeviceStrategy | plain.DDPStrategy) or isinstance(
            strategy, plain.DeepSpeedStrategy
        ):
            raise TrainingError(
                f"strategy {type(strategy).__name__}: no process may hold the whole model; use one device or 'ddp'."
            )
        if not pl_module.automatic_optimization or len(trainer.optimizers) != 1:
            raise TrainingError(
                f"the callback needs automatic optimization with one optimizer, and there are {len(trainer.optimizers)}"
                f" (automatic_optimization={pl_module.automatic_optimization}): call the attachment's four points in "
                "your training_step instead."
            )
        if trainer.max_epochs is None or trainer.max_epochs < 1:
            raise TrainingError(
                f"max_epochs={trainer.max_epochs}: methods need a schedule's length, e.g. max_epochs=9."
            )
        self._step_count = _step_count(trainer)

    def on_before_backward(self, trainer: Any, pl_module: Any, loss: Any) -> None:
        """Take the gradient of the extra loss."""
        self._points.before_backward(self._moment(trainer, pl_module))

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        """Add the extra loss's gradient, and show all gradients before Lightning clips them."""
        self._points.before_backward(self._moment(trainer, pl_module))
        self._points.before_step()

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Show the weights if the optimizer stepped, and close the epoch before it is validated."""
        moment = self._points.moment
        if self._points.is_open and moment is not None and trainer.global_step > moment.step:
            self._points.after_step()
        if trainer.is_last_batch:
            self._close_epoch(trainer, pl_module)

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        """Close an epoch that ended before its last batch."""
        self._close_epoch(trainer, pl_module)

    def _close_epoch(self, trainer: Any, pl_module: Any) -> None:
        moment = self._points.moment
        if moment is None:  # resumed after an epoch's last step
            moment = replace(self._moment(trainer, pl_module), step=trainer.global_step - 1)
        self._points.after_epoch(moment)

    def _moment(self, trainer: Any, pl_module: Any) -> Moment:
        optimizer = trainer.optimizers[0]
        return Moment(
            model=self._points.model_in(pl_module),
            optimizer=optimizer,
            epoch=trainer.current_epoch,
            epoch_count=trainer.max_epochs,
            step=trainer.global_step,
            lr=float(optimizer.param_groups[0]["lr"]),
            step_count=self._step_count,
        )


def _step_count(trainer: Any) -> int | None:
    """Return how many optimizer steps a run takes; None where Lightning cannot tell (accumulation that changes)."""
    try:
        steps = trainer.estimated_stepping_batches
    except _module("utilities.exceptions").MisconfigurationException:
        return None
    return int(steps) if math.isfinite(steps) else None


def _module(name: str) -> Any:
    """Import a part of Lightning, under whichever of its two names it is installed."""
    purpose = "a Lightning callback"
    try:
        return require(f"lightning.pytorch.{name}", extra="lightning", purpose=purpose)
    except MissingExtra:
        try:
            return require(f"pytorch_lightning.{name}", extra="lightning", purpose=purpose)
        except MissingExtra:
            pass
        raise


def _with_base(cls: type) -> type:
    base = _module("callbacks").Callback
    return cls if issubclass(cls, base) else type(cls.__name__, (cls, base), {"__module__": cls.__module__})
