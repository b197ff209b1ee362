"""Write files in one step: whoever is killed when, there is the old one or the new one, never half of it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Give a path to write to, beside the real one, which it replaces when the block comes to its end.

    Then it is on the disk, also after the machine goes down. After an exception the real one is as it was, and nothing
    lies beside it.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     with replacing(f"{folder}/notes.txt") as partial:
    ...         _ = partial.write_text("new")
    ...     print(Path(f"{folder}/notes.txt").read_text(), len(list(Path(folder).iterdir())))
    new 1
    """
    target = Path(path)
    partial = partial_of(target)
    try:
        yield partial
        flush(partial)
        partial.replace(target)
        flush(target.parent)
    finally:
        partial.unlink(missing_ok=True)


def partial_of(target: Path) -> Path:
    """Return where this process writes what will be a file or folder: beside it, on the same file system."""
    return target.with_name(f".{target.name}.{os.getpid()}.partial")


def drop_partials(folder: Path) -> None:
    """Remove what a process that was killed inside `replacing` left in a folder; no other may be writing there."""
    for partial in folder.glob(".*.*.partial"):
        partial.unlink(missing_ok=True)


def flush_files(folder: Path) -> None:
    """Have all files of a folder, not of folders in it, on the disk: a machine that goes down keeps them."""
    for path in (*(path for path in folder.iterdir() if path.is_file()), folder):
        flush(path)


def flush(path: Path) -> None:
    """Have a file on the disk, or the names of what is in a folder."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
