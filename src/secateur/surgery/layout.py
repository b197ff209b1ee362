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
    if not is_dense(tensor.shape, tensor.stride()):
        return None
    strides = tensor.stride()
    return tuple(sorted(range(tensor.ndim), key=lambda axis: -strides[axis]))


def is_dense(shape: Sequence[int], strides: Sequence[int]) -> bool:
    """Whether a tensor with these strides fills its memory without gaps or overlaps.

    >>> is_dense((2, 3), (1, 2)), is_dense((2, 3), (1, 4))
    (True, False)
    """
    expected = 1
    for stride, size in sorted(zip(strides, shape, strict=False)):
        if size != 1:
            if stride != expected:
                return False
            expected *= size
    return len(shape) == len(strides) and all(stride <= expected for stride in strides)


def in_order(tensor: Tensor, order: Sequence[int]) -> Tensor:
    """Return the tensor with its axes in this order in memory; itself if they already are.

    >>> import torch
    >>> in_order(torch.zeros(2, 3), (1, 0)).stride()
    (1, 2)
    """
    back = sorted(range(tensor.ndim), key=lambda axis: order[axis])
    return tensor.permute(*order).contiguous().permute(*back)
