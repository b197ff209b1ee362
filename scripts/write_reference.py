"""Write docs/reference and the table of README.md from the catalogue, docstrings, measurements and exceptions.

A test keeps the pages up to date. A method's page is its module's docstring part by part, the attributes of its class
as a table of hyper-parameters, and what the files of `MEASURED` hold on it, if anything.
"""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from secateur import errors
from secateur.catalogue import CATALOGUE, WAIVABLE, Entry

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "docs" / "reference"
MEASURED = [
    ROOT / "benchmarks" / "results" / f"{name}_{what}.json"
    for what in ("one_shot", "training_time", "unstructured")
    for name in ("cifar", "cifar_vgg", "digits")
]
NOTE = "<!-- Written by scripts/write_reference.py; do not edit. -->"
PARTS = ("Source:", "Claim:", "Equation:", "Cost:", "Use it when", "Where we differ, and why:")
REPAIRS = ("none", "batchnorm", "refit", "refit+batchnorm", "finetune", "train", "scratch")
CONTROLS = ("random", "random_weights")
CALLS = {"channels": "prune", "weights": "sparsify"}
BESIDE = ("dense", "l1_filter", "random")


def methods_page() -> str:
    """Return the overview: one table with a link to each method's page, and what all methods promise."""
    entries = _entries()
    lines = [NOTE, "# Methods", ""]
    lines += [
        '`prune(..., method="NAME")` for channels, `sparsify(..., method="NAME")` for single weights, or `method=` an',
        "object of the class with settings of your own. Each name leads to a page with source, claim, equation, cost,",
        "hyper-parameters and differences from the paper.",
        "",
    ]
    lines += _table(
        ["name", "family", "removes", "reads besides weights", "what goes"],
        ([f"[`{e.name}`](methods/{e.name}.md)", e.family, e.removes, _reads(e), e.summary] for e in entries),
    )
    lines += ["", "Every method keeps these promises, but for those that its page says it does not:", ""]
    lines += [f"- {text};" for text in WAIVABLE.values()]
    lines[-1] = lines[-1].removesuffix(";") + "."
    lines += [
        "",
        "The promises without exception (exact budgets, nothing left behind, shrunk equals masked and others) are",
    ]
    lines += ["the functions of `tests/contract/promises.py`.", ""]
    return "\n".join(lines)


def method_page(entry: Entry, *measured: Mapping[str, Any]) -> str:
    """Return the page of one method.

    Args:
        entry: its row of the catalogue.
        measured: what each file of measurements holds.

    Raises:
        ValueError: the module's docstring lacks a part, or the class leaves a hyper-parameter out.
    """
    module = importlib.import_module(f"secateur.methods.{entry.name}")
    kind = getattr(module, entry.class_name)
    title, parts = docstring_parts(inspect.getdoc(module) or "", entry.name)
    lines = [NOTE, f"# {entry.name}", "", *_prose(title), ""]
    lines += [
        f'`{CALLS[entry.removes]}(..., method="{entry.name}")` or `secateur.methods.{entry.class_name}(...)`.',
        "",
    ]
    lines += _table(["family", "reads besides weights", "what goes"], [[entry.family, _reads(entry), entry.summary]])
    lines += ["", "## Source", "", *_sentence(parts["Source:"]), "", "## Claim", "", *_sentence(parts["Claim:"]), ""]
    lines += ["## Equation", "", "```text", parts["Equation:"], "```", ""]
    lines += ["## Cost", "", *_sentence(parts["Cost:"]), ""]
    lines += ["## When to use it", "", *_prose("Use it when " + parts["Use it when"]), ""]
    lines += ["## Hyper-parameters", "", *_hyper_parameters(kind), ""]
    if entry.waives:
        lines += ["## What it does not promise", ""]
        lines += [f"It does not promise that {'; nor that '.join(WAIVABLE[name] for name in entry.waives)}.", ""]
    lines += ["## Where we differ, and why", "", *_prose(parts["Where we differ, and why:"]), ""]
    found = [line for one in measured for line in (_trained if "epochs" in one else _measured)(entry.name, one)]
    lines += ["## What we measured", "", *found] if found else []
    lines += ["[All methods](../methods.md)", ""]
    return "\n".join(lines)


def readme_table() -> str:
    """Return the table of methods for README.md."""
    rows = (
        [f"`{e.name}`", e.family, e.removes, ", ".join(("weights", *e.needs)), e.summary, e.paper]
        for e in CATALOGUE.values()
    )
    return "\n".join(_table(["method", "family", "removes", "reads", "what goes", "paper"], rows))


