"""Read labelled images through Hugging Face `datasets`: from a hub id, or from parquet files on this machine."""

from __future__ import annotations

import glob
import logging
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import DataError
from ..extras import require
from .decoding import decode

log = logging.getLogger(__name__)

BATCH = 1000
PARTS = ("train", "test")


@dataclass(frozen=True)
class Columns:
    """Names of the columns that hold the encoded image and its class."""

    image: str
    label: str


@dataclass(frozen=True, eq=False)
class Part:
    """One part of a data set: images (N, C, H, W) uint8, labels (N,) int64, class names if the source tells."""

    images: Tensor
    labels: Tensor
    class_names: tuple[str, ...]


def read_parts(
    source: str, columns: Columns, *, limit: int | None = None, cache_dir: str | os.PathLike[str] | None = None
) -> tuple[Part, Part]:
    """Read the train and the test part, image by image; nothing but the decoded bytes is held.

    Args:
        source: a hub id, a folder with parquet files, or a pattern that matches some. The word train or test in a
            file's name (or, failing that, in its folder's) says which part it belongs to.
        columns: names of the columns.
        limit: read only that many examples of each part, the first ones.
        cache_dir: keep what is downloaded here; None for keeping nothing.

    Raises:
        MissingExtra: `datasets` is not installed.
        DataError: nothing is found, a column is missing, an image cannot be decoded or differs in size.
    """
    if limit is not None and limit < 1:
        raise DataError(f"limit={limit}: expected at least 1 example of each part, or None for all.")
    datasets = require("datasets", extra="train", purpose=f"reading {source}")
    files = local_files(source)
    try:
        if files is not None:
            found = datasets.load_dataset("parquet", data_files=files, streaming=True)
        elif cache_dir is not None:
            found = datasets.load_dataset(source, cache_dir=os.fspath(cache_dir))
        else:
            found = datasets.load_dataset(source, streaming=True)
    except Exception as error:
        raise DataError(
            f"{source!r} cannot be read as a data set ({type(error).__name__}: {error}). "
            "Give a folder or a pattern of parquet files, or the id of a data set on a hub that can be reached."
        ) from error
    if missing := [part for part in PARTS if part not in found]:
        raise DataError(
            f"{source!r} has the parts {', '.join(found)}; {' and '.join(missing)} is needed. "
            "Name a data set that has both."
        )
    train, test = (_read(datasets, found[part], f"{source} {part}", columns, limit) for part in PARTS)
    return train, test


def local_files(source: str) -> dict[str, list[str]] | None:
    """Return the parquet files of each part, or None if `source` can only be a hub id.

    Raises:
        DataError: it is a place on this machine, and has no parquet files of both parts.
    """
    path = Path(source).expanduser()
    if path.is_dir():
        found = sorted(str(file) for file in path.rglob("*.parquet"))
    else:
        found = sorted(file for file in glob.glob(str(path), recursive=True) if file.endswith(".parquet"))
    if not found and not path.is_dir():
        is_hub_id = not glob.has_magic(source) and not source.startswith((".", "/", "~"))
        if is_hub_id and not source.endswith(".parquet") and source.count("/") <= 1:
            return None
        raise DataError(
            f"no parquet file matches {source!r} (from {Path.cwd()}); give a folder, a pattern or a hub id."
        )
    files = {part: [file for file in found if _part(file) == part] for part in PARTS}
    if missing := [part for part in PARTS if not files[part]]:
        names = ", ".join(Path(file).name for file in found) or "no parquet file"
        raise DataError(
            f"{source!r} holds {names}; no file has {' or '.join(missing)} in its name, so there is nothing for "
            "that part. Rename the files, or give a pattern that matches both parts."
        )
    log.debug("%s: %d train and %d test files", source, len(files["train"]), len(files["test"]))
    return files


def _part(file: str) -> str | None:
    for name in (Path(file).name, Path(file).parent.name):
        told = [part for part in PARTS if part in name.lower()]
        if len(told) == 1:
            return told[0]
    return None


def _read(datasets: Any, rows: Any, place: str, columns: Columns, limit: int | None) -> Part:
    features = rows.features or {}
    lacking = [column for column in (columns.image, columns.label) if features and column not in features]
    if lacking:
        raise DataError(f"{place} has the columns {', '.join(features)}; {' and '.join(lacking)} is needed.")
    rows = rows.cast_column(columns.image, datasets.Image(decode=False))
    images: list[Tensor] = []
    labels: list[int] = []
    for encoded, label in _batches(rows, place, columns, limit):
        images.append(_decode(encoded, f"{place} row", len(labels), images))
        labels += label
    if not labels:
        raise DataError(f"{place} is empty: name a data set with images in it.")
    return Part(torch.cat(images), torch.tensor(labels), tuple(getattr(features.get(columns.label), "names", ())))


def _batches(rows: Any, place: str, columns: Columns, limit: int | None) -> Iterator[tuple[list[Any], list[int]]]:
    left = limit
    batches = rows.iter(batch_size=BATCH if limit is None else min(BATCH, limit))
    while left is None or left > 0:
        try:
            batch = next(batches, None)
        except Exception as error:
            raise DataError(f"{place} cannot be read on ({type(error).__name__}: {error}).") from error
        if batch is None:
            return
        encoded, label = batch[columns.image][:left], batch[columns.label][:left]
        if None in label:
            raise DataError(f"{place} has rows without a {columns.label}; repair or remove them.")
        left = None if left is None else left - len(label)
        yield encoded, label


def _decode(encoded: list[Any], place: str, first_row: int, before: list[Tensor]) -> Tensor:
    pixels = []
    for offset, item in enumerate(encoded):
        if item is None:
            raise DataError(f"{place} {first_row + offset} has no image; repair or remove it.")
        label = f"{place} {first_row + offset} ({item['path']})"
        pixels.append(decode(item["bytes"] or Path(item["path"]), label=label))
        expected = tuple(before[0].shape[1:]) if before else pixels[0].shape
        if pixels[-1].shape != expected:
            raise DataError(f"{label} has the shape {pixels[-1].shape}; the images before it have {expected}.")
    return torch.from_numpy(np.stack(pixels))
