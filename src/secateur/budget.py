"""How much goes, and how that is met exactly.

A budget names the fraction of channels, MACs, parameters or bytes that is removed. Given the order in which channels
would go, the search removes the fewest so that what is left is at most what was asked: the last one removed decides, so
the result is within one channel's cost of the target (one step's cost where widths are rounded).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any

import numpy as np

from .errors import BudgetError

Array = np.ndarray[Any, Any]
MEASURES = ("channels", "macs", "params", "bytes")
WEIGHTS = "weights"  # single ones; only methods that remove these count them


@dataclass(frozen=True)
class Budget:
    """How much to take away.

    Attributes:
        remove: fraction removed, 0 <= remove < 1 (0.3 = 30 % gone).
        of: what the fraction counts: "channels" (those free to go), "macs", "params" or "bytes" (of the whole model);
            for methods that remove single weights, "weights" (those that can go) or "params".

    Raises:
        BudgetError: the fraction is outside [0, 1), or `of` is unknown.

    >>> Budget(remove=0.5, of="macs")
    Budget(remove=0.5, of='macs')
    """

    remove: float
    of: str = "channels"

    def __post_init__(self) -> None:
        remove: Any = self.remove
        if isinstance(remove, bool) or not isinstance(remove, Real) or not 0 <= float(remove) < 1:
            percent = (
                f", e.g. {self.remove / 100:g} for {self.remove:g} %"
                if _is_percent(self.remove)
                else ", e.g. 0.3 for 30 %"
            )
            raise BudgetError(f"remove={self.remove!r}: expected a fraction in [0, 1){percent}.")
        object.__setattr__(self, "remove", float(remove))
        if self.of not in (*MEASURES, WEIGHTS):
            raise BudgetError(f"of={self.of!r}: expected one of {', '.join(MEASURES)} or {WEIGHTS}.")

    def __str__(self) -> str:
        return f"remove {self.remove:.1%} of {self.of}"


def _is_percent(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool) and 1 < float(value) < 100


@dataclass(frozen=True)
class Limits:
    """What a plan has to respect besides its budget.

    Attributes:
        protect: module paths (or group names) whose channels all stay.
        min_keep: every group keeps at least this many channels.
        round_to: every width that changes becomes a multiple of this; groups narrower than it stay whole.

    Raises:
        BudgetError: a number is not a whole number of 1 or more.
    """

    protect: tuple[str, ...] = ()
    min_keep: int = 1
    round_to: int = 1

    def __post_init__(self) -> None:
        object.__setattr__(self, "protect", (self.protect,) if isinstance(self.protect, str) else tuple(self.protect))
        for name in ("min_keep", "round_to"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise BudgetError(f"{name}={value!r}: expected a whole number of channels, 1 or more.")


def kept_counts(removed: Array, widths: Array, limits: Limits) -> Array:
    """Return (groups,) how many channels stay when this many are asked to go, within the limits.

    >>> kept_counts(np.array([3, 0, 9]), np.array([20, 8, 10]), Limits(round_to=8, min_keep=2))
    array([16,  8,  8])
    """
    floor = np.minimum(widths, limits.min_keep)
    if limits.round_to > 1:
        step = limits.round_to
        floor = np.where(widths >= step, np.minimum(-(-floor // step) * step, widths), widths)
        kept = np.where(removed > 0, (widths - removed) // step * step, widths)
    else:
        kept = widths - removed
    return np.asarray(np.maximum(kept, floor))


def meet(
    budget: Budget, order: Sequence[int] | Array, widths: Array, limits: Limits, cost: Callable[[Array], float]
) -> Array:
    """Return (groups,) how many channels of each group stay so that the budget is just met.

    Args:
        budget: what to meet.
        order: (n,) group numbers in the order in which their channels go; each entry is one channel.
        widths: (groups,) channels of each group.
        limits: least widths and steps.
        cost: cost of (groups,) kept counts, never growing as counts fall.

    Raises:
        BudgetError: not reachable; says what is.
    """
    order = np.asarray(order, dtype=np.int64)
    whole = cost(widths)
    target = (1 - budget.remove) * whole + 1e-9 * whole

    def kept_after(count: int) -> Array:
        return kept_counts(np.bincount(order[:count], minlength=len(widths)), widths, limits)

    least = cost(kept_after(len(order)))
    if least > target:
        most = math.floor(1000 * (1 - least / whole)) / 1000  # rounded down: what is printed can be asked for
        raise BudgetError(
            f"asked to remove {budget.remove:.1%} of {budget.of}; at most {most:.1%} can go with "
            f"min_keep={limits.min_keep}, round_to={limits.round_to} and {len(set(order.tolist()))} groups free to go "
            f"({', '.join(limits.protect) or 'nothing'} protected). Ask for less, or loosen these."
        )
    low, high = 0, len(order)
    while low < high:
        middle = (low + high) // 2
        if cost(kept_after(middle)) <= target:
            high = middle
        else:
            low = middle + 1
    return kept_after(low)
