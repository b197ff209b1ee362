"""Take a shrunk model apart into tensors and a record."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import StoreError
from ..surgery.branches import KIND as BRANCH
from ..surgery.layout import axis_order
from ..surgery.record import RECORD, SurgeryRecord, record_of
from ..weight_plan import masked_in
from .folder import write_folder
from .packing import smaller
from .record import DTYPES, FORMAT, Details, StoredModel, StoredSurgery, StoredTensor

DETAILS = "secateur_details"  # attribute of a shrunk model


def save(
    small: nn.Module,
    path: str | os.PathLike[str],
    *,
    details: Details | Mapping[str, Any] | None = None,
    compress: bool = True,
) -> None:
    """Write a shrunk or sparse model to a folder, as ``model.safetensors`` and ``secateur.json``.

    Every parameter and buffer is saved with its bits, the non-persistent ones too; tied ones once. Saved as well:
    ``requires_grad``, memory layout, and which modules are in training mode. Hooks and gradients are not. A model that
    the folder held is replaced in one step; its other files stay.

    Args:
        small: what `shrink`, `sparsify`, `finalize` or `load` returned; nothing of it changes.
        path: the folder; made if it is not there.
        details: where the model comes from; see `Details`. None = what `annotate_` noted on the model.
        compress: write parameters with enough zeros as a bit per weight and the values that are not zero, wherever
            that takes less room. The bits come back the same. False = plain tensors, for other readers of the file.

    Raises:
        StoreError: the model was neither shrunk nor sparsified, holds what a tensor file cannot, or the folder cannot
            be written.
    """
    record, masked = _record_of(small), masked_in(small)
    noted = details_of(small) if details is None else Details.of(details)
    tensors, same_as = _tensors_of(small)
    surgery = StoredSurgery.of(record)
    stored = {name: _describe(name, tensor) for name, tensor in tensors.items()}
    written = _on_cpu(tensors)
    for name in [name for name, tensor in stored.items() if compress and tensor.kind == "parameter"]:
        if packed := smaller(name, written[name]):
            written |= packed
            stored[name] = stored[name].model_copy(update={"nonzero": len(packed[name])})
    has_branches = any(settings.get("kind") == BRANCH for settings in record.swapped.values())
    is_plain = not masked and not has_branches and all(tensor.nonzero is None for tensor in stored.values())

    def describe(sha256: str, size_bytes: int) -> StoredModel:
        return StoredModel(
            format=1 if is_plain else FORMAT,
            versions={"secateur": _version(), "torch": str(torch.__version__), "python": platform.python_version()},
            model_class=type(small).__qualname__,
            model_module=type(small).__module__,
            sha256=sha256,
            size_bytes=size_bytes,
            details=noted,
            training=training_modes(small),
            surgery=surgery,
            tensors=stored,
            same_as=same_as,
            empty=[name for name, (_, _, value) in slots(small).items() if value is None],
            classes=classes(small),
            masked=masked,
        )

    write_folder(Path(path), written, describe)


def annotate_(small: nn.Module, details: Details | Mapping[str, Any]) -> None:
    """Note on a shrunk or sparse model, in place, where it comes from; `save` writes it down.

    Raises:
        StoreError: a detail is unknown or has no place in JSON.
    """
    small.__dict__[DETAILS] = record_of(small), Details.of(details)


def details_of(model: nn.Module) -> Details:
    """Return what `annotate_` or `load` noted on a model; empty details if nothing, or if it was cut again since."""
    record, details = model.__dict__.get(DETAILS, (None, Details()))
    return details if isinstance(details, Details) and record == record_of(model) else Details()


def slots(model: nn.Module) -> dict[str, tuple[nn.Module, str, Tensor | None]]:
    """Return name -> (module, attribute, value) for every place of a parameter or buffer, tied and empty ones too."""
    found: dict[str, tuple[nn.Module, str, Tensor | None]] = {}
    for path, module in model.named_modules(remove_duplicate=False):
        for table in (module._parameters, module._buffers):
            for leaf, value in table.items():
                found[f"{path}.{leaf}" if path else leaf] = module, leaf, value
    return found


def classes(model: nn.Module) -> dict[str, str]:
    """Return module path -> name of its class."""
    return {path: type(module).__qualname__ for path, module in model.named_modules(remove_duplicate=False)}


def training_modes(model: nn.Module) -> dict[str, bool]:
    """Return module path -> training mode, for the root and wherever it differs from the module around it.

    >>> net = nn.Sequential(nn.Linear(1, 1), nn.Dropout())
    >>> net[1].train(False) and training_modes(net)
    {'': True, '1': False}
    """
    modes = {path: module.training for path, module in model.named_modules()}
    return {p: mode for p, mode in modes.items() if not p or mode != modes.get(p.rpartition(".")[0], modes[""])}


def _record_of(small: nn.Module) -> SurgeryRecord:
    if not isinstance(small, nn.Module):
        hint = ": give its .model" if isinstance(getattr(small, "model", None), nn.Module) else ""
        raise StoreError(f"a {type(small).__name__} cannot be saved; expected a torch.nn.Module{hint}.")
    record = record_of(small)
    if record is not None:
        return record
    if masked_in(small):
        return SurgeryRecord()
    inner = next((path for path, m in small.named_modules() if isinstance(m.__dict__.get(RECORD), SurgeryRecord)), None)
    hint = (
        "it was never cut by secateur.shrink, and lost no weights to secateur.sparsify. "
        "Shrink or sparsify it first; to save a full-size model, save its state_dict."
        if inner is None
        else f"only its module {inner!r} does. Save that: secateur.save(model.get_submodule({inner!r}), …)."
    )
    raise StoreError(f"this {type(small).__qualname__} carries no record of surgery: {hint}")


def _tensors_of(small: nn.Module) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return name -> tensor for each tensor once, and name -> first name for the further names of tied ones."""
    for path, module in small.named_modules():
        if type(module).get_extra_state is not nn.Module.get_extra_state:
            raise StoreError(
                f"module {path!r} ({type(module).__qualname__}) keeps extra state, which a tensor file cannot hold: "
                "keep it in buffers, or take it from the fresh model."
            )
    tensors: dict[str, Tensor] = {}
    first: dict[int, str] = {}
    same_as: dict[str, str] = {}
    for name, (_, _, value) in slots(small).items():
        if value is not None and first.setdefault(id(value), name) == name:
            tensors[name] = value
        elif value is not None:
            same_as[name] = first[id(value)]
    return tensors, same_as


