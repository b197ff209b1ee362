"""What surrounds every command: where output goes, how much is logged, and how errors end."""

from __future__ import annotations

import json
import logging
import sys
import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import typer

from ..errors import NothingPruned, SecateurError

USER_ERROR, NOTHING_REMOVED, INTERRUPTED = 1, 3, 130


@dataclass(frozen=True)
class Session:
    """One run of a command.

    Attributes:
        as_json: print the result as JSON.
        progress: False = no progress bars; None = where there is a terminal.
    """

    as_json: bool
    progress: bool | None

    def result(self, text: str, facts: Any) -> None:
        """Print what the command found: the text for people, or the facts as JSON."""
        typer.echo(json.dumps(facts, indent=1, ensure_ascii=False, default=str) if self.as_json else text)

    def note(self, text: str) -> None:
        """Say something beside the result, on standard error; not with --quiet."""
        if self.progress is None:
            typer.echo(text, err=True)


@contextmanager
def session(*, as_json: bool, verbose: bool, quiet: bool, threads: int | None = None) -> Iterator[Session]:
    """Log to standard error, turn a `SecateurError` into a message and exit code 1; all is as before afterwards."""
    if verbose and quiet:
        raise typer.BadParameter("--verbose and --quiet exclude each other.")
    level = logging.INFO if verbose else logging.ERROR if quiet else logging.WARNING
    try:
        with _logging_to_stderr(level), _warnings_as_messages(quiet), _threads(threads):
            yield Session(as_json, False if quiet else None)
    except SecateurError as error:
        if as_json:
            typer.echo(json.dumps({"error": {"kind": type(error).__name__, "message": str(error)}}, indent=1))
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(USER_ERROR) from error
    except KeyboardInterrupt as error:
        typer.echo("interrupted", err=True)
        raise typer.Exit(INTERRUPTED) from error


@contextmanager
def _logging_to_stderr(level: int) -> Iterator[None]:
    log = logging.getLogger("secateur")
    before = log.level
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(levelname)s: %(message)s"))
    log.addHandler(handler)
    log.setLevel(level)
    try:
        yield
    finally:
        log.removeHandler(handler)
        log.setLevel(before)


@contextmanager
def _warnings_as_messages(quiet: bool) -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("always", NothingPruned)
        if quiet:
            warnings.simplefilter("ignore")
        warnings.showwarning = _show
        yield


def _show(message: Warning | str, category: type[Warning], *_: Any, **__: Any) -> None:
    typer.echo(f"{category.__name__}: {message}", err=True)


def _threads(count: int | None) -> AbstractContextManager[None]:
    if count is None:
        return nullcontext()
    from ..threads import torch_threads

    return torch_threads(count)
