"""Attachments in a Hugging Face `Trainer`, as a callback."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from torch import nn

from secateur.errors import TrainingError
from secateur.extras import require
from secateur.train.attachment import Attachment, Moment
from secateur.train.points import Points
from secateur.train.state_file import read_state, write_state

STATE_FILE = "secateur.safetensors"


class HuggingFaceCallback:
    """A Hugging Face callback that lets attachments take part in training; a `transformers.TrainerCallback`.

    `Trainer.train` calls the attachments where `secateur.train.fit` would: the extra loss after the forward pass, by
    its gradient (equal by linearity, so the loss that the trainer logs is without it); `after_backward` before
    gradients are clipped; `after_step` after the optimizer; `after_epoch` before evaluation and saving. What they
    remember is in `secateur.safetensors` of each checkpoint folder and comes back with
    `train(resume_from_checkpoint=...)`. With gradient accumulation the extra loss is asked for once per step, at its
    first batch.

    The trainer clips gradients before it calls callbacks, where an extra gradient would come too late. So set
    `max_grad_norm=0` in `TrainingArguments`, and `clip_norm` here.

    Args:
        *attachments: what takes part, in this order, e.g. what `secateur.attach` returned. One callback takes all.
        clip_norm: largest allowed norm of the whole gradient, None = no limit.
        model: what moments name; None = what the first attachment is attached to, else the trainer's model.
        checkpoint: folder to resume from, where it is not in the trainer's `output_dir`.

    Raises:
        MissingExtra: `transformers` is not installed.
        TrainingError: no attachment; or, when training starts, a trainer that clips, scales (fp16) or shards, several
            devices in one process, an attachment to another model, or a checkpoint without these attachments.
    """

    def __new__(cls, *_: Attachment, **__: Any) -> HuggingFaceCallback:
        """Make an instance that is a callback of the installed library too."""
        return object.__new__(_with_base(cls))

    def __init__(
        self,
        *attachments: Attachment,
        clip_norm: float | None = None,
        model: nn.Module | None = None,
        checkpoint: str | Path | None = None,
    ) -> None:
        if clip_norm is not None and not 0 < clip_norm < math.inf:
            raise TrainingError(f"clip_norm={clip_norm!r}: expected None or a number > 0.")
        self._points = Points(attachments, model)
        self._clip_norm = clip_norm
        self._checkpoint = None if checkpoint is None else Path(checkpoint)
        self._hook: Any = None

    def on_train_begin(self, args: Any, state: Any, control: Any, *, model: Any, **_: Any) -> None:
        """Refuse what the attachments cannot take part in, and take up their state on a resume."""
        self._points.begin()
        self._unhook()
        self._points.model_in(model)
        _check(args)
        if state.global_step > 0:
            found = self._checkpoint or _folder(args, state)
            self._points.load_state_dict(read_state(found / STATE_FILE))

    def on_step_begin(self, args: Any, state: Any, control: Any, *, model: Any, optimizer: Any, **_: Any) -> None:
        """Have the extra loss's gradient taken right after the forward pass that follows."""
        self._unhook()
        moment = self._moment(state, model, optimizer)

        def after_forward(module: nn.Module, inputs: Any, output: Any) -> None:
            if module.training and torch.is_grad_enabled():
                self._unhook()
                with torch.autocast(args.device.type, enabled=False):
                    self._points.before_backward(moment)

        self._hook = model.register_forward_hook(after_forward)

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, *, model: Any, **_: Any) -> None:
        """Add the extra loss's gradient, show all gradients, then clip them."""
        self._points.before_step()
        if self._clip_norm is not None:
            torch.nn.utils.clip_grad_norm_(model.parameters(), self._clip_norm)

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Show the weights."""
        self._points.after_step()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Close an epoch at its last step: a checkpoint written now is never resumed at the epoch's end."""
        if float(state.epoch).is_integer():
            self._close_epoch()

    def on_epoch_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Close an epoch that ended before its last batch."""
        self._close_epoch()

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Write what the attachments remember beside the trainer's own files."""
        if state.is_world_process_zero:
            write_state(_folder(args, state) / STATE_FILE, self._points.state_dict())

    def _unhook(self) -> None:
        if self._hook is not None:
            self._hook.remove()
            self._hook = None

    def _close_epoch(self) -> None:
        if self._points.moment is not None:
            self._points.after_epoch(self._points.moment)

    def _moment(self, state: Any, trained: nn.Module, optimizer: Any) -> Moment:
        optimizer = getattr(optimizer, "optimizer", optimizer)  # out of Accelerate's wrapper
        return Moment(
            model=self._points.model_in(trained),
            optimizer=optimizer,
            epoch=int(state.epoch or 0),
            epoch_count=state.num_train_epochs,
            step=state.global_step,
            lr=float(optimizer.param_groups[0]["lr"]),
            step_count=state.max_steps if state.max_steps > 0 else None,
        )


def _folder(args: Any, state: Any) -> Path:
    return Path(args.output_dir) / f"checkpoint-{state.global_step}"


def _check(args: Any) -> None:
    if args.max_grad_norm:
        raise TrainingError(
            f"max_grad_norm={args.max_grad_norm}: the trainer clips gradients before the attachments see them. Set "
            f"TrainingArguments(max_grad_norm=0) and HuggingFaceCallback(..., clip_norm={args.max_grad_norm})."
        )
    if args.fp16:
        raise TrainingError(
            "fp16=True: the trainer scales gradients, and callbacks cannot tell by what; use bf16=True."
        )
    if args.fsdp or args.deepspeed or args.n_gpu > 1:
        raise TrainingError(
            f"fsdp={args.fsdp!r}, deepspeed={args.deepspeed!r}, {args.n_gpu} GPUs in one process: each process has to "
            "hold the whole model, on one device; launch with plain data parallelism, e.g. torchrun."
        )


def _with_base(cls: type) -> type:
    base = require("transformers", extra="hf", purpose="a Hugging Face callback").TrainerCallback
    return cls if issubclass(cls, base) else type(cls.__name__, (cls, base), {"__module__": cls.__module__})
