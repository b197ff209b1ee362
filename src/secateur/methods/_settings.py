"""Check a method's hyper-parameters when it is made."""

from __future__ import annotations

from collections.abc import Mapping

from ..errors import MethodError


def check_settings(method: object, ranges: Mapping[str, tuple[bool, str]]) -> None:
    """Raise `MethodError` for the first setting that is out of range.

    Args:
        method: whose settings.
        ranges: name of each setting -> whether it is valid, and what was expected, in words.
    """
    for name, (is_valid, wanted) in ranges.items():
        if not is_valid:
            raise MethodError(f"{name}={getattr(method, name)!r}: expected {wanted}.")
