"""Write a folder all or nothing."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..errors import StoreError
from ..files import flush, flush_files, partial_of


def check_free(out: str) -> Path:
    """Return the folder to write as a path, before any work is done for it.

    Raises:
        StoreError: there is something of that name, or nothing can be written there.
    """
    target = Path(out).expanduser()
    try:
        is_taken = target.exists() or target.is_symlink()
        above = next(folder for folder in target.absolute().parents if folder.exists())
    except OSError as error:
        raise StoreError(f"--out {out} cannot be written ({error}). Name a folder that can.") from error
    if is_taken:
        raise StoreError(f"--out {out}: it exists already, and nothing is overwritten. Name another, or remove it.")
    if not above.is_dir() or not os.access(above, os.W_OK):
        raise StoreError(f"--out {out} cannot be written: {above} is no folder that you may write to. Name another.")
    return target


@contextmanager
def new_folder(target: Path) -> Iterator[Path]:
    """Give a folder to fill; it has its name only once the block is through, so it is whole or not there.

    Then its files are on the disk: checkpoints of what it holds may go.

    Raises:
        StoreError: it cannot be written.
    """
    partial = partial_of(target)
    try:
        partial.mkdir(parents=True)
        yield partial
        flush_files(partial)
        partial.rename(target)
        flush(target.parent)
    except OSError as error:
        raise StoreError(f"--out {target} cannot be written ({error}). Name a folder that can.") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


@contextmanager
def checkpoints_beside(target: Path | None) -> Iterator[Path | None]:
    """Give the folder for checkpoints of what will be `target`; it is removed if the block comes to its end."""
    folder = None if target is None else target.with_name(f"{target.name}.checkpoints")
    yield folder
    if folder is not None:
        shutil.rmtree(folder, ignore_errors=True)
