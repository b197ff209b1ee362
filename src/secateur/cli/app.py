"""The commands, put together."""

from __future__ import annotations

from importlib.metadata import version as installed_version
from typing import Annotated

import typer

from .bench import bench
from .groups import groups
from .methods import methods
from .prune import prune
from .sensitivity import sensitivity
from .sparsify import sparsify
from .sparsify_language import sparsify_language
from .train import train

EPILOG = (
    "Exit codes: 0 done, 1 something you can mend (the message says how), 2 wrong usage, 3 nothing was removed, "
    "130 interrupted."
)

app = typer.Typer(
    name="secateur",
    help="Prune trained PyTorch networks, exactly, and say whether it was worth it.",
    epilog=EPILOG,
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
)


def _show_version(asked: bool) -> None:
    if asked:
        typer.echo(installed_version("secateur"))
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_show_version, is_eager=True)
    ] = False,
) -> None:
    """Prune trained PyTorch networks, exactly, and say whether it was worth it."""


for _command in (methods, groups, train, sensitivity, prune, sparsify, sparsify_language, bench):
    app.command()(_command)


def main() -> None:
    """Run the command line; the entry point of the installed `secateur`."""
    app()
