"""How training went, as charts."""

from __future__ import annotations

import pytest
import torch

from secateur import Budget
from secateur.graph.costs import Costs
from secateur.methods import EpochView, History
from secateur.report.training import IF_CUT, SO_FAR, cost_rows, draw_training, score_rows, training_chart, width_rows

WHOLE = Costs(8, 1000, 400, 1600)


def costs(macs: int, params: int = 300) -> Costs:
    return Costs(6, macs, params, 4 * params)


def history_of(*scores: list[float], of: str = "macs", kept: bool = True) -> History:
    views = tuple(
        EpochView(
            k + 1,
            {"conv": torch.tensor(own)},
            {"conv": 2} if kept else {},
            {"conv": 4 - k},
            costs(500) if kept else None,
            costs(1000 - 100 * k),
        )
        for k, own in enumerate(scores)
    )
    return History(Budget(0.5, of), WHOLE, {"conv": 4}, views)


TWO = history_of([1.0, 2.0, 3.0, 4.0], [1.0, 1.0, 4.0, 4.0])


def test_costs_are_fractions_of_the_whole_model_in_macs_and_in_what_the_budget_counts():
    found = {(r["epoch"], r["what"], r["way"]): r["left"] for r in cost_rows(TWO)}
    assert found == {
        (1, "MACs", SO_FAR): 1,
        (1, "MACs", IF_CUT): 0.5,
        (2, "MACs", SO_FAR): 0.9,
        (2, "MACs", IF_CUT): 0.5,
    }
    other = {r["what"]: r["left"] for r in cost_rows(history_of([1.0], of="params"))}
    assert other == {"MACs": 0.5, "parameters": 0.75}


def test_widths_are_those_after_a_cut_or_where_that_is_unknown_those_not_out():
    assert [(r["epoch"], r["width"], r["live"], r["of"]) for r in width_rows(TWO)] == [(1, 2, 4, 4), (2, 2, 3, 4)]
    assert [r["width"] for r in width_rows(history_of([1.0], [1.0], kept=False))] == [4, 3]


def test_scores_are_counted_in_ranges_that_all_epochs_share():
    rows, is_log = score_rows(TWO)
    assert not is_log
    assert [(r["epoch"], r["channels"], r["share"]) for r in rows if r["epoch"] == 2] == [(2, 2, 0.5), (2, 2, 0.5)]
    assert rows[0]["from"] == 1
    assert rows[-1]["to"] == 4
    assert sum(r["channels"] for r in rows) == 8


def test_scores_over_many_decades_are_counted_by_decades_and_zeros_at_the_lowest():
    rows, is_log = score_rows(history_of([0.0, 1e-9, 1e-3, 1.0]))
    assert is_log
    assert [r["channels"] for r in rows] == [2, 1, 1]
    assert rows[0]["from"] == pytest.approx(1e-6)


@pytest.mark.parametrize("scores", [[0.0, 0.0, 0.0, 0.0], [2.0] * 4, [float("nan")] * 4])
def test_scores_that_are_all_the_same_or_no_numbers_can_be_drawn(scores):
    pytest.importorskip("altair")
    rows, _ = score_rows(history_of(scores))
    assert sum(r["channels"] for r in rows) in (0, 4)
    draw_training(history_of(scores))


def test_the_chart_is_written_as_picture_and_page(tmp_path):
    pytest.importorskip("altair")
    specification = draw_training(TWO, tmp_path / "training.png", tmp_path / "training.html")
    assert [part["title"] for part in specification["vconcat"]][:2] == ["Budget", f"Widths {IF_CUT}"]
    assert (tmp_path / "training.png").read_bytes()[:4] == b"\x89PNG"
    assert "asked: remove 50.0% of macs" in (tmp_path / "training.html").read_text()


def test_the_chart_says_in_words_what_it_shows():
    pytest.importorskip("altair")
    assert training_chart(TWO).caption == (f"After 2 epochs 90.0% of the MACs are left {SO_FAR}, and 50.0% {IF_CUT}.")


def test_an_empty_history_is_refused():
    pytest.importorskip("altair")
    with pytest.raises(ValueError, match="the history has no epoch"):
        draw_training(history_of())
