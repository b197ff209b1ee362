"""Run a model to look at it, and leave it as it was."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put `model` in evaluation mode without gradients; modes and random states are as before after the block.

    ``no_grad`` and not ``inference_mode``: a model that caches a tensor in its forward has to stay trainable.
    """
    modes = [(module, module.training) for module in model.modules()]
    devices = {t.device for t in (*model.parameters(), *model.buffers()) if t.device.type == "cuda"}
    try:
        with torch.random.fork_rng(devices=devices), torch.no_grad():
            model.eval()
            yield
    finally:
        for module, was_training in modes:
            module.training = was_training


def as_call(args: Any, kwargs: Mapping[str, Any] | None) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return positional and keyword arguments; anything but a tuple or list is the one positional argument."""
    return tuple(args) if isinstance(args, tuple | list) else (args,), dict(kwargs or {})


def tensors_in(*trees: Any) -> list[Tensor]:
    """Return every tensor inside nested tuples, lists and dicts, in order."""
    return [leaf for leaf in pytree.tree_leaves(trees) if isinstance(leaf, Tensor)]
