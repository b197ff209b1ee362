"""Checkpoints of a training run: all or nothing on disk, and read without executing anything.

A checkpoint is a directory `epoch-0002-step-00000123` with the weights (`model.safetensors`), the optimizer, random
numbers and attachments (`state.pt`, read with `weights_only`) and `run.json`: whose run it is, how far it got, its
history and the digests of the other two files. It is written beside its final name and renamed, so a half-written
one is never taken for a checkpoint; one that was damaged later fails its digests and the one before it is used.
"""

from __future__ import annotations

import hashlib
import io
import json
import logging
import pickle
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load, save_file
from torch import Tensor, nn

from secateur.errors import TrainingError
from secateur.files import flush

logger = logging.getLogger(__name__)

FORMAT = 1
KEPT_COUNT = 2
_WEIGHTS, _STATE, _RUN = "model.safetensors", "state.pt", "run.json"


@dataclass(frozen=True)
class Checkpoint:
    """A run at one step.

    Attributes:
        epoch: epochs of the schedule that are complete.
        step: optimizer steps done.
        identity: what must be equal for another run to go on from here; plain JSON values.
        weights: the model's state dict.
        state: the rest: tensors and plain values only.
        progress: plain JSON values.
    """

    epoch: int
    step: int
    identity: dict[str, Any]
    weights: dict[str, Any]
    state: dict[str, Any]
    progress: dict[str, Any] = field(default_factory=dict)


def write_checkpoint(folder: Path, checkpoint: Checkpoint) -> Path:
    """Write a checkpoint, all or nothing, and drop all but the newest two of the folder.

    Raises:
        TrainingError: the folder cannot be written, or an attachment's state is not plain data.
    """
    final = folder / f"epoch-{checkpoint.epoch:04d}-step-{checkpoint.step:08d}"
    part = folder / f".{final.name}.part"
    try:
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir(parents=True)
        _fill(part, checkpoint)
        if final.exists():
            shutil.rmtree(final)
        part.rename(final)
        flush(folder)
        for old in _candidates(folder)[KEPT_COUNT:]:
            shutil.rmtree(old)
    except OSError as error:
        raise TrainingError(
            f"cannot write the checkpoint {final}: {error}. Free some space or name another folder."
        ) from error
    logger.debug("wrote %s", final)
    return final


def read_newest_checkpoint(folder: Path, identity: dict[str, Any]) -> Checkpoint | None:
    """Return the newest whole checkpoint of a folder, or None if there is none.

    Raises:
        TrainingError: the newest whole checkpoint belongs to another run; says what differs.
    """
    for path in _candidates(folder):
        try:
            found = _read(path)
        except (OSError, ValueError, KeyError, RuntimeError, pickle.UnpicklingError) as error:
            logger.warning("ignoring the damaged checkpoint %s: %s", path, error)
            continue
        _refuse_another_run(path, asked=identity, found=found.identity)
        return found
    return None


def discard_checkpoints(folder: Path) -> None:
    """Delete every checkpoint of a folder."""
    for path in _candidates(folder):
        shutil.rmtree(path)


def weights_of(model: nn.Module) -> dict[str, Any]:
    """Return the state dict, detached."""
    return {name: value.detach() if isinstance(value, Tensor) else value for name, value in model.state_dict().items()}


def digest_of(model: nn.Module) -> str:
    """Return the SHA-256 of a model's names, shapes, types and weights: two models with it equal are the same one."""
    total = hashlib.sha256()
    for name, value in weights_of(model).items():
        if isinstance(value, Tensor):
            total.update(f"{name}{tuple(value.shape)}{value.dtype}".encode())
            total.update(value.cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return total.hexdigest()


def settings_of(thing: object) -> dict[str, Any]:
    """Return what can be compared of a task or an attachment: its class, and a dataclass's plain values."""
    plain_types = (str, int, float, bool, tuple, type(None))
    named = fields(thing) if is_dataclass(thing) else ()
    values = {each.name: getattr(thing, each.name) for each in named if each.init}
    kept = {name: repr(value) for name, value in values.items() if isinstance(value, plain_types)}
    return {"class": type(thing).__qualname__, **kept}


def plain(state: Any, owner: str) -> Any:
    """Return a copy of `state` as it will be read back.

    Raises:
        TrainingError: it holds more than tensors and plain values.
    """
    buffer = io.BytesIO()
    try:
        torch.save(state, buffer)
        buffer.seek(0)
        return torch.load(buffer, weights_only=True)
    except Exception as error:  # pickle, torch and the object itself each raise their own
        raise TrainingError(
            f"the state of {owner} cannot be saved without pickle: {error}. "
            "Its state_dict() may hold tensors, numbers, strings, None, and lists, tuples and dicts of them."
        ) from error


def _fill(part: Path, checkpoint: Checkpoint) -> None:
    tensors = {name: value for name, value in checkpoint.weights.items() if isinstance(value, Tensor)}
    others = {name: value for name, value in checkpoint.weights.items() if name not in tensors}
    # Tied weights share memory, which safetensors refuses: each name gets its own copy.
    save_file(
        {name: value.cpu().clone(memory_format=torch.contiguous_format) for name, value in tensors.items()},
        part / _WEIGHTS,
    )
    torch.save({"state": checkpoint.state, "extra_weights": others}, part / _STATE)
    record = {
        "format": FORMAT,
        "epoch": checkpoint.epoch,
        "step": checkpoint.step,
        "identity": checkpoint.identity,
        "progress": checkpoint.progress,
        "sha256": {name: _sha256(part / name) for name in (_WEIGHTS, _STATE)},
    }
    (part / _RUN).write_text(json.dumps(record, indent=1))
    for name in (_WEIGHTS, _STATE, _RUN, "."):
        flush(part / name)


def _read(path: Path) -> Checkpoint:
    record = json.loads((path / _RUN).read_text())
    if record["format"] != FORMAT:
        raise ValueError(f"format {record['format']}, and this version reads {FORMAT}")
    for name, digest in record["sha256"].items():
        if _sha256(path / name) != digest:
            raise ValueError(f"{name} is not what was written")
    state = torch.load(path / _STATE, weights_only=True, map_location="cpu")
    weights = load((path / _WEIGHTS).read_bytes())
    return Checkpoint(
        epoch=record["epoch"],
        step=record["step"],
        identity=record["identity"],
        weights={**weights, **state["extra_weights"]},
        state=state["state"],
        progress=record["progress"],
    )


def _candidates(folder: Path) -> list[Path]:
    """Newest first."""
    return sorted((path for path in folder.glob("epoch-*-step-*") if path.is_dir()), reverse=True)


def _refuse_another_run(path: Path, *, asked: dict[str, Any], found: dict[str, Any]) -> None:
    asked = json.loads(json.dumps(asked))
    differences = list(_differences(asked, found))
    if differences:
        shown = "; ".join(differences[:4]) + (f"; and {len(differences) - 4} more" if len(differences) > 4 else "")
        raise TrainingError(
            f"{path} belongs to another run: {shown}. "
            "Name another checkpoint_dir, or pass resume=False to discard what is there."
        )


def _differences(asked: Mapping[str, Any], found: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    for key in dict.fromkeys([*asked, *found]):
        mine, theirs = asked.get(key, "absent"), found.get(key, "absent")
        if isinstance(mine, dict) and isinstance(theirs, dict):
            yield from _differences(mine, theirs, f"{prefix}{key}.")
        elif mine != theirs:
            yield f"{prefix}{key} is {theirs!r} there and {mine!r} here"


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
