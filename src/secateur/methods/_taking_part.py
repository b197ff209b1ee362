"""What methods that take part in training check: the state they take up, and the optimizer that moves their weights."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import fields
from typing import Any

from ..errors import MethodError
from ..train.attachment import Moment


def own_state(state: Mapping[str, Any], method: str) -> Mapping[str, Any]:
    """Return a saved state after checking whose it is.

    Raises:
        MethodError: another method saved it.

    >>> own_state({"method": "soft_filter", "kept": {"conv": 8}}, "soft_filter")["kept"]
    {'conv': 8}
    """
    if state.get("method") != method:
        raise MethodError(
            f"{method} was given the state of {state.get('method', 'something else')!r} to go on from: resume with the "
            "method that saved it, or start anew."
        )
    return state


def check_optimizer(method: str, moment: Moment, names: Iterable[str]) -> None:
    """Check that the optimizer moves all trainable parameters that a method works on.

    Raises:
        MethodError: one of them is not in any of its groups; frozen parameters need not be.
    """
    held = {id(parameter) for group in moment.optimizer.param_groups for parameter in group["params"]}
    for name in names:
        parameter = moment.model.get_parameter(name)
        if parameter.requires_grad and id(parameter) not in held:
            raise MethodError(
                f"{method} works on {name!r}, and the {type(moment.optimizer).__name__} of this run does not hold it: "
                "make the optimizer from all parameters of the model that was attached, or freeze this one."
            )


def settings_of(method: Any) -> dict[str, str]:
    """Return the hyper-parameters of a method as text, for a state; not its recipe, which the loop checks."""
    return {each.name: repr(getattr(method, each.name)) for each in fields(method) if each.name != "recipe"}


def check_same_settings(method: str, there: Mapping[str, str], here: Mapping[str, str]) -> None:
    """Check that a run that is taken up had the same settings.

    Raises:
        MethodError: one differs.
    """
    if differing := [key for key in here if here[key] != there.get(key)]:
        key = differing[0]
        raise MethodError(
            f"{method} cannot go on from a run with {key}={there.get(key)}: this one has {key}={here[key]}."
        )
