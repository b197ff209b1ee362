"""In which order the axes of a tensor lie in memory (channels_last is one such order), and how to keep it."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor


def axis_order(tensor: Tensor) -> tuple[int, ...] | None:
    """Return the axes from the outermost in memory to the innermost; None if the tensor has gaps or overlaps.

    >>> import torch
    >>> axis_order(torch.zeros(2, 3, 4, 4).to(memory_format=torch.channels_last))
    (0, 2, 3, 1)
    """
    order = tuple(sorted(range(tensor.ndim), key=lambda axis: -tensor.stride(axis)))
    expected = 1
    for axis in reversed(order):
        if tensor.shape[axis] != 1:
            if tensor.stride(axis) != expected:
                return None
            expected *= tensor.shape[axis]
    return order


def in_order(tensor: Tensor, order: Sequence[int]) -> Tensor:
    """Return the tensor with its axes in this order in memory; itself if they already are.

    >>> import torch
    >>> in_order(torch.zeros(2, 3), (1, 0)).stride()
    (1, 2)
    """
    back = sorted(range(tensor.ndim), key=lambda axis: order[axis])
    return tensor.permute(*order).contiguous().permute(*back)
