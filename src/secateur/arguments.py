"""Tell, before a call, whether its arguments fit."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any


def misfit(function: Callable[..., Any], *args: Any, **kwargs: Any) -> str | None:
    """Say why `function` cannot be called with these arguments; None if it can, or if it does not tell what it takes.

    >>> def scale(weight, *, by=2): ...
    >>> misfit(scale, 1, by=3)
    >>> misfit(scale, 1, to=3)
    "got an unexpected keyword argument 'to'; it takes (weight, *, by=2)"
    """
    try:
        signature = inspect.signature(function)
    except ValueError:
        return None
    try:
        signature.bind(*args, **kwargs)
    except TypeError as error:
        return f"{error}; it takes {signature}"
    return None
