"""Count what a model holds."""

from __future__ import annotations

from torch import nn


def parameter_count(model: nn.Module) -> int:
    """Return the number of weights; a parameter used in two places counts once.

    >>> parameter_count(nn.Linear(3, 2))
    8
    """
    return sum(parameter.numel() for parameter in model.parameters())


def size_bytes(model: nn.Module) -> int:
    """Return the bytes of all parameters and buffers; a tensor used in two places counts once.

    >>> size_bytes(nn.Linear(3, 2))
    32
    """
    tensors = (*model.parameters(), *model.buffers())
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)
