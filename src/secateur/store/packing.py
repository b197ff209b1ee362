"""Sparse parameters on disk: a bit for each weight and the values that are not zero, back to the same bits.

A value counts as zero when all its bits are: -0.0 is kept as a value, so nothing is lost. Under the tensor's own name
the file holds the values in row-major order, one axis; under `bits_name` the bits, eight to a byte, the first weight in
the highest. Both are plain tensors of the file format.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..weight_plan import pack, unpack

HEADER = 128  # bytes that one more tensor takes in the head of the file, and some for the record (our estimate)
INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def bits_name(name: str) -> str:
    """Return the name of a parameter's bits in the file; no module can have it, since a part of it is empty.

    >>> bits_name("fc.weight")
    'fc.weight..nonzero'
    """
    return f"{name}..nonzero"


def smaller(name: str, plain: Tensor) -> dict[str, Tensor] | None:
    """Return values and bits of a contiguous tensor by their names in the file; None if it takes less room as it is.

    >>> sorted(smaller("fc.weight", torch.eye(64)))
    ['fc.weight', 'fc.weight..nonzero']
    >>> smaller("fc.weight", torch.ones(64, 64)) is None
    True
    """
    whole_bytes = plain.numel() * plain.element_size()
    if whole_bytes <= HEADER:
        return None
    flat = plain.reshape(-1)
    is_kept = flat.view(INTEGERS[plain.element_size()]) != 0
    count = int(is_kept.count_nonzero())
    if -(-flat.numel() // 8) + count * plain.element_size() + HEADER >= whole_bytes:
        return None
    bits = flat.view(INTEGERS[plain.element_size()])
    return {name: bits[is_kept].view(plain.dtype), bits_name(name): pack(is_kept)}


def unpacked(values: Tensor, bits: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Return the tensor of which `smaller` made values and bits.

    Raises:
        ValueError: the bits are not as many as the shape takes, or not as many of them are set as there are values.

    >>> parts = smaller("w", torch.eye(64))
    >>> torch.equal(unpacked(parts["w"], parts["w..nonzero"], (64, 64)), torch.eye(64))
    True
    """
    is_kept = unpack(bits, shape)
    if int(is_kept.count_nonzero()) != len(values):
        raise ValueError(f"{int(is_kept.count_nonzero())} bits are set for {len(values)} values")
    integer = INTEGERS[values.element_size()]
    result = torch.zeros(shape, dtype=integer)
    result[is_kept] = values.view(integer)
    return result.view(values.dtype)
