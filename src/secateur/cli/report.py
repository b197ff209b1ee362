"""`secateur report`: the answer of an experiment as a page, as JSON and as a card."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ._options import Quiet, Verbose
from ._session import session
from .results import Store, Which

STANDARD_OUTPUT = "-"
Html = Annotated[
    str | None, typer.Option("--out", help="The page. [report.html in the folder]", metavar="FILE", show_default=False)
]
JsonFile = Annotated[
    str | None, typer.Option("--json", help="The same as JSON; - for standard output.", metavar="FILE")
]
Card = Annotated[str | None, typer.Option("--markdown", help="A short card as Markdown.", metavar="FILE")]


def report(
    folder: Store,
    out: Html = None,
    experiment: Which = None,
    json_file: JsonFile = None,
    markdown: Card = None,
    verbose: Verbose = False,
    quiet: Quiet = False,
) -> None:
    """Write one page that opens offline and says whether pruning was worth it, with the figures behind it.

    It reads results only, and can be written while a comparison runs.
    """
    as_json = json_file == STANDARD_OUTPUT
    with session(as_json=as_json, verbose=verbose, quiet=quiet) as run:
        from ..report.comparison import gather, values_of
        from ..report.comparison_page import card_of, page_of
        from ..report.page import prepare, write_json, write_page, write_text

        if Path(folder).is_dir():
            prepare()
        findings = gather(folder, experiment)
        target = Path(out) if out is not None else Path(folder) / "report.html"
        write_page(page_of(findings), target)
        written = [str(target)]
        if markdown is not None:
            write_text(card_of(findings), markdown)
            written.append(markdown)
        values = values_of(findings) if json_file is not None else {}
        if json_file is not None and not as_json:
            write_json(values, json_file)
            written.append(json_file)
        run.result("\n".join([*findings.verdict, *(f"wrote {name}" for name in written)]), values)
