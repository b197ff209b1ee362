"""How many CPU threads torch computes with."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch


def cores_shared(count: int) -> int:
    """Return the CPU threads that each of `count` processes has where they share the machine.

    >>> cores_shared(10**6)
    1
    """
    return max(1, (os.cpu_count() or 1) // count)


@contextmanager
def torch_threads(count: int | None) -> Iterator[None]:
    """Compute with that many threads inside the block, and with as many as before after it; None changes nothing.

    >>> with torch_threads(1):
    ...     torch.get_num_threads()
    1
    """
    before = torch.get_num_threads()
    torch.set_num_threads(before if count is None else count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
