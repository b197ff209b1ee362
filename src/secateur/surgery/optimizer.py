"""Carry an optimizer's momentum over to a shrunk model, so that training goes on where it was."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from ..errors import SurgeryError
from .record import record_of
from .shrink import Cut, cut_tensor


def shrink_optimizer(optimizer: Optimizer, model: nn.Module, small: nn.Module) -> Optimizer:
    """Return an optimizer over a shrunk model's parameters, its state cut as the weights were.

    A step with it does to the kept weights what a step of the masked model would do. Class, settings and groups are
    those of `optimizer`; parameters that it does not train stay out. Its hooks stay behind, and a learning-rate
    scheduler has to be made again around the new optimizer.

    Args:
        optimizer: over parameters of `model`; it is not changed.
        model: the model before the cut.
        small: what `shrink` made of it.

    Raises:
        SurgeryError: `small` was not made from `model`; the optimizer has parameters of neither; or its state cannot be
            cut, such as the row and column factors of Adafactor or the history of LBFGS.
    """
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    new = dict(small.named_parameters(remove_duplicate=False))
    cuts = _cuts_between(model, small)
    for group in optimizer.param_groups:
        for position, parameter in enumerate(group["params"]):
            if id(parameter) not in names:
                raise SurgeryError(
                    f"the optimizer trains a parameter of shape {list(parameter.shape)} (number {position} of its "
                    f"group) that is none of the model's: give the {type(model).__qualname__} it was made for."
                )
    groups = [
        {**_copied(group), "params": [new[names[id(p)]] for p in group["params"]]} for group in optimizer.param_groups
    ]
    result = _like(optimizer, groups)
    for parameter, state in optimizer.state.items():
        name = names.get(id(parameter))
        if name is None:
            raise SurgeryError(
                f"the optimizer keeps state for {parameter!r:.60}, which is none of its parameters, so it cannot be "
                "cut: make a new optimizer over small.parameters()."
            )
        result.state[new[name]] = {
            key: _cut_state(value, parameter, cuts.get(name, []), f"{type(optimizer).__name__} state {key!r} of {name}")
            for key, value in state.items()
        }
    return result


def _cuts_between(model: nn.Module, small: nn.Module) -> dict[str, Cut]:
    """Return how the parameters of `model` were cut to those of `small`, where both may be cut already."""
    record, before = record_of(small), record_of(model)
    if record is None:
        raise SurgeryError(f"this {type(small).__qualname__} carries no record of a cut: give what shrink returned.")
    cuts: dict[str, Cut] = {}
    sizes = {name: list(p.shape) for name, p in model.named_parameters(remove_duplicate=False)}
    alike = {name for name in sizes.keys() & record.kept.keys() if len(sizes[name]) == len(record.shapes[name])}
    for name in alike:
        known = dict(before.kept.get(name, [])) if before is not None else {}
        cuts[name] = []
        for axis, index in record.kept[name]:
            here = known.get(axis, range(record.shapes[name][axis]))  # what `model` has left of the axis
            place = {kept: position for position, kept in enumerate(here)}
            fits = sizes[name][axis] == len(here) and all(kept in place for kept in index)
            sizes[name][axis] = len(index) if fits else -1
            cuts[name].append((axis, torch.tensor([place.get(kept, -1) for kept in index])))
    _check(model, small, sizes)
    return cuts


def _check(model: nn.Module, small: nn.Module, sizes: Mapping[str, list[int]]) -> None:
    """Raise `SurgeryError` unless the cut parameters of one model have the sizes of the other's."""
    found = {name: list(p.shape) for name, p in small.named_parameters(remove_duplicate=False)}
    if odd := sorted(name for name in found.keys() | sizes.keys() if found.get(name) != sizes.get(name)):
        name = odd[0]
        whole = dict(model.named_parameters(remove_duplicate=False)).get(name)
        raise SurgeryError(
            f"the shrunk model was not made from this one: {name!r} has shape {found.get(name)} in it, and here "
            f"{None if whole is None else list(whole.shape)}, which the recorded cut does not lead from "
            f"({len(odd)} parameters differ). Give the model as it was shrunk."
        )


def _copied(group: Mapping[str, Any]) -> dict[str, Any]:
    """Copy a group's settings; its tensors (a learning rate, say) too."""
    return {key: copy.deepcopy(value) for key, value in group.items() if key != "params"}


def _like(optimizer: Optimizer, groups: list[dict[str, Any]]) -> Optimizer:
    """Make an optimizer of the same class and defaults; each group keeps its own settings."""
    kind = type(optimizer)
    accepted = inspect.signature(kind).parameters
    takes_all = any(parameter.kind is parameter.VAR_KEYWORD for parameter in accepted.values())
    settings = {k: copy.deepcopy(v) for k, v in optimizer.defaults.items() if takes_all or k in accepted}
    try:
        return kind(groups, **settings)
    except (TypeError, ValueError) as error:
        raise SurgeryError(
            f"no {kind.__qualname__} can be made with the settings {sorted(settings)} of the old one ({error}): "
            "make a new optimizer over small.parameters()."
        ) from error


def _cut_state(value: Any, parameter: Tensor, cuts: Cut, what: str) -> Any:
    """Cut one entry of a parameter's state: of its shape = with it; a number, or of an uncut parameter = as it is."""
    if isinstance(value, Tensor):
        if value.shape == parameter.shape:
            return cut_tensor(value, cuts)
        if value.numel() == 1 or (not cuts and value.numel() <= parameter.numel()):
            return value.detach().clone(memory_format=torch.preserve_format)
    elif value is None or isinstance(value, (bool, int, float, str)):
        return value
    kind = f"a tensor of shape {list(value.shape)}" if isinstance(value, Tensor) else f"a {type(value).__name__}"
    raise SurgeryError(
        f"{what} is {kind}, and the weight has shape {list(parameter.shape)}: it cannot be cut with the weight. "
        "Make a new optimizer over small.parameters()."
    )
