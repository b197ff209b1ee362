"""Do a recorded surgery again, on another instance of the original class, without tracing it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import SurgeryError
from ..graph.select import SELECT
from ..graph.walk import modules_of, state_of
from .attention import SlimMultiheadAttention
from .attributes import read, write
from .branches import KIND as BRANCH
from .branches import swap_branch_module_
from .record import RECORD, AttributeChange, SurgeryRecord, index_tensors, record_of
from .selecting import insert_
from .shrink import Cut, cut_copy
from .widths import relink_recurrent_, swap_attention_


def rebuild(model: nn.Module, record: SurgeryRecord, *, tensors: Mapping[str, Tensor] | None = None) -> nn.Module:
    """Return a smaller copy of a model, cut as the record says; its own weights are what is left in it.

    With the model that was shrunk it gives the shrunk model again, bit for bit. With a fresh instance of its class it
    gives the small architecture with fresh weights: what training from scratch needs, and loading fills in.

    Args:
        model: an instance of the original class at full width; it may be on the meta device. Nothing of it changes.
        record: what `shrink` wrote down, see `record_of`.
        tensors: name -> what a parameter or buffer is to hold, already cut; None = what is left of the model's own.

    Raises:
        SurgeryError: the model is already cut, or is not of the class and widths that the record was made from.
    """
    if record_of(model) is not None:
        raise SurgeryError(
            "the surgery has to start from a model at full width, and this one is cut already: give a fresh instance."
        )
    _check_tensors(model, record)
    small = cut_copy(model, _cuts(record), _by_first_name(model, tensors or {}))
    for path in record.selections:
        insert_(small, path, _index(record, path, tensors or {}))
    modules = modules_of(small)
    for change in record.attributes:
        _apply(modules, change)
    for path, settings in record.swapped.items():
        if settings.get("kind") == BRANCH:
            _take_out(small, path, settings)
        else:
            _swap(small, model, path, settings)
    relink_recurrent_(small)
    small.__dict__[RECORD] = record
    return small


def _index(record: SurgeryRecord, path: str, tensors: Mapping[str, Tensor]) -> Tensor:
    """Return what a selection passes on."""
    name = f"{path}.{SELECT}.index"
    ((_, index),) = record.kept[name]
    return tensors[name] if name in tensors else torch.tensor(index)


def _cuts(record: SurgeryRecord) -> dict[str, Cut]:
    added = index_tensors(record)
    return {
        name: [(axis, torch.tensor(index, dtype=torch.long)) for axis, index in axes]
        for name, axes in record.kept.items()
        if name not in added
    }


def _check_tensors(model: nn.Module, record: SurgeryRecord) -> None:
    """Raise `SurgeryError` unless every axis that was cut is there, as long as it was."""
    shapes = {name: tuple(t.shape) for name, t in state_of(model, shared=True).items()}
    added = index_tensors(record)
    for name, cuts in record.kept.items():
        if name in added:
            continue
        asked, found = tuple(record.shapes[name]), shapes.get(name)
        if found is None:
            raise SurgeryError(
                f"the surgery cuts a tensor {name!r} of shape {list(asked)}, and the model ({_kind(model)}) has none "
                "of that name: give an instance of the class that was shrunk."
            )
        if len(found) != len(asked) or any(found[axis] != asked[axis] for axis, _ in cuts):
            raise SurgeryError(
                f"the surgery cuts {name!r} of shape {list(asked)}; in this model it has shape {list(found)}. "
                "Build the model with the widths it had before it was shrunk."
            )


def _apply(modules: dict[str, nn.Module], change: AttributeChange) -> None:
    where = f"attribute {change.name!r} of module {change.module!r}"
    if change.module not in modules:
        raise SurgeryError(f"the surgery changes {where}, and the model has no such module: give an instance of the "
                           "class that was shrunk.")  # fmt: skip
    module = modules[change.module]
    found = read(module, change.name)
    if isinstance(found, bool) != isinstance(change.before, bool) or _plain(found) != _plain(change.before):
        raise SurgeryError(
            f"the surgery changes {where} from {change.before!r} to {change.after!r}; in this model it is {found!r}. "
            "Build the model with the settings it had before it was shrunk."
        )
    write(module, change.name, change.after)


def _swap(small: nn.Module, model: nn.Module, path: str, settings: dict[str, Any]) -> None:
    old = modules_of(model).get(path)
    if not isinstance(old, (nn.MultiheadAttention, SlimMultiheadAttention)):
        found = "nothing" if old is None else _kind(old)
        raise SurgeryError(
            f"the surgery replaces the attention {path!r}; in this model that is {found}. "
            "Give an instance of the class that was shrunk."
        )
    kept = settings.get("kept_heads")
    got = swap_attention_(small, path, old, range(settings["num_heads"]) if kept is None else kept)
    if differing := [name for name in got if _plain(got[name]) != _plain(settings.get(name))]:
        name = differing[0]
        raise SurgeryError(
            f"the attention {path!r} comes out with {name}={got[name]!r}, and it had {settings.get(name)!r}: "
            "give an instance of the class and settings that were shrunk."
        )


def _by_first_name(model: nn.Module, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Name what tied tensors are to hold as the model does first: of those left, another name may come first."""
    first = {id(tensor): name for name, tensor in state_of(model).items()}
    every = state_of(model, shared=True)
    renamed = {first[id(every[name])]: tensor for name, tensor in tensors.items() if name in every}
    return {**renamed, **tensors}


def _take_out(small: nn.Module, path: str, settings: Mapping[str, Any]) -> None:
    if path not in modules_of(small, shared=True):
        raise SurgeryError(
            f"the surgery takes out module {path!r} of a residual branch, and the model has none of that path: give an "
            "instance of the class that was shrunk."
        )
    swap_branch_module_(small, path, settings)


def _plain(value: Any) -> Any:
    return tuple(value) if isinstance(value, (list, tuple)) else value


def _kind(module: nn.Module) -> str:
    return type(module).__qualname__
