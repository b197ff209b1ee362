"""Plain nested state in one safetensors file: nothing in it is executed when it is read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from secateur.errors import TrainingError
from secateur.files import replacing

_TREE = "secateur_state"


def write_state(path: Path, state: Any) -> None:
    """Write tensors, numbers, strings, None, and lists, tuples and dicts of them; all or nothing.

    Raises:
        TrainingError: the state holds something else, or the file cannot be written.
    """
    tensors: dict[str, Tensor] = {}
    tree = json.dumps(_packed(state, tensors))
    try:
        with replacing(path) as partial:
            save_file(tensors, partial, metadata={_TREE: tree})
    except (OSError, SafetensorError) as error:
        raise TrainingError(f"cannot write {path}: {error}. Free some space or name another folder.") from error


def read_state(path: Path) -> Any:
    """Return what was written, tensors on the CPU.

    Raises:
        TrainingError: there is no such file, or it is damaged.
    """
    try:
        with safe_open(path, framework="pt") as file:
            return _unpacked(json.loads(file.metadata()[_TREE]), file)
    except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
        raise TrainingError(
            f"cannot read the attachments' state from {path}: {error}. Resume from a checkpoint that has it whole."
        ) from error


def _packed(value: Any, tensors: dict[str, Tensor]) -> Any:
    """Return JSON for a value; its tensors go into `tensors`, under names of their own."""
    if isinstance(value, Tensor):
        name = str(len(tensors))
        tensors[name] = value.detach().cpu().clone(memory_format=torch.contiguous_format)
        return {"tensor": name}
    if type(value) in (list, tuple):
        return {type(value).__name__: [_packed(each, tensors) for each in value]}
    if isinstance(value, dict):
        return {"dict": [[_packed(key, tensors), _packed(each, tensors)] for key, each in value.items()]}
    if value is None or type(value) in (bool, int, float, str):
        return value
    raise TrainingError(
        f"the state of an attachment holds a {type(value).__name__}: expected tensors, numbers, strings, None, and "
        "lists, tuples and dicts of them."
    )


def _unpacked(tree: Any, file: Any) -> Any:
    if not isinstance(tree, dict):
        return tree
    ((kind, content),) = tree.items()
    if kind == "tensor":
        return file.get_tensor(content)
    if kind == "dict":
        return {_unpacked(key, file): _unpacked(each, file) for key, each in content}
    values = [_unpacked(each, file) for each in content]
    return tuple(values) if kind == "tuple" else values
