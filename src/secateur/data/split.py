"""Hold examples out, class by class."""

from __future__ import annotations

import torch
from torch import Tensor

from ..errors import DataError


def stratified_split(labels: Tensor, *, fraction: float, seed: int) -> tuple[Tensor, Tensor]:
    """Choose examples to hold out so that every class gives the same share.

    The total is `fraction` of all examples, rounded; a class gives its own share rounded up or down, and always
    keeps at least one example.

    Args:
        labels: (N,) class of each example.
        fraction: share that is held out, between 0 and 1.
        seed: decides which examples; the global random state is left alone.

    Returns:
        The sorted indices that stay and the sorted indices that are held out.

    Raises:
        DataError: the fraction is out of range, or so small or large that a part would be empty.

    >>> stay, held = stratified_split(torch.tensor([0, 0, 0, 0, 1, 1, 1, 1]), fraction=0.25, seed=0)
    >>> len(stay), torch.tensor([0, 0, 0, 0, 1, 1, 1, 1])[held].tolist()
    (6, [0, 1])
    """
    if not 0 < fraction < 1:
        raise DataError(f"fraction={fraction}: expected the share to hold out, between 0 and 1, e.g. 0.1 for 10 %.")
    generator = torch.Generator().manual_seed(seed)
    held = torch.zeros(len(labels), dtype=torch.bool)
    for label, count in enumerate(_counts(labels, fraction)):
        members = torch.nonzero(labels == label).flatten()
        held[members[torch.randperm(len(members), generator=generator)[:count]]] = True
    if not held.any():
        raise DataError(f"fraction={fraction} of {len(labels)} examples holds nothing out; ask for more.")
    return torch.nonzero(~held).flatten(), torch.nonzero(held).flatten()


def _counts(labels: Tensor, fraction: float) -> list[int]:
    """Return how many of each class to hold out: shares rounded down, the rest by largest remainder."""
    sizes = torch.bincount(labels)
    shares = sizes.double() * fraction
    counts = shares.floor().long()
    lacking = round(len(labels) * fraction) - int(counts.sum())
    counts[torch.argsort(counts - shares, stable=True)[: max(lacking, 0)]] += 1
    return [int(c) for c in torch.minimum(counts, (sizes - 1).clamp(min=0))]
