"""The report in a browser: quiet, closed off, usable by keyboard and screen reader, and every control does something.

Without Chromium, Playwright or axe these tests skip; what to install is in the reason.
"""

from __future__ import annotations

import os
import re
import shutil

import pytest

from secateur.report.comparison import gather
from secateur.report.comparison_page import page_of
from secateur.report.page import write_page

from ..compare.experiments import TINY
from ..compare.results import made_up, small_grid

sync_api = pytest.importorskip("playwright.sync_api", reason="needs playwright: pip install 'secateur[dev]'")
axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="needs axe: pip install 'secateur[dev]'")
NAMES = ("chromium", "chromium-browser", "chromium-headless-shell", "google-chrome")
CHROMIUM = next((path for path in map(shutil.which, NAMES) if path), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason=f"needs a browser, one of: {', '.join(NAMES)}")
PATIENCE_MS = 120_000
DRAWN = "[...document.querySelectorAll('[data-chart]')].every(place => place.classList.contains('is-live'))"


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    folder = tmp_path_factory.mktemp("store")
    models = [TINY["models"][0], {"name": "resnet20", "data": "cifar10"}]
    budgets = [{"remove": 0.5, "of": "macs"}, {"remove": 0.25, "of": "macs"}]
    asked = small_grid(models=models, budgets=budgets, latency=True, sensitivity=True)
    made_up(folder, asked, fails=("magnitude 50% of weights scratch_b",))
    write_page(page_of(gather(folder)), folder / "report.html")
    return f"file://{folder / 'report.html'}"


@pytest.fixture(scope="module")
def browser():
    with sync_api.sync_playwright() as tool:
        options = ["--no-sandbox"] if os.geteuid() == 0 else []
        made = tool.chromium.launch(executable_path=CHROMIUM, args=options, timeout=PATIENCE_MS)
        yield made
        made.close()


@pytest.fixture
def open_page(browser, address):
    """Return what opens the report, waits until it is drawn and notes what it says and asks for."""
    contexts = []

    def opened(**options):
        context = browser.new_context(**options)
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(PATIENCE_MS)
        page.said, page.asked = [], []
        page.on("console", lambda message: page.said.append(message.text))
        page.on("pageerror", lambda error: page.said.append(str(error)))
        page.on("request", lambda request: page.asked.append(request.url))
        page.goto(address)
        if options.get("java_script_enabled", True):
            page.wait_for_function(DRAWN)
        return page

    yield opened
    for context in contexts:
        context.close()


def drawn(figure):
    return int(figure.locator("[data-chart]").get_attribute("data-drawn"))


def picture(figure):
    return re.sub(r"clip\d+|gradient_\d+", "", figure.locator(".live").inner_html())


def after(page, figure, act):
    """Do something and return the picture that it leads to."""
    place, before = figure.locator("[data-chart]").element_handle(), drawn(figure)
    act()
    page.wait_for_function("([place, before]) => Number(place.dataset.drawn) > before", arg=[place, before])
    return picture(figure)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_is_quiet_closed_off_and_accessible(open_page, address, scheme):
    page = open_page(color_scheme=scheme)
    assert page.said == []
    assert [url for url in page.asked if url != address and not url.startswith("data:")] == []
    for summary in page.locator("summary").all():
        summary.press("Enter")
    found = axe.Axe().run(page).response["violations"]
    assert [(one["id"], [node["html"][:120] for node in one["nodes"]]) for one in found] == []


def test_every_option_of_every_list_changes_its_chart(open_page):
    page = open_page()
    figures = page.locator("figure").all()
    assert len(figures) == 4
    for figure in figures:
        labels = [label.inner_text().split("\n")[0] for label in figure.locator(".controls > label").all()]
        assert "Network" in labels
        for select in figure.locator("select").all():
            names = select.locator("option").all_inner_texts()
            first = picture(figure)
            for name in names[1:]:
                assert after(page, figure, lambda s=select, n=name: s.select_option(label=n)) != first, name
            assert after(page, figure, lambda s=select, n=names[0]: s.select_option(label=n)) == first
    assert page.said == []


def test_boxes_show_and_hide_methods_by_keyboard(open_page):
    page = open_page()
    figure = page.locator("figure").nth(1)
    before = figure.locator(".live .mark-symbol.role-mark path").count()
    after(page, figure, lambda: figure.get_by_role("checkbox", name="l1_filter", exact=True).press("Space"))
    assert figure.locator(".live .mark-symbol.role-mark path").count() < before
    after(page, figure, lambda: figure.get_by_role("checkbox", name="l1_filter", exact=True).press("Space"))
    assert figure.locator(".live .mark-symbol.role-mark path").count() == before


def test_a_mark_tells_its_figures(open_page):
    page = open_page()
    figure = page.locator("figure").nth(1)
    figure.locator(".live .mark-symbol.role-mark path").first.hover()
    page.wait_for_selector("#vg-tooltip-element.visible")
    assert "test accuracy" in page.locator("#vg-tooltip-element").inner_text()


def test_a_narrow_screen_scrolls_down_only(open_page):
    page = open_page(viewport={"width": 360, "height": 640})
    assert page.evaluate("document.scrollingElement.scrollWidth") <= 360


def test_without_scripts_and_in_print_the_still_pictures_stand(open_page):
    still = open_page(java_script_enabled=False)
    assert still.locator("figure .still svg").first.is_visible()
    assert not still.locator("form").first.is_visible()
    page = open_page(color_scheme="dark")
    assert not page.locator("figure .still").first.is_visible()
    page.emulate_media(media="print")
    assert page.locator("figure .still svg").first.is_visible()
    assert not page.locator("form").first.is_visible()
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"


def test_a_change_of_the_colour_scheme_redraws(open_page):
    page = open_page(color_scheme="light")
    figure = page.locator("figure").first
    light = picture(figure)
    assert after(page, figure, lambda: page.emulate_media(color_scheme="dark")) != light
