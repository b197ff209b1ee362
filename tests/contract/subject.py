"""What the suite is held against: a row of the catalogue, or any other method described like one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import pytest

from secateur.catalogue import Entry
from secateur.errors import MethodError, NothingToPrune
from secateur.methods import Decision, Method, Problem

from .cases import CASES, Case


@dataclass(frozen=True, eq=False)
class Subject:
    """A method under test.

    Attributes:
        name: in test names.
        make: settings -> the method.
        needs: as in `Entry`.
        waives: as in `Entry`.
        brief: as in `Entry`.
    """

    name: str
    make: Callable[..., Method]
    needs: tuple[str, ...] = ()
    waives: tuple[str, ...] = ()
    brief: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, entry: Entry) -> Subject:
        return cls(entry.name, entry.make, entry.needs, entry.waives, entry.brief)

    def decide(self, problem: Problem) -> Decision:
        return self.make(**self.brief).decide(problem)

    @property
    def reads_data(self) -> bool:
        return bool(set(self.needs) & {"data", "labels", "training"})


@cache
def refusal(subject: Subject, case: Case) -> str | None:
    """Say why the method cannot work on this kind of model at all; None if it can.

    Only the documented errors count as a refusal; any other is a fault and goes through.
    """
    try:
        subject.decide(case.problem())
    except (MethodError, NothingToPrune) as error:
        return str(error)
    return None


def hold(promise: Callable[[Subject, Case], None], subject: Subject, case: Case) -> None:
    """Hold a method to a promise; skip what it waives and the models that it refuses in words."""
    if promise.__name__ in subject.waives:
        pytest.skip(f"{subject.name} waives {promise.__name__} in the catalogue")
    if reason := refusal(subject, case):
        pytest.skip(f"{subject.name} refuses this model: {reason}")
    promise(subject, case)


def accepted(subject: Subject) -> list[str]:
    """Names of the models that the method works on."""
    return [case.name for case in CASES.values() if refusal(subject, case) is None]