def _describe(name: str, tensor: Tensor) -> StoredTensor:
    dtype = str(tensor.dtype).removeprefix("torch.")
    if dtype not in DTYPES or tensor.layout != torch.strided or tensor.is_quantized:
        raise StoreError(
            f"{name!r} is a {tensor.layout} tensor of {tensor.dtype}, which cannot be saved without pickle: "
            f"convert it to a dense tensor of {', '.join(DTYPES)}."
        )
    if tensor.is_meta:
        raise StoreError(f"{name!r} is on the meta device and holds no data: give the model its weights first.")
    is_usual = tensor.is_contiguous() and tensor.stride() == torch.empty(tensor.shape, device="meta").stride()
    return StoredTensor(
        kind="parameter" if isinstance(tensor, nn.Parameter) else "buffer",
        dtype=dtype,
        shape=tuple(tensor.shape),
        strides=None if is_usual or axis_order(tensor) is None else tensor.stride(),
        requires_grad=tensor.requires_grad,
    )


def _on_cpu(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return dict(_alone(tensors))


def _alone(tensors: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    """Yield each tensor on the CPU, contiguous and, as the file format asks, sharing no memory with another."""
    seen: set[int] = set()
    for name, tensor in tensors.items():
        plain = tensor.detach().cpu().resolve_conj().resolve_neg()
        plain = (torch.view_as_real(plain) if plain.is_complex() else plain).contiguous()
        storage = plain.untyped_storage()
        if storage.data_ptr() in seen or storage.nbytes() != plain.numel() * plain.element_size():
            plain = plain.clone()
        seen.add(plain.untyped_storage().data_ptr())
        yield name, plain


def _version() -> str:
    try:
        return metadata.version("secateur")
    except metadata.PackageNotFoundError:
        return "unknown"
