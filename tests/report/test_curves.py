"""Sensitivity curves are drawn as a picture and as a page that needs no network."""

from __future__ import annotations

import re
import struct
import sys
from html.parser import HTMLParser

import pytest

from secateur.errors import MissingExtra
from secateur.methods.sensitivity import GroupCurve, SensitivityCurves
from secateur.report.curves import draw_sensitivity, rows


class Tags(HTMLParser):
    """Tags of a page and the addresses they load from; what is inside a script is no tag."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[str] = set()
        self.addresses: list[str | None] = []

    def handle_starttag(self, tag, attributes):
        self.seen.add(tag)
        self.addresses += [value for name, value in attributes if name in ("src", "href", "srcset", "data")]


def curves_of(count: int, **options) -> SensitivityCurves:
    groups = {
        f"layer{k}.conv": GroupCurve(
            8,
            (0.0, 0.3, 0.35, 0.6),
            (0, 2, 2, 4),
            (0.9, 0.9 - k / 100, 0.9 - k / 100, 0.5),
            (0.1,) * 4,
            (0,) * 4,
            (0,) * 4,
        )
        for k in range(count)
    }
    return SensitivityCurves("accuracy", True, 0.9, 0.1, 100, 50, groups, **options)


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    folder = tmp_path_factory.mktemp("curves")
    curves = curves_of(40, unremovable={"head": "protected"})
    chart = draw_sensitivity(curves, folder / "curves.png", str(folder / "curves.html"))
    return folder, chart


def test_the_picture_is_a_png_of_some_size(drawn):
    content = (drawn[0] / "curves.png").read_bytes()
    assert content[:8] == b"\x89PNG\r\n\x1a\n"
    width, height = struct.unpack(">II", content[16:24])
    assert width > 1200
    assert height > 600


def test_the_page_loads_nothing_from_elsewhere(drawn):
    page = (drawn[0] / "curves.html").read_text()
    tags = Tags()
    tags.feed(page)
    assert "script" in tags.seen
    assert tags.addresses == []
    assert not re.findall(r"(?:@import|import\(|fetch\()\s*[\"']https?:", page)
    assert "vegaEmbed" in page
    assert "layer39.conv" in page


def test_both_files_are_whole_or_not_there(drawn):
    assert sorted(path.name for path in drawn[0].iterdir()) == ["curves.html", "curves.png"]


def test_every_group_is_a_line_with_a_place_in_the_legend(drawn):
    chart = drawn[1]
    line = next(layer for layer in chart["layer"] if layer["mark"]["type"] == "line")
    colour = line["encoding"]["color"]
    assert len(colour["scale"]["domain"]) == 40
    assert colour["legend"]["symbolLimit"] == 0, "Vega's own limit would hide the later groups"
    assert colour["legend"]["columns"] == 2


def test_the_base_is_marked_and_the_legend_and_the_pointer_select(drawn):
    chart = drawn[1]
    assert any(layer["mark"]["type"] == "rule" for layer in chart["layer"])
    selections = {each["name"]: each for each in chart["params"]}
    assert selections["clicked"]["bind"] == "legend"
    assert selections["near"]["select"]["nearest"] is True
    points = next(layer for layer in chart["layer"] if layer["mark"]["type"] == "point")
    assert "group" in [each["field"] for each in points["encoding"]["tooltip"]]


def test_groups_where_nothing_goes_are_named_and_not_drawn(drawn):
    subtitle = " ".join(drawn[1]["title"]["subtitle"])
    assert "nothing can be removed (protected): head" in subtitle
    assert "head" not in {row["group"] for row in rows(curves_of(2, unremovable={"head": "protected"}))}


def test_a_point_measured_once_is_drawn_once_at_what_really_went():
    found = [row["removed"] for row in rows(curves_of(1))]
    assert found == [0.0, 0.25, 0.5]


@pytest.mark.parametrize("module", ["altair", "vl_convert"])
def test_a_missing_extra_names_what_to_install(module, monkeypatch):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MissingExtra, match=r'pip install "secateur\[report\]"'):
        draw_sensitivity(curves_of(1))
