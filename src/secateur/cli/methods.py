"""`secateur methods`: the catalogue."""

from __future__ import annotations

from dataclasses import MISSING, Field, fields
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ._options import Json
from ._session import session

if TYPE_CHECKING:
    from ..catalogue import Entry


def methods(
    name: Annotated[
        str | None, typer.Argument(help="One method, with its settings.", metavar="NAME", show_default=False)
    ] = None,
    as_json: Json = False,
) -> None:
    """List the pruning methods, or the settings of one."""
    with session(as_json=as_json, verbose=False, quiet=False) as run:
        from ..catalogue import CATALOGUE, find

        if name is None:
            run.result(_table(list(CATALOGUE.values())), [_facts(entry) for entry in CATALOGUE.values()])
        else:
            entry = find(name)
            run.result(_details(entry), _facts(entry))


def _table(entries: list[Entry]) -> str:
    rows = [("method", "family", "removes", "reads", "what goes")]
    rows += [(e.name, e.family, e.removes, ", ".join(("weights", *e.needs)), e.summary) for e in entries]
    widths = [max(len(row[k]) for row in rows) for k in range(4)]
    lines = ["  ".join([*(cell.ljust(w) for cell, w in zip(row, widths, strict=False)), row[4]]) for row in rows]
    return "\n".join([*lines, "", "secateur methods NAME shows the settings of one."])


def _details(entry: Entry) -> str:
    lines = [f"{entry.name}: {entry.summary}", f"  {entry.paper}"]
    lines += [f"  family: {entry.family}; removes: {entry.removes}; reads: {', '.join(('weights', *entry.needs))}"]
    lines += [f"  --set {key}={value!r}" for key, value in _settings(entry).items()]
    return "\n".join(lines)


def _facts(entry: Entry) -> dict[str, Any]:
    return {
        "name": entry.name,
        "family": entry.family,
        "removes": entry.removes,
        "paper": entry.paper,
        "needs": list(entry.needs),
        "summary": entry.summary,
        "settings": _settings(entry),
    }


def _settings(entry: Entry) -> dict[str, Any]:
    made: Any = entry.make()
    return {field.name: _default(field) for field in fields(made) if field.init}


def _default(field: Field[Any]) -> Any:
    if field.default is not MISSING:
        return field.default
    return field.default_factory() if field.default_factory is not MISSING else None
