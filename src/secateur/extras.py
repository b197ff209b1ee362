"""Import what only some installs have, and name the extra to install where it is missing."""

from __future__ import annotations

import importlib
from types import ModuleType

from .errors import MissingExtra


def require(module: str, *, extra: str, purpose: str) -> ModuleType:
    """Import an optional dependency.

    Args:
        module: dotted name of the module.
        extra: the extra of this package that brings it.
        purpose: what the caller asked for, in words; opens the message.

    Raises:
        MissingExtra: the module is not installed.

    >>> require("math", extra="vision", purpose="this example").sqrt(4)
    2.0
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] != module.partition(".")[0]:
            raise
        raise MissingExtra(
            f'{purpose} needs {error.name}, which is not installed: pip install "secateur[{extra}]".'
        ) from error
