"""What methods that take part in training check: the state they take up, the optimizer, and what they can work on."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from dataclasses import fields
from typing import Any

from ..errors import MethodError
from ..train.attachment import Moment

log = logging.getLogger(__name__)


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


def tell_left_whole(method: str, deed: str, why: Mapping[str, str], *, is_all: bool, instead: str) -> None:
    """Log the groups that a method leaves whole since it cannot do its deed to them.

    Args:
        method: its name.
        deed: what it does to the channels of the others, as in "it can mask them".
        why: group -> the reason.
        is_all: whether there are no others.
        instead: which method to use then, as in "a method that scores weights".

    Raises:
        MethodError: there are no others.
    """
    if is_all:
        name, reason = next(iter(why.items()))
        raise MethodError(
            f"{method} can {deed} the channels of no group, e.g. of {name!r}: {reason}. Use a method that {instead}."
        )
    if why:
        told = "; ".join(f"{name} ({reason})" for name, reason in why.items())
        log.info("%s cannot %s all channels; left whole: %s", method, deed, told)


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
