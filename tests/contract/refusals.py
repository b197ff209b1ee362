"""What every method refuses, and with which error: ``refusal(subject, case)`` fails if it does not."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import pytest
import torch

from secateur.errors import BudgetError, MethodError, NothingToPrune, TrainingError, UnknownName

from .cases import Case
from .subject import Subject

Refusal = Callable[[Subject, Case], None]
REFUSALS: dict[str, Refusal] = {}


def refuses(function: Refusal) -> Refusal:
    REFUSALS[function.__name__] = function
    return function


@refuses
def weights_that_are_no_numbers(subject: Subject, case: Case) -> None:
    for value in (float("nan"), float("inf")):
        model = case.model()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.flatten()[0] = value
        with pytest.raises(MethodError, match="NaN or infinite"):
            subject.decide(case.problem(model=model))


@refuses
def missing_data(subject: Subject, case: Case) -> None:
    if not subject.reads_data:
        return
    for missing in ({"data": None}, {"task": None}, {"data": None, "task": None}):
        with pytest.raises(MethodError, match=r"data=|task="):
            subject.decide(case.problem(**missing))


@refuses
def empty_data(subject: Subject, case: Case) -> None:
    if subject.reads_data:
        with pytest.raises((MethodError, TrainingError), match=r"batch|data|loader|sample"):
            subject.decide(case.problem(data=[]))


@refuses
def a_budget_out_of_reach(subject: Subject, case: Case) -> None:
    with pytest.raises(BudgetError, match="at most"):
        subject.decide(case.problem(0.9999, "params"))


@refuses
def everything_protected(subject: Subject, case: Case) -> None:
    with pytest.raises(NothingToPrune, match="protect"):
        subject.decide(case.problem(limits={"protect": ("",)}))


@refuses
def an_unknown_layer_to_protect(subject: Subject, case: Case) -> None:
    with pytest.raises(UnknownName, match="no_such_layer"):
        subject.decide(case.problem(limits={"protect": ("no_such_layer",)}))


@refuses
def an_unknown_setting(subject: Subject, case: Case) -> None:
    with pytest.raises(MethodError, match="no_such_setting"):
        subject.make(no_such_setting=1)


@refuses
def a_change_of_settings(subject: Subject, case: Case) -> None:
    made = subject.make()
    assert dataclasses.is_dataclass(made), "a method is a frozen dataclass"
    assert made == subject.make(), "two methods with the same settings are equal"
    setting = next((f.name for f in dataclasses.fields(made)), "anything")
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(made, setting, 1)


@refuses
def settings_without_sense(subject: Subject, case: Case) -> None:
    """A word where only some are known, a number that is none: told when made, at the latest when used."""
    for setting in dataclasses.fields(subject.make()):
        value = {str: "no such word", float: float("nan")}.get(type(setting.default))
        if value is not None:
            with pytest.raises((MethodError, UnknownName), match=f"{setting.name}|no such word"):
                subject.make(**{**subject.brief, setting.name: value}).decide(case.problem())
