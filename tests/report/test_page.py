"""A report page holds what it is given, and nothing of it comes from elsewhere."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser

import pytest

from secateur.errors import MissingExtra, StoreError
from secateur.report import page as page_module
from secateur.report.page import Chart, Page, Section, Table, prepare, render, write_page

POINTS = {
    "$schema": "https://vega.github.io/schema/vega-lite/v6.json",
    "data": {"values": [{"x": "</script><b>", "y": 2}]},
    "mark": "point",
    "encoding": {"x": {"field": "x"}, "y": {"field": "y", "type": "quantitative"}},
}
TABLE = Table("What it costs", ("", "before"), [("MACs", "1,000"), ("<b>bold</b>", "a & b")], note="one image")
FETCHING = {"src", "href", "srcset", "data", "poster", "action", "xlink:href"}


class Reader(HTMLParser):
    """Collects elements and what they would fetch."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.fetched: list[str] = []
        self.open: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.fetched += [value or "" for name, value in attrs if name in FETCHING]
        if tag not in ("meta", "path", "line", "rect"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag in self.open:
            assert self.open.pop() == tag


def a_page(*charts: Chart) -> Page:
    return Page("A <title>", ["It went well."], [Section("Costs", ["Read on."], [TABLE], charts)], {"seed": "0"})


def test_tables_are_semantic_and_text_is_escaped():
    html = render(a_page())
    assert '<th scope="col">before</th>' in html
    assert '<th scope="row">MACs</th><td>1,000</td>' in html
    assert "&lt;b&gt;bold&lt;/b&gt;" in html
    assert "<title>A &lt;title&gt;</title>" in html
    assert "<caption>What it costs</caption>" in html


def test_a_page_without_charts_has_no_script():
    assert "<script" not in render(a_page())


def test_a_chart_is_a_picture_and_a_specification_that_cannot_break_out():
    html = render(a_page(Chart(POINTS, "one point", "a caption")))
    assert 'role="img" aria-label="one point"' in html
    (stored,) = re.findall(r'<script type="application/json">(.*?)</script>', html, re.DOTALL)
    assert json.loads(stored) == POINTS
    assert "<svg" in html


def test_scripts_that_could_not_be_bundled_fail_the_page_with_charts_only_and_not_for_good(monkeypatch):
    def missing(*_, **__):
        raise MissingExtra("no vl_convert")

    page_module._bundling.cache_clear()
    with monkeypatch.context() as broken:
        broken.setattr(page_module, "require", missing)
        prepare()
        assert "<html" in render(a_page())
        with pytest.raises(MissingExtra, match="no vl_convert"):
            page_module._script()
    assert "vega" in page_module._script()


def test_nothing_is_fetched_and_every_element_is_closed():
    html = render(a_page(Chart(POINTS, "one point")))
    reader = Reader(html)
    assert [place for place in reader.fetched if not place.startswith("#")] == []
    assert "link" not in reader.tags
    assert "@import" not in html
    assert "url(" not in html.partition("<body>")[0]
    assert "default-src 'none'" in html
    assert reader.open == []


def test_a_page_is_written_in_one_step_over_an_old_one(tmp_path):
    target = tmp_path / "report.html"
    target.write_text("old")
    write_page(a_page(), target)
    assert target.read_text().startswith("<!DOCTYPE html>")
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]


def test_a_place_that_cannot_be_written_is_told(tmp_path):
    with pytest.raises(StoreError, match="the report cannot be written to"):
        write_page(a_page(), tmp_path / "nowhere" / "report.html")


def test_a_row_of_another_length_is_refused():
    with pytest.raises(ValueError, match="a row of 1 cells in a table of 2 columns"):
        Table("odd", ("a", "b"), [("only",)])
