"""Put a shrunk model together from its two files and a fresh instance of the original class."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from ..errors import StoreError, SurgeryError
from ..graph.branches import names_inside
from ..surgery.branches import KIND as BRANCH
from ..surgery.rebuild import rebuild
from ..surgery.record import RECORD, index_tensors
from ..surgery.widths import recompute_weights_, relink_recurrent_
from ..weight_plan import mark_masked_
from .folder import read_text, tensor_file
from .packing import bits_name, unpacked
from .record import DTYPES, StoredModel, StoredTensor
from .saving import annotate_, classes, slots

Slots = dict[str, tuple[nn.Module, str, Tensor | None]]


@torch.inference_mode(False)  # tensors made in that mode never train
def load(path: str | os.PathLike[str], model: nn.Module | Callable[[], nn.Module]) -> nn.Module:
    """Read a shrunk or sparse model that `save` wrote, to the same bits.

    Parameters and buffers (their dtype, ties, ``requires_grad`` and memory layout) and training modes come from the
    files; everything else, such as code, hooks and tensors that are plain attributes, from the fresh model.

    Args:
        path: the folder.
        model: an instance of the original class, built with the widths it had before it was shrunk, or a function
            (the class, say) that returns one. Its weights do not matter, and it is not changed. The tensors go to its
            devices; to the CPU from the meta device.

    Returns:
        The model, with the record for a further `shrink` or `save`. `WeightPlan.of` gives the zeros of a sparse one, to
        train on with the same mask.

    Raises:
        StoreError: a file is missing, damaged or of a newer version, or the model is not the one that was shrunk.
    """
    folder = Path(path)
    stored = read_record(folder)
    fresh = model() if callable(model) and not isinstance(model, nn.Module) else model
    if not isinstance(fresh, nn.Module):
        raise StoreError(f"model= gave a {type(fresh).__qualname__}; expected a module, or a function that makes one.")
    try:
        if type(fresh).__qualname__ != stored.model_class:
            raise StoreError(
                f"a {stored.model_module}.{stored.model_class} was saved, and model= is a {type(fresh).__qualname__}: "
                "give an instance of the class that was shrunk."
            )
        _check_slots(fresh, stored)
        tensors = _placed(fresh, _read_tensors(tensor_file(folder, stored), stored))
        small = rebuild(fresh, stored.surgery.record(), tensors=tensors)
        _fill_(small, stored, tensors)
    except (StoreError, SurgeryError) as error:
        raise StoreError(f"cannot load {folder}: {error}") from error
    if not stored.surgery.shapes and not stored.surgery.swapped:
        del small.__dict__[RECORD]
    mark_masked_(small, stored.masked)
    annotate_(small, stored.details)
    return small


def read_record(path: str | os.PathLike[str]) -> StoredModel:
    """Read what a saved model's ``secateur.json`` says, without its tensors.

    Raises:
        StoreError: there is none, or it is damaged or of a newer version.
    """
    text = read_text(Path(path))
    try:
        return StoredModel.from_json(text)
    except StoreError as error:
        raise StoreError(f"cannot use {Path(path) / 'secateur.json'}: {error}") from error


def _check_slots(fresh: nn.Module, stored: StoredModel) -> None:
    """Raise `StoreError` unless the fresh model has a place for each saved tensor, and none besides."""
    found = slots(fresh)
    saved = {**stored.tensors, **{alias: stored.tensors[name] for alias, name in stored.same_as.items()}}
    added = index_tensors(stored.surgery.record())
    saved = {name: tensor for name, tensor in saved.items() if name not in added}
    if missing := [name for name in saved if name not in found]:
        raise StoreError(_odd("holds", missing, "the fresh model has no place for"))
    known = saved.keys() | set(stored.empty)
    gone = set(names_inside(found, [path for path, s in stored.surgery.swapped.items() if s.kind == BRANCH]))
    if extra := [n for n, (_, _, value) in found.items() if n not in known | gone and value is not None]:
        raise StoreError(_odd("lacks", extra, "the fresh model has"))
    for name, tensor in saved.items():
        module, leaf, value = found[name]
        kind = "parameter" if leaf in module._parameters else "buffer"
        if kind != tensor.kind:
            raise StoreError(f"{name!r} was saved as a {tensor.kind}, and in the fresh model it is a {kind}.")
        cut = dict(stored.surgery.kept.get(name, []))
        if value is None:
            continue
        after = tuple(len(cut.get(axis, range(size))) for axis, size in enumerate(value.shape))
        if after != tensor.shape:
            raise StoreError(
                f"{name!r} was saved with shape {list(tensor.shape)}; in the fresh model it has {list(value.shape)}, "
                f"after the cut {list(after)}. Build the model with the settings it had when it was shrunk."
            )


def _odd(verb: str, names: list[str], place: str) -> str:
    shown = ", ".join(repr(name) for name in names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
    return (
        f"the saved model {verb} {shown}, which {place}: build the model with the settings it had when it was shrunk."
    )


def _read_tensors(path: Path, stored: StoredModel) -> dict[str, Tensor]:
    """Return the tensors of the file, in their own dtype and layout."""
    try:
        raw = load_file(path)
    except (OSError, SafetensorError, KeyError, ValueError, RuntimeError) as error:
        raise StoreError(f"{path} is no tensor file that can be read: {error}. Save the model again.") from error
    packed = [name for name, tensor in stored.tensors.items() if tensor.nonzero is not None]
    wanted = stored.tensors.keys() | {bits_name(name) for name in packed}
    if raw.keys() != wanted:
        name = min(raw.keys() ^ wanted)
        where = "the file holds it" if name in raw else "the record lists it"
        raise StoreError(
            f"{path} and the record beside it disagree about {name!r}: only {where}. Save the model again."
        )
    raw |= {name: _unpacked(name, raw, stored.tensors[name]) for name in packed}
    return {name: _as_described(name, raw[name], tensor) for name, tensor in stored.tensors.items()}


def _unpacked(name: str, raw: Mapping[str, Tensor], asked: StoredTensor) -> Tensor:
    shape = (*asked.shape, 2) if DTYPES[asked.dtype].is_complex else asked.shape
    try:
        if raw[name].shape != (asked.nonzero,):
            raise ValueError(f"{list(raw[name].shape)} values for {asked.nonzero}")
        return unpacked(raw[name], raw[bits_name(name)], shape)
    except ValueError as error:
        raise StoreError(
            f"{name!r} is packed, and its values do not fit its bits ({error}). Save the model again."
        ) from error


def _as_described(name: str, raw: Tensor, asked: StoredTensor) -> Tensor:
    dtype = DTYPES[asked.dtype]
    is_pair = dtype.is_complex and raw.ndim == len(asked.shape) + 1 and raw.shape[-1] == 2
    tensor = torch.view_as_complex(raw) if is_pair and raw.is_floating_point() else raw
    if tensor.dtype != dtype or tuple(tensor.shape) != asked.shape:
        raise StoreError(
            f"{name!r} is {list(raw.shape)} of {raw.dtype} in the tensor file; the record says {list(asked.shape)} of "
            f"{dtype}. Save the model again."
        )
    # A copy: the file may change under the memory it is mapped to, and kernels prefer aligned memory.
    if asked.strides is None:
        return tensor.clone()
    return torch.empty_strided(asked.shape, asked.strides, dtype=dtype).copy_(tensor)


def _placed(fresh: nn.Module, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Move tensors to the devices of the fresh model's, in place of its own."""
    places = {name: value.device for name, (_, _, value) in slots(fresh).items() if value is not None}
    usual = next((device for device in places.values() if device.type != "meta"), torch.device("cpu"))
    return {
        name: tensor.to(usual if places.get(name, usual).type == "meta" else places.get(name, usual))
        for name, tensor in tensors.items()
    }


