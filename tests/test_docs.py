"""The documentation says what is so: its code runs, its links lead somewhere, its reference is the code's."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import pytest

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


@pytest.mark.parametrize("name", ["methods.md", "errors.md"])
def test_reference_is_up_to_date(name):
    page = (ROOT / "docs" / "reference" / name).read_text(encoding="utf-8")
    assert page == reference().PAGES[name](), "run: python scripts/write_reference.py"


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
