"""How each family of operations passes labels on: one small file per family.

A rule is a function ``rule(labels, op)`` that sets the layers of the results. ``RULES`` maps an operation's name
(without overload and in-place underscore) to its rule. An operation that has none freezes every channel that touches
it.
"""

from __future__ import annotations

from . import (
    attention,
    contraction,
    convolution,
    embedding,
    indexing,
    movement,
    normalisation,
    pointwise,
    pooling,
    reduction,
)
from ._table import RULES as RULES
from ._table import Rule as Rule

__all__ = ["RULES", "Rule"]

_FAMILIES = (
    attention,
    contraction,
    convolution,
    embedding,
    indexing,
    movement,
    normalisation,
    pointwise,
    pooling,
    reduction,
)
