"""The table that the families fill."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

from ..labels import Labels
from ..tape import Op

Rule: TypeAlias = Callable[[Labels, Op], None]

RULES: dict[str, Rule] = {}


def rule(*names: str) -> Callable[[Rule], Rule]:
    """Enter a rule in the table under these operation names."""

    def enter(function: Rule) -> Rule:
        for name in names:
            if name in RULES:
                raise AssertionError(f"two rules for {name}")
            RULES[name] = function
        return function

    return enter
