"""The two files of a saved model, replaced in one step.

The record names the digest of the tensor file, so renaming the new record into place is the one step that counts:
before it the folder holds the old model, after it the new one. The new tensor file waits beside the old one under a
second name that `tensor_file` looks at too. So a process killed at any moment leaves the old model or the new one, and
other files in the folder are never touched (replacing the whole folder would lose them).
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Callable, Mapping
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from ..errors import StoreError
from ..files import flush
from .record import StoredModel

TENSORS, RECORD = "model.safetensors", "secateur.json"
WAITING = ".model.safetensors.new"
PARTS = (".model.safetensors.part", ".secateur.json.part")


def write_folder(folder: Path, tensors: Mapping[str, Tensor], describe: Callable[[str, int], StoredModel]) -> None:
    """Write a model; a model that was there is replaced in one step, or stays if anything fails.

    Args:
        folder: made if it is not there.
        tensors: on the CPU, contiguous, sharing no memory.
        describe: gives the record for a digest and a size in bytes of the tensor file.

    Raises:
        StoreError: the folder cannot be written, or holds a ``model.safetensors`` of another kind.
    """
    is_new = not folder.exists()
    try:
        if (folder / TENSORS).exists() and not (folder / RECORD).exists():
            raise StoreError(
                f"{folder} holds a {TENSORS} without a {RECORD}, so it was not written by secateur.save: "
                "name another folder, or move that file away."
            )
        folder.mkdir(parents=True, exist_ok=True)
        settle(folder)
        _replace(folder, tensors, describe)
    except (OSError, SafetensorError) as error:
        raise StoreError(
            f"cannot write the model to {folder}: {error}. Free some space or name another folder; "
            "a model that was there is still whole."
        ) from error
    finally:
        with contextlib.suppress(OSError):
            _tidy(folder, is_new)


def _replace(folder: Path, tensors: Mapping[str, Tensor], describe: Callable[[str, int], StoredModel]) -> None:
    tensor_part, record_part = (folder / name for name in PARTS)
    save_file(dict(tensors), tensor_part)
    flush(tensor_part)
    record = describe(sha256_of(tensor_part), tensor_part.stat().st_size)
    record_part.write_text(record.to_json(), encoding="utf-8")
    flush(record_part)
    os.replace(tensor_part, folder / WAITING)
    os.replace(record_part, folder / RECORD)
    os.replace(folder / WAITING, folder / TENSORS)
    flush(folder)


def settle(folder: Path) -> None:
    """Finish what an interrupted save left behind: a waiting tensor file takes its place if the record means it."""
    waiting = folder / WAITING
    if not waiting.exists():
        return
    is_meant = False
    with contextlib.suppress(OSError, StoreError, UnicodeDecodeError):
        is_meant = _is_file_of(StoredModel.from_json((folder / RECORD).read_text(encoding="utf-8")), waiting)
    if is_meant:
        os.replace(waiting, folder / TENSORS)
    else:
        waiting.unlink()


def _tidy(folder: Path, is_new: bool) -> None:
    for name in PARTS:
        (folder / name).unlink(missing_ok=True)
    settle(folder)
    if is_new and not any(folder.iterdir()):
        folder.rmdir()


def read_text(folder: Path) -> str:
    """Return the text of the record.

    Raises:
        StoreError: there is none, or it cannot be read.
    """
    try:
        return (folder / RECORD).read_text(encoding="utf-8")
    except FileNotFoundError as error:
        found = "there is no such folder" if not folder.exists() else f"it holds no {RECORD}"
        raise StoreError(
            f"no saved model can be read from {folder}: {found}. Give the folder that secateur.save wrote."
        ) from error
    except (OSError, UnicodeDecodeError) as error:
        raise StoreError(f"no saved model can be read from {folder}: {error}.") from error


def tensor_file(folder: Path, record: StoredModel) -> Path:
    """Return the path of the tensor file that a record means.

    Raises:
        StoreError: it is missing, truncated, or its bytes are not those that were written.
    """
    path = folder / TENSORS
    try:
        for candidate in (path, folder / WAITING):
            if candidate.exists() and _is_file_of(record, candidate):
                return candidate
        if not path.exists():
            raise StoreError(f"{folder} holds no {TENSORS}: save the model again, or copy the whole folder.")
        size = path.stat().st_size
    except OSError as error:
        raise StoreError(f"{path} cannot be read: {error}.") from error
    what = f"{size} bytes long" if size != record.size_bytes else "not the one that was written (its SHA-256 differs)"
    raise StoreError(
        f"{path} is damaged: it is {what}, and {record.size_bytes} bytes with SHA-256 {record.sha256[:12]}… were "
        "written. Copy or save the model again."
    )


def sha256_of(path: Path) -> str:
    """Return the digest of a file, hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _is_file_of(record: StoredModel, path: Path) -> bool:
    return path.stat().st_size == record.size_bytes and sha256_of(path) == record.sha256
