"""A progress bar that appears after two seconds, on a terminal only."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.progress import Progress

PATIENCE_SECONDS = 2.0


class ProgressBar:
    """A bar on standard error for work of `total` steps; None = unknown.

    Args:
        title: what is going on.
        total: how many steps there are.
        visible: True or False to force it; None shows it where standard error is a terminal.

    >>> with ProgressBar("counting", total=3) as bar:
    ...     for _ in range(3):
    ...         bar.advance()
    """

    def __init__(self, title: str, total: int | None, *, visible: bool | None = None) -> None:
        self._title, self._total, self._visible = title, total, visible
        self._done = 0
        self._since = time.monotonic()
        self._bar: Progress | None = None
        self._line: Any = None

    def __enter__(self) -> ProgressBar:
        self._since = time.monotonic()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def advance(self, steps: int = 1, *, title: str | None = None) -> None:
        """Count `steps` more as done, under a new title if one is given."""
        self._done += steps
        self._title = title or self._title
        if self._bar is None and self._visible is not False and time.monotonic() - self._since > PATIENCE_SECONDS:
            self._start()
        if self._bar is not None:
            self._bar.update(self._line, completed=self._done, description=self._title)

    def _start(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        console = Console(stderr=True, force_terminal=self._visible)
        if not console.is_terminal:
            self._visible = False
            return
        columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
        self._bar = Progress(*columns, console=console, transient=True)
        self._line = self._bar.add_task(self._title, total=self._total)
        self._bar.start()