def docstring_parts(text: str, name: str) -> tuple[str, dict[str, str]]:
    """Split a module's docstring into what comes first and the parts that every method has.

    Raises:
        ValueError: a part is missing, empty, there twice, or out of order.
    """
    pattern = re.compile(rf"^({'|'.join(map(re.escape, PARTS))})", re.MULTILINE)
    title, *pieces = pattern.split(text)
    labels, bodies = pieces[::2], [inspect.cleandoc(" " + body).strip() for body in pieces[1::2]]
    if tuple(labels) != PARTS or not all(bodies):
        raise ValueError(f"docstring of methods/{name}.py: has {labels}, some empty; expected each of {PARTS} in turn.")
    return title.strip(), dict(zip(labels, bodies, strict=True))


def attributes(kind: type) -> dict[str, str]:
    """Return what the class's docstring says on each attribute."""
    section = (inspect.getdoc(kind) or "").partition("Attributes:\n")[2].partition("\n\n")[0]
    found = re.findall(r"^    (\w+): (.*(?:\n {8}.*)*)", section, re.MULTILINE)
    return {name: " ".join(text.split()) for name, text in found}


def _hyper_parameters(kind: type) -> list[str]:
    said, own = attributes(kind), dataclasses.fields(kind)
    if list(said) != [f.name for f in own]:
        raise ValueError(f"{kind.__name__}: Attributes: names {list(said)}, the fields are {[f.name for f in own]}.")
    before = (inspect.getdoc(kind) or "").partition("Attributes:\n")[0].partition("\n\n")[2].strip()
    lines = [*_prose(before), ""] if before else []
    rows = [[f"`{f.name}`", f"`{_default(f)}`", "\n".join(_prose(said[f.name]))] for f in own]
    return lines + _table(["name", "default", "meaning"], rows)


def _default(own: dataclasses.Field[Any]) -> str:
    value = own.default if own.default is not dataclasses.MISSING else own.default_factory()  # type: ignore[misc]
    return repr(value)


def _measured(name: str, measured: Mapping[str, Any]) -> list[str]:
    """Return the section on measurements, the control and variants (thinet:omp) too; nothing where there are none."""
    every = measured.get("rows", ())
    shown = [name, *dict.fromkeys(row["method"] for row in every if row["method"].startswith(f"{name}:")), *CONTROLS]
    rows = [row for row in every if row["method"] in shown]
    own = {(row["model"], row["of"], row["remove"]) for row in rows if row["method"] == name}
    rows = [row for row in rows if (row["model"], row["of"], row["remove"]) in own]
    if not own:
        return []
    repairs = sorted({row["repair"] for row in rows}, key=lambda r: (REPAIRS.index(r) if r in REPAIRS else 9, r))
    cells = {(row["model"], row["of"], row["remove"], row["method"], row["repair"]): _cell(row) for row in rows}
    table = [
        [cell[0], f"{100 * cell[2]:g} % of {_unit(cell[1])}", method]
        + [cells.get((*cell, method, repair), "") for repair in repairs]
        for cell in sorted(own)
        for method in dict.fromkeys(shown)
        if any((*cell, method, repair) in cells for repair in repairs)
    ]
    lines = ["Test accuracy in percent: mean, standard deviation over seeds, and how many seeds.", ""]
    lines += _table(["network", "removed", "method", *(f"repair: {repair}" for repair in repairs)], table)
    whole = [f"{model}: {_accuracy(measured.get('dense'), model)}" for model in sorted({cell[0] for cell in own})]
    lines += ["", f"Data: {measured['data']}. Before pruning: {'; '.join(whole)}. Made by `{measured['command']}`.", ""]
    lines += _published(name, measured.get("published") or {})
    settings = next((row["settings"] for row in rows if row["method"] == name and row.get("settings")), {})
    said = ", ".join(f"`{key}={value!r}`" for key, value in settings.items())
    return [*lines, f"Settings besides those that all methods share there: {said}.", ""] if said else lines


def _trained(name: str, measured: Mapping[str, Any]) -> list[str]:
    """Return the section on runs of equal length, each with what stands beside it; nothing where there are none."""
    rows = {row["method"]: row for row in measured.get("rows", ())}
    if name not in rows:
        return []
    scratch = f"scratch:{name}"
    said = {name: f"`{name}`", "dense": "whole network", scratch: "same widths, from scratch"}
    shown = [key for key in dict.fromkeys((name, scratch, *BESIDE)) if key in rows]
    removed = f"{100 * measured['remove']:g} % of the {_unit(measured['of'])}"
    lines = [
        f"Test accuracy in percent of {measured['model']} with {removed} removed: "
        f"mean, standard deviation over seeds, and how many seeds. Every run has {measured['epochs']} epochs in all.",
        "",
        *_table(["run", "accuracy"], ([said.get(key, f"`{key}`"), _cell(rows[key])] for key in shown)),
    ]
    share, own = rows[name]["share"], rows[name].get("settings") or {}
    parts = {"before": "without the method", "during": "with it", "tuning": "of fine-tuning"}
    epochs = ", ".join(f"{share[key]} {text}" for key, text in parts.items() if share[key])
    lines += ["", f"Epochs: {epochs}. Data: {measured['data']}. Made by `{measured['command']}`.", ""]
    settings = ", ".join(f"`{key}={value!r}`" for key, value in own.items())
    return [*lines, f"Settings besides the paper's: {settings}.", ""] if settings else lines


