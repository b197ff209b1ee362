"""Write tables and charts as one HTML page that opens anywhere: nothing is fetched, scripts and pictures are in it."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cache
from html import escape
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from ..errors import StoreError
from ..extras import require
from ..files import replacing

PURPOSE = "a report with charts"


@dataclass(frozen=True)
class Table:
    """A table; the first cell of a row names the row.

    Attributes:
        caption: what it shows, in a sentence.
        columns: headings, the row names' first.
        rows: cells as text, as many as columns in each.
        note: what a reader has to know to read it right.
    """

    caption: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    note: str = ""

    def __post_init__(self) -> None:
        if odd := [row for row in self.rows if len(row) != len(self.columns)]:
            raise ValueError(f"a row of {len(odd[0])} cells in a table of {len(self.columns)} columns: {odd[0]}.")


@dataclass(frozen=True)
class Edit:
    """A change of a specification: the value that goes to a place in it, e.g. ("layer", 0, "mark", "opacity")."""

    place: Sequence[str | int]
    value: Any


@dataclass(frozen=True)
class Control:
    """A list to choose from, above a chart.

    Attributes:
        label: what is chosen.
        options: name -> what it changes. The first is what the specification says.
    """

    label: str
    options: Mapping[str, Sequence[Edit]]

    @property
    def edits(self) -> list[list[dict[str, Any]]]:
        """The changes of each option, for the script of the page."""
        return [[{"place": list(edit.place), "value": edit.value} for edit in edits] for edits in self.options.values()]


@dataclass(frozen=True)
class Boxes:
    """Boxes to tick, above a chart: the names that are ticked are the value of a parameter of the specification.

    Attributes:
        label: what is ticked.
        colours: name -> its colour in the chart.
        parameter: index of the parameter among the specification's.
    """

    label: str
    colours: Mapping[str, str]
    parameter: int = 0


@dataclass(frozen=True)
class Chart:
    """A chart.

    Attributes:
        specification: in Vega-Lite.
        description: what it shows, for those who cannot see it.
        caption: printed below it.
        controls: what can be chosen.
        boxes: what can be shown or hidden.
        still: what the picture for print and for readers without scripts is made of, where that is less.
    """

    specification: Mapping[str, Any]
    description: str
    caption: str = ""
    controls: Sequence[Control] = ()
    boxes: Boxes | None = None
    still: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class Listing:
    """Lines of text that are folded away until they are asked for.

    Attributes:
        title: what is behind it.
        lines: the text.
        is_code: set in a fixed width.
    """

    title: str
    lines: Sequence[str]
    is_code: bool = False


@dataclass(frozen=True)
class Section:
    """A part of a page under a heading."""

    heading: str
    paragraphs: Sequence[str] = ()
    tables: Sequence[Table] = ()
    charts: Sequence[Chart] = ()
    listings: Sequence[Listing] = ()


@dataclass(frozen=True)
class Page:
    """A page.

    Attributes:
        title: of the page.
        summary: what was found, in sentences.
        sections: in order.
        facts: name -> value: how it came about, at the foot of the page.
    """

    title: str
    summary: Sequence[str]
    sections: Sequence[Section]
    facts: Mapping[str, str] = field(default_factory=dict)


def render(page: Page) -> str:
    """Return the page as HTML.

    Raises:
        MissingExtra: it has charts, and vl-convert-python is not installed: ``pip install "secateur[report]"``.
    """
    charts = [chart for section in page.sections for chart in section.charts]
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["id"] = id
    environment.filters["cells"] = _cells
    template = environment.get_template("page.html")
    return template.render(
        page=page,
        pictures={id(chart): _picture(chart) for chart in charts},
        script=_script() if charts else "",
    )


def prepare() -> None:
    """Start to bundle the scripts of charts, the same for every page, in a thread, while a page is put together.

    It takes two seconds, once in a process. What goes wrong there is raised by `render`, where a page has charts.
    """
    _bundling()


def write_page(page: Page, path: str | os.PathLike[str]) -> None:
    """Write the page as HTML; an existing file is replaced in one step.

    Raises:
        MissingExtra: see `render`.
        StoreError: the file cannot be written.
    """
    write_text(render(page), path)


def write_json(values: Mapping[str, Any], path: str | os.PathLike[str]) -> None:
    """Write values as JSON; an existing file is replaced in one step.

    Raises:
        StoreError: the file cannot be written.
    """
    write_text(json.dumps(values, indent=1, allow_nan=False, ensure_ascii=False) + "\n", path)


def write_text(text: str, path: str | os.PathLike[str]) -> None:
    """Write a text; an existing file is replaced in one step.

    Raises:
        StoreError: the file cannot be written.
    """
    try:
        with replacing(path) as partial:
            partial.write_text(text, encoding="utf-8")
    except OSError as error:
        raise StoreError(f"the report cannot be written to {path} ({error}). Name another place.") from error


def _cells(row: Sequence[str], after_first: str, between: str) -> Markup:
    """Return the cells of a row, escaped, with these tags between them; escaping each in the template takes long.

    >>> _cells(["<a>", "b", "c"], "</th><td>", "</td><td>")
    Markup('&lt;a&gt;</th><td>b</td><td>c')
    """
    first, *others = (escape(cell) for cell in row)
    return Markup(after_first.join([first, between.join(others)]))


def _picture(chart: Chart) -> Markup:
    vl_convert = require("vl_convert", extra="report", purpose=PURPOSE)
    return Markup(vl_convert.vegalite_to_svg(dict(chart.still or chart.specification)))


def _script() -> Markup:
    """Return Vega and its embedding, to stand in the page."""
    try:
        bundle = _bundling().result()
    except BaseException:
        _bundling.cache_clear()  # what was missing may be there next time
        raise
    assert "</script" not in bundle.lower(), "the bundle would end the element that it stands in"
    return Markup(bundle)


@cache
def _bundling() -> Future[str]:
    return ThreadPoolExecutor(1, thread_name_prefix="bundling").submit(_bundle)


def _bundle() -> str:
    bundle: str = require("vl_convert", extra="report", purpose=PURPOSE).javascript_bundle()
    return bundle
