"""`secateur results`: what a store holds, as a table or a file."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from ._options import Json, Quiet, Verbose
from ._session import session

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ..compare.store import ResultStore, Row

HEADINGS = ("model", "method", "budget", "recovery", "seed", "status", "metric", "MACs", "parameters", "time")
LEFT = 4  # columns of words
Store = Annotated[str, typer.Argument(help="Folder that `secateur compare` wrote.", metavar="DIR")]
Which = Annotated[
    str | None,
    typer.Option("--experiment", help="Name or digest of one experiment. [report: the newest]", metavar="NAME"),
]
OfModel = Annotated[str | None, typer.Option("--model", help="Results of this model only.", metavar="NAME")]
OfMethod = Annotated[str | None, typer.Option("--method", help="Results of this method only.", metavar="NAME")]
OfRecovery = Annotated[str | None, typer.Option("--recovery", help="Results of this way only.", metavar="NAME")]
OfStatus = Annotated[str | None, typer.Option("--status", help="done or failed only.", metavar="WORD")]
Export = Annotated[str | None, typer.Option("--export", help="Write a .csv, .json or .parquet file.", metavar="FILE")]
Limit = Annotated[int, typer.Option("--limit", min=0, help="Rows of the printed table; 0 = all.")]


def results(
    folder: Store,
    experiment: Which = None,
    model: OfModel = None,
    method: OfMethod = None,
    recovery: OfRecovery = None,
    status: OfStatus = None,
    export: Export = None,
    limit: Limit = 200,
    as_json: Json = False,
    verbose: Verbose = False,
    quiet: Quiet = False,
) -> None:
    """Show the results in a store, or write them to a file."""
    wanted = {"model": model, "label": method, "recovery": recovery, "status": status}
    where: dict[str, Any] = {column: value for column, value in wanted.items() if value is not None}
    with session(as_json=as_json, verbose=verbose, quiet=quiet) as run:
        from ..compare.store import ResultStore
        from ..compare.store import export as write

        with ResultStore(folder) as store:
            check(store, where)
            digest = None if experiment is None else store.named(experiment)
            known, rows = store.experiments(), store.rows(digest, **where)
        if export is not None:
            write(rows, export)
            run.note(f"wrote {len(rows)} results to {export}")
        for one in known:
            run.note(f"{one['digest']}  {one['name']}: {one['done']} of {one['jobs']} done, {one['failed']} failed")
        shown = rows if limit == 0 else rows[:limit]
        text = _table(shown)
        if len(shown) < len(rows):
            text += f"\nand {len(rows) - len(shown)} more: --limit 0 shows them, --export writes them"
        run.result(text, {"experiments": known, "results": [dict(row.values) for row in rows]})


def check(store: ResultStore, where: dict[str, Any]) -> None:
    """Refuse a filter on what no result has, and name near ones.

    Raises:
        UnknownName: there is nothing of that name in the store.
    """
    from ..compare.store import DONE, FAILED
    from ..errors import UnknownName

    words = {"model": "model", "label": "method", "recovery": "recovery", "status": "status"}
    for column, value in where.items():
        known = [DONE, FAILED] if column == "status" else store.values(column)
        if value not in known:
            raise UnknownName(f"{words[column]} in {store.path}", value, known)


def _table(rows: Sequence[Row]) -> str:
    if not rows:
        return "no results"
    cells = [HEADINGS, *(_cells(row) for row in rows)]
    widths = [max(len(row[k]) for row in cells) for k in range(len(HEADINGS))]
    lines = []
    for line in cells:
        parts = [c.ljust(w) if k < LEFT else c.rjust(w) for k, (c, w) in enumerate(zip(line, widths, strict=True))]
        lines.append("  ".join(parts).rstrip())
    for row in rows:
        if row.error:
            lines.append(
                f"{row.model} {row.label} {row.recovery} seed {row.seed}: {row.error.strip().splitlines()[-1]}"
            )
    return "\n".join(lines)


def _cells(row: Row) -> tuple[str, ...]:
    budget = "" if row.remove is None else f"{row.remove:.0%} of {row.of_what}"
    return (
        row.model,
        row.label or "",
        budget,
        row.recovery,
        str(row.seed),
        row.status,
        "" if row.metric is None else f"{row.metric:.4f}",
        "" if row.macs is None else f"{row.macs:,}",
        "" if row.params is None else f"{row.params:,}",
        "" if row.seconds is None else f"{row.seconds:.1f} s",
    )