def _published(name: str, published: Mapping[str, Any]) -> list[str]:
    """Return what was published on a method where it was measured, as a paragraph; nothing where nothing was."""
    rows = [row for row in published.get("rows", ()) if row["method"] == name]
    if not rows:
        return []
    figures = ", ".join(f"{row['accuracy']:.2f} with {100 * row['remove']:g} % removed" for row in rows)
    source, whole = published["source"], f"{published['dense']:.2f} before"
    return [f"Published for {published['model']}: {figures}, {whole} ({source}).", ""]


def _cell(row: Mapping[str, Any]) -> str:
    spread = f" ± {row['std']:.2f}" if len(row["accuracy"]) > 1 else ""
    return f"{row['mean']:.2f}{spread} ({len(row['accuracy'])})"


def _unit(of: str) -> str:
    return {"macs": "MACs", "params": "parameters"}.get(of, of)


def _accuracy(dense: Any, model: str) -> str:
    """Return the accuracy of a network before pruning, given by network or for all, as a number or with seeds."""
    if isinstance(dense, Mapping) and model in dense:
        return _accuracy(dense[model], model)
    if isinstance(dense, Mapping) and dense:  # seed -> accuracy
        return f"{sum(dense.values()) / len(dense):.2f}"
    return f"{dense:.2f}" if isinstance(dense, int | float) else "not recorded"


def _entries() -> list[Entry]:
    return sorted(CATALOGUE.values(), key=lambda entry: entry.name)


def _reads(entry: Entry) -> str:
    return ", ".join(entry.needs) or "nothing"


def _table(head: list[str], rows: Iterable[list[str]]) -> list[str]:
    table = [head, ["---"] * len(head), *([cell.replace("|", "\\|") for cell in row] for row in rows)]
    return [f"| {' | '.join(row)} |" for row in table]


def _sentence(text: str) -> list[str]:
    """Return prose that began after a label, as a sentence of its own; a symbol in front keeps its case."""
    return _prose(text[0].upper() + text[1:] if re.match(r"[a-z]{2}", text) else text)


def _prose(text: str) -> list[str]:
    """Return a docstring's prose as lines of Markdown: code in single backticks, other marks as they stand."""
    spans = re.split(r"(``?[^`]+``?)", text)
    marked = "".join(
        span.replace("``", "`") if span.startswith("`") else re.sub(r"([*<])", r"\\\1", span) for span in spans
    )
    return marked.split("\n")


def errors_page() -> str:
    """Return the page on exceptions: the tree, as the module draws it."""
    text = inspect.getdoc(errors) or ""
    tree, _, rest = text.partition("::\n\n")[2].partition("\n\n")
    lines = [NOTE, "# Errors", "", "Every exception that a user can cause is in `secateur.errors`:", ""]
    lines += ["```text", inspect.cleandoc(tree), "```", "", rest.replace("``", "`"), ""]
    return "\n".join(lines)


def pages() -> dict[str, str]:
    """Return every page of docs/reference, by its path there."""
    measured = [json.loads(path.read_text(encoding="utf-8")) for path in MEASURED if path.exists()]
    own = {f"methods/{entry.name}.md": method_page(entry, *measured) for entry in _entries()}
    return {"methods.md": methods_page(), "errors.md": errors_page(), **own}


if __name__ == "__main__":
    readme = ROOT / "README.md"
    before, _, rest = readme.read_text(encoding="utf-8").partition("<!-- methods -->\n")
    readme.write_text(
        f"{before}<!-- methods -->\n{readme_table()}\n<!-- /methods -->{rest.partition('<!-- /methods -->')[2]}"
    )
    written = pages()
    for path in (FOLDER / "methods").glob("*.md"):
        if f"methods/{path.name}" not in written:
            path.unlink()
    for name, page in written.items():
        (FOLDER / name).parent.mkdir(exist_ok=True)
        (FOLDER / name).write_text(page, encoding="utf-8")
