"""Write docs/reference/methods.md and errors.md from the catalogue and the exceptions; a test keeps them up to date."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
from pathlib import Path

from secateur import errors
from secateur.catalogue import CATALOGUE, WAIVABLE, Entry

FOLDER = Path(__file__).resolve().parents[1] / "docs" / "reference"
NOTE = "<!-- Written by scripts/write_reference.py; do not edit. -->"


def methods_page() -> str:
    """Return the page on methods: one table, then a section for each row of the catalogue."""
    entries = sorted(CATALOGUE.values(), key=lambda entry: entry.name)
    lines = [NOTE, "# Methods", ""]
    lines += ['`prune(..., method="NAME")`, or `method=` an object of the class with settings of your own.', ""]
    lines += ["| name | family | reads besides weights | what goes |", "| --- | --- | --- | --- |"]
    lines += [
        f"| [`{e.name}`](#{e.name}) | {e.family} | {', '.join(e.needs) or 'nothing'} | {e.summary} |" for e in entries
    ]
    lines += ["", "Every method keeps these promises, but for those that its section says it does not:", ""]
    lines += [f"- {text};" for text in WAIVABLE.values()]
    lines[-1] = lines[-1].removesuffix(";") + "."
    lines += [
        "",
        "The promises without exception (exact budgets, nothing left behind, shrunk equals masked and others) are",
    ]
    lines += ["the functions of `tests/contract/promises.py`.", ""]
    for entry in entries:
        lines += _section(entry)
    return "\n".join(lines)


def _section(entry: Entry) -> list[str]:
    kind = getattr(importlib.import_module(f"secateur.methods.{entry.name}"), entry.class_name)
    lines = [f"## {entry.name}", "", f"`secateur.methods.{entry.class_name}`. {entry.paper}.", ""]
    lines += ["```text", inspect.getdoc(kind) or "", "```", ""]
    defaults = [f"`{f.name}={f.default!r}`" for f in dataclasses.fields(kind) if f.default is not dataclasses.MISSING]
    if defaults:
        lines += [f"Defaults: {', '.join(defaults)}.", ""]
    if entry.waives:
        lines += [f"Does not promise that {'; nor that '.join(WAIVABLE[name] for name in entry.waives)}.", ""]
    return lines


def errors_page() -> str:
    """Return the page on exceptions: the tree, as the module draws it."""
    text = inspect.getdoc(errors) or ""
    tree, _, rest = text.partition("::\n\n")[2].partition("\n\n")
    lines = [NOTE, "# Errors", "", "Every exception that a user can cause is in `secateur.errors`:", ""]
    lines += ["```text", inspect.cleandoc(tree), "```", "", rest.replace("``", "`"), ""]
    return "\n".join(lines)


PAGES = {"methods.md": methods_page, "errors.md": errors_page}

if __name__ == "__main__":
    for name, page in PAGES.items():
        (FOLDER / name).write_text(page(), encoding="utf-8")
