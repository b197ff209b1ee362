"""The documentation says what is so: its code runs, its links lead somewhere, its reference is the code's."""

from __future__ import annotations

import dataclasses
import importlib.util
import inspect
import re
import statistics
from pathlib import Path

import pytest

from secateur.catalogue import CATALOGUE

ROOT = Path(__file__).parents[1]
PAGES = {
    str(path.relative_to(ROOT)): path for path in [*(ROOT / "docs").rglob("*.md"), *ROOT.glob("*.md")] if path.exists()
}
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def reference():
    spec = importlib.util.spec_from_file_location("write_reference", ROOT / "scripts" / "write_reference.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


REFERENCE = reference()


@pytest.mark.parametrize("name", ["methods.md", "errors.md"])
def test_reference_is_up_to_date(name):
    page = (ROOT / "docs" / "reference" / name).read_text(encoding="utf-8")
    assert page == REFERENCE.pages()[name], "run: python scripts/write_reference.py"


@pytest.mark.parametrize("name", CATALOGUE)
def test_the_page_of_every_method_is_up_to_date(name):
    page = (ROOT / "docs" / "reference" / "methods" / f"{name}.md").read_text(encoding="utf-8")
    assert page == REFERENCE.pages()[f"methods/{name}.md"], "run: python scripts/write_reference.py"


def test_there_is_no_page_of_a_method_that_is_gone():
    found = {path.stem for path in (ROOT / "docs" / "reference" / "methods").glob("*.md")}
    assert found == set(CATALOGUE), "run: python scripts/write_reference.py"


@pytest.mark.parametrize("name", CATALOGUE)
def test_every_method_says_source_claim_equation_cost_use_and_difference(name):
    text = inspect.getdoc(importlib.import_module(f"secateur.methods.{name}"))
    title, parts = REFERENCE.docstring_parts(text, name)
    assert title.endswith(".")
    assert tuple(parts) == REFERENCE.PARTS
    assert parts["Where we differ, and why:"].startswith("- "), "a list, one point a difference"


@pytest.mark.parametrize("part", REFERENCE.PARTS)
def test_a_docstring_without_one_of_the_parts_is_refused(part):
    whole = "Title.\n\n" + "\n\n".join(f"{label} - text" for label in REFERENCE.PARTS)
    assert REFERENCE.docstring_parts(whole, "made_up")[0] == "Title."
    with pytest.raises(ValueError, match=r"methods/made_up\.py"):
        REFERENCE.docstring_parts(whole.replace(part, "Other:"), "made_up")
    with pytest.raises(ValueError, match="some empty"):
        REFERENCE.docstring_parts(whole.replace(f"{part} - text", part), "made_up")


@pytest.mark.parametrize("name", CATALOGUE)
def test_every_hyper_parameter_is_explained(name):
    kind = type(CATALOGUE[name].make())
    assert list(REFERENCE.attributes(kind)) == [field.name for field in dataclasses.fields(kind)]
    assert all(REFERENCE.attributes(kind).values())


def measurements():
    def row(method, repair, accuracy, remove=0.5):
        mean, std = statistics.fmean(accuracy), statistics.stdev(accuracy) if len(accuracy) > 1 else 0.0
        given = {"model": "resnet20", "remove": remove, "of": "macs"}
        return {**given, "method": method, "repair": repair, "accuracy": accuracy, "mean": mean, "std": std}

    rows = [row("l1_filter", "refit", [60.0, 64.0]), row("l1_filter", "none", [30.0]), row("random", "none", [11.0])]
    rows += [row("random", "none", [55.5], remove=0.25)]
    return {"command": "python -m made_up", "data": "CIFAR-10", "dense": {"resnet20": 92.5}, "rows": rows}


def test_a_page_shows_what_was_measured_beside_the_control():
    page = REFERENCE.method_page(CATALOGUE["l1_filter"], measurements())
    assert "| network | removed | method | repair: none | repair: refit |" in page
    assert "| resnet20 | 50 % of MACs | l1_filter | 30.00 (1) | 62.00 ± 2.83 (2) |" in page
    assert "| resnet20 | 50 % of MACs | random | 11.00 (1) |  |" in page
    assert "25 %" not in page, "the method was not measured there"
    assert "resnet20: 92.50" in page
    assert "`python -m made_up`" in page
    assert "Settings besides" not in page


def test_a_page_shows_what_was_published_on_the_method_and_on_no_other():
    rows = [{"method": "l1_filter", "remove": 0.9, "accuracy": 90.1}, {"method": "fpgm", "remove": 0.9, "accuracy": 1}]
    published = {"model": "resnet20", "source": "Someone 2020", "dense": 92.48, "rows": rows}
    page = REFERENCE.method_page(CATALOGUE["l1_filter"], measurements() | {"published": published})
    assert "Published for resnet20: 90.10 with 90 % removed, 92.48 before (Someone 2020)." in page
    nothing = {**published, "rows": rows[1:]}
    assert "Published" not in REFERENCE.method_page(CATALOGUE["l1_filter"], measurements() | {"published": nothing})


def test_a_page_says_with_which_settings_was_measured():
    measured = measurements()
    measured["rows"][0]["settings"] = {"selection": "greedy"}
    assert "share there: `selection='greedy'`." in REFERENCE.method_page(CATALOGUE["l1_filter"], measured)


def test_a_page_without_measurements_has_no_section_on_them():
    for measured in ((), ({},), (measurements(),)):
        assert "What we measured" not in REFERENCE.method_page(CATALOGUE["sensitivity"], *measured)


@pytest.mark.parametrize("page", [name for name in PAGES if name.startswith("docs")])
def test_every_python_block_is_run(page):
    """A block that does not start with the prompt would be shown and never tried."""
    blocks = [code for language, code in FENCE.findall(PAGES[page].read_text(encoding="utf-8")) if language == "python"]
    shown = [code for code in blocks if not code.startswith(">>> ")]
    assert not shown
    unclosed = [code for code in blocks if not code.endswith("\n\n")]
    assert not unclosed, "leave a blank line before the closing fence: doctest would take the fence for output"


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page):
    text = FENCE.sub("", PAGES[page].read_text(encoding="utf-8"))
    links = [link for link in re.findall(r"\]\(([^)\s]+)\)", text) if "://" not in link]
    for link in links:
        file, _, anchor = link.partition("#")
        target = PAGES[page].parent / file if file else PAGES[page]
        assert target.exists(), link
        if anchor and target.suffix == ".md":
            headings = re.findall(r"^#+ (.+)$", target.read_text(encoding="utf-8"), re.MULTILINE)
            assert anchor in {re.sub(r"[^\w\- ]", "", h.lower()).replace(" ", "-") for h in headings}, link


@pytest.mark.parametrize("page", PAGES)
def test_paths_that_pages_name_exist(page):
    """`src/secateur/...` in backticks is a file or a folder, unless it has a placeholder."""
    named = re.findall(r"`((?:src|tests|docs|scripts|benchmarks)/[\w./<>-]+)`", PAGES[page].read_text(encoding="utf-8"))
    missing = [path for path in named if "<" not in path and not (ROOT / path).exists()]
    assert not missing
