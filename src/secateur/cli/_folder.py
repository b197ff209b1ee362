"""Write a folder all or nothing."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..errors import StoreError


def check_free(out: str) -> Path:
    """Return the folder to write as a path, before any work is done for it.

    Raises:
        StoreError: there is something of that name.
    """
    target = Path(out).expanduser()
    if target.exists() or target.is_symlink():
        raise StoreError(f"--out {out}: it exists already, and nothing is overwritten. Name another, or remove it.")
    return target


@contextmanager
def new_folder(target: Path) -> Iterator[Path]:
    """Give a folder to fill; it has its name only once the block is through, so it is whole or not there.

    Raises:
        StoreError: it cannot be written.
    """
    partial = target.with_name(f".{target.name}.{os.getpid()}.partial")
    try:
        partial.mkdir(parents=True)
        yield partial
        partial.rename(target)
    except OSError as error:
        raise StoreError(f"--out {target} cannot be written ({error}). Name a folder that can.") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