def _fill_(small: nn.Module, stored: StoredModel, tensors: Mapping[str, Tensor]) -> None:
    """Give a rebuilt model the ties, empty places and flags that were saved, in place."""
    found = slots(small)
    made: dict[str, Tensor] = {}
    taken: set[int] = set()
    for name in found.keys() & set(stored.empty):
        _put(found[name], None)
    for name, asked in stored.tensors.items():
        value = found[name][2]
        if value is None or id(value) in taken:
            value = nn.Parameter(tensors[name], requires_grad=False) if asked.kind == "parameter" else tensors[name]
            _put(found[name], value)
        taken.add(id(value))
        made[name] = value.requires_grad_(asked.requires_grad)
    for alias, name in stored.same_as.items():
        _put(found[alias], made[name])
    relink_recurrent_(small)
    recompute_weights_(small)
    _check_classes(small, stored)
    modes: dict[str, bool] = {}
    for path, module in small.named_modules():
        around = modes.get(path.rpartition(".")[0], True)
        module.training = modes[path] = stored.training.get(path, around)


def _put(slot: tuple[nn.Module, str, Tensor | None], value: Tensor | None) -> None:
    module, leaf, _ = slot
    table: dict[str, Tensor | None] = module._parameters if leaf in module._parameters else module._buffers  # type: ignore[assignment]
    table[leaf] = value


def _check_classes(small: nn.Module, stored: StoredModel) -> None:
    found = classes(small)
    for path in sorted(found.keys() | stored.classes.keys()):
        if found.get(path) != stored.classes.get(path):
            raise StoreError(
                f"module {path!r} was saved as {stored.classes.get(path, 'nothing')}, and the fresh model gives "
                f"{found.get(path, 'nothing')}: build the model with the settings it had when it was shrunk."
            )
