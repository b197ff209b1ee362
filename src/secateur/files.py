"""Write files in one step: whoever is killed when, there is the old one or the new one, never half of it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Give a path to write to, beside the real one, which it replaces when the block comes to its end.

    After an exception the real one is as it was, and nothing lies beside it.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     with replacing(f"{folder}/notes.txt") as partial:
    ...         _ = partial.write_text("new")
    ...     print(Path(f"{folder}/notes.txt").read_text(), len(list(Path(folder).iterdir())))
    new 1
    """
    target = Path(path)
    partial = target.with_name(f".{target.name}.{os.getpid()}.partial")
    try:
        yield partial
        partial.replace(target)
    finally:
        partial.unlink(missing_ok=True)
