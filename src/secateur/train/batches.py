"""Batches and the models they are fed to: where they are, how they are moved, and flags that are put back."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import SecateurError, TrainingError, first_line


def device_of(model: nn.Module) -> torch.device:
    """Return the device of the model's first parameter or buffer; the CPU for a model without any."""
    for tensor in chain[Tensor](model.parameters(), model.buffers()):
        return tensor.device
    return torch.device("cpu")


def to_device(batch: Any, device: torch.device) -> Any:
    """Return the batch with every tensor in it on `device`; the containers keep their types.

    >>> to_device({"x": torch.ones(1), "name": "a"}, torch.device("cpu"))
    {'x': tensor([1.]), 'name': 'a'}
    """
    if callable(getattr(batch, "to", None)):
        return batch.to(device)
    if isinstance(batch, Mapping):
        return {key: to_device(value, device) for key, value in batch.items()}
    if isinstance(batch, tuple) and hasattr(batch, "_fields"):
        return type(batch)(*(to_device(value, device) for value in batch))
    if isinstance(batch, (tuple, list)):
        return type(batch)(to_device(value, device) for value in batch)
    return batch


def batches_in(loader: Any) -> int | None:
    """Return how many batches a loader says that it gives; None where it does not say, as over an `IterableDataset`.

    >>> batches_in([1, 2]), batches_in(iter([1, 2]))
    (2, None)
    """
    try:
        return len(loader)
    except (TypeError, NotImplementedError):
        return None


def sample_count(args: tuple[Any, ...], kwargs: dict[str, Any]) -> int:
    """Return the length of the first axis of the first input that has axes; 1 if none has.

    >>> sample_count((torch.zeros(4, 2),), {})
    4
    """
    for value in (*args, *kwargs.values()):
        if isinstance(value, Tensor) and value.ndim > 0:
            return value.shape[0]
    return 1


@contextmanager
def explained(source: str = "data=") -> Iterator[None]:
    """Turn what a model or a task raises about a batch into a `TrainingError`; running out of memory stays what it is.

    Args:
        source: what the batch came from, as the caller knows it.

    >>> with explained():
    ...     nn.Linear(2, 1)(torch.zeros(1, 3))
    Traceback (most recent call last):
    secateur.errors.TrainingError: a batch of data= cannot be run: RuntimeError: mat1 and mat2 shapes cannot be ...
    """
    try:
        yield
    except (SecateurError, torch.OutOfMemoryError):
        raise
    except (RuntimeError, ValueError, TypeError, LookupError, AttributeError) as error:
        raise TrainingError(
            f"a batch of {source} cannot be run: {type(error).__name__}: {first_line(error).rstrip('.:')}. Batches "
            "have to be what task= expects, with labels where these are read, and what it takes of them has to fit "
            "the model, like the example input."
        ) from error


@contextmanager
def same_modes_after(model: nn.Module) -> Iterator[None]:
    """Leave every module's train/eval flag after the block as it was before it, also after an exception."""
    modes = [(module, module.training) for module in model.modules()]
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
