"""The tensors of a transformers checkpoint: one safetensors file, or shards with an index.

Tensors are read one at a time and copied out of the file, so memory holds what is asked for and no file stays mapped.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ..errors import StoreError
from ..files import replacing

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
WEIGHT_ENDINGS = (".safetensors", ".bin", ".pt", ".pth", ".h5", ".msgpack", ".onnx", ".gguf", ".index.json")


@dataclass(frozen=True)
class Shards:
    """Where each tensor of a checkpoint lies.

    Attributes:
        folder: that holds the files.
        files: tensor name -> file name.
        sizes: tensor name -> bytes.
    """

    folder: Path
    files: Mapping[str, str]
    sizes: Mapping[str, int]

    @classmethod
    def open(cls, folder: Path) -> Shards:
        """Look up every tensor, and check that every file is whole.

        Raises:
            StoreError: there is no checkpoint in safetensors, a file is missing or damaged, or the index is wrong.
        """
        named = _named_files(folder)
        found: dict[str, str] = {}
        sizes: dict[str, int] = {}
        for file in sorted(set(named.values()) or {SINGLE}):
            own = _sizes_in(folder / file)
            if missing := sorted(name for name, where in named.items() if where == file and name not in own):
                raise StoreError(f"{folder / file} holds no {missing[0]!r}, which {INDEX} says it does.")
            names = [name for name in own if named.get(name, file) == file]
            found.update(dict.fromkeys(names, file))
            sizes.update((name, own[name]) for name in names)
        return cls(folder, found, sizes)

    def read(self, names: Iterable[str]) -> dict[str, Tensor]:
        """Return these tensors, on the CPU.

        Raises:
            StoreError: a file was damaged since.
        """
        by_file: dict[str, list[str]] = {}
        for name in names:
            by_file.setdefault(self.files[name], []).append(name)
        return {k: v for file, own in by_file.items() for k, v in read_file(self.folder / file, own).items()}

    def identity(self) -> dict[str, list[int]]:
        """Return file name -> size and time of change: what tells one checkpoint from another without reading it."""
        stats = {file: (self.folder / file).stat() for file in sorted(set(self.files.values()))}
        return {file: [stat.st_size, stat.st_mtime_ns] for file, stat in stats.items()}


def read_file(path: Path, names: Iterable[str] | None = None) -> dict[str, Tensor]:
    """Return these tensors of a file, or all of them, as copies.

    Raises:
        StoreError: the file is damaged.
    """
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name).clone() for name in (file.keys() if names is None else names)}
    except (OSError, SafetensorError, ValueError) as error:
        raise _damaged(path, error) from error


def write_file(path: Path, tensors: Mapping[str, Tensor], notes: Mapping[str, str] | None = None) -> None:
    """Write a file in one step: after a crash there is all of it or nothing.

    Raises:
        StoreError: it cannot be written.
    """
    metadata = {"format": "pt", **(notes or {})}
    try:
        with replacing(path) as partial:
            save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, partial, metadata=metadata)
    except (OSError, SafetensorError) as error:
        raise StoreError(f"cannot write {path}: {error}. Free some space or name another folder.") from error


def notes_of(path: Path) -> dict[str, str]:
    """Return the notes that `write_file` put beside the tensors.

    Raises:
        StoreError: the file is damaged.
    """
    try:
        with safe_open(path, framework="pt") as file:
            return dict(file.metadata() or {})
    except (OSError, SafetensorError) as error:
        raise _damaged(path, error) from error


def _named_files(folder: Path) -> dict[str, str]:
    """Return tensor name -> file name of the index; empty where there is a single file."""
    index = folder / INDEX
    if not index.exists():
        if (folder / SINGLE).exists():
            return {}
        what = "there is no such folder" if not folder.is_dir() else f"it holds neither {SINGLE} nor {INDEX}"
        raise StoreError(f"no checkpoint can be read from {folder}: {what}. Give a folder that save_pretrained wrote.")
    try:
        named = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        if not isinstance(named, dict) or not named or any(Path(str(f)).name != f for f in named.values()):
            raise ValueError("its weight_map has to name files of this folder")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise StoreError(f"{index} is damaged: {error!r}. Get it again.") from error
    return named


def _sizes_in(path: Path) -> dict[str, int]:
    """Return tensor name -> bytes, from a file's header; the header has to fit the file's length."""
    try:
        with safe_open(path, framework="pt"):
            pass
        with path.open("rb") as file:
            header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    except (OSError, SafetensorError, ValueError) as error:
        raise _damaged(path, error) from error
    spans = {name: about["data_offsets"] for name, about in header.items() if name != "__metadata__"}
    return {name: end - start for name, (start, end) in spans.items()}


def _damaged(path: Path, error: Exception) -> StoreError:
    if isinstance(error, FileNotFoundError):
        return StoreError(f"the shard {path} is missing: copy the whole checkpoint. Nothing was written.")
    return StoreError(f"the shard {path} is damaged: {error}. Get it again; nothing finished was touched.")
