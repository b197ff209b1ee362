"""Progress bars: after two seconds, on a terminal."""

from __future__ import annotations

import pytest

from secateur.train import progress


@pytest.fixture
def clock(monkeypatch):
    class Clock:
        now = 100.0

    monkeypatch.setattr(progress.time, "monotonic", lambda: Clock.now)
    return Clock


def run(clock, seconds: float, visible: bool | None) -> None:
    with progress.ProgressBar("counting sheep", total=2, visible=visible) as bar:
        bar.advance()
        clock.now += seconds
        bar.advance(title="still counting")


def test_a_short_run_shows_nothing(clock, capsys):
    run(clock, 1.9, visible=True)
    assert capsys.readouterr() == ("", "")


def test_a_long_run_shows_its_newest_title_on_standard_error(clock, capsys):
    run(clock, 2.1, visible=True)
    out, err = capsys.readouterr()
    assert out == ""
    assert "still counting" in err


@pytest.mark.parametrize("visible", [None, False])
def test_without_a_terminal_or_when_told_it_is_quiet(clock, capsys, visible):
    run(clock, 60.0, visible=visible)
    assert capsys.readouterr() == ("", "")
