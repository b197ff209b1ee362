"""The report says what is in the store, the answer first, and nothing that is not there."""

from __future__ import annotations

import json
import math
import statistics

import pytest

from secateur.compare.analysis import Cell
from secateur.compare.spec import made
from secateur.compare.store import ResultStore
from secateur.errors import ExperimentError, StoreError
from secateur.methods.sensitivity import SensitivityCurves
from secateur.report._comparison_charts import cost_chart
from secateur.report._sensitivity_of_groups import sensitivity_chart
from secateur.report.comparison import gather, rival_of, values_of
from secateur.report.comparison_page import card_of, page_of
from secateur.report.page import render, write_text

from ..compare.results import CURVES, made_up, small_grid


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    target = tmp_path_factory.mktemp("store")
    made_up(target)
    return target


@pytest.fixture(scope="module")
def findings(folder):
    return gather(folder)


def table_of(findings, words):
    tables = [table for section in page_of(findings).sections for table in section.tables]
    return next(table for table in tables if words in table.caption)


def test_the_answer_comes_first_and_counts_methods_not_controls(findings):
    page = page_of(findings)
    assert page.summary == findings.verdict
    against = {said.split("against ")[1].split(":")[0]: said for said in findings.verdict}
    scratch = against["the same network from scratch, as many epochs"]
    assert scratch.endswith("better in 2 of 2 cases.")
    assert against["the dense network"].endswith("worse in 2 of 2 cases.")
    assert "as good within 0.3 points in 2 of 2" in against["the same network from scratch, as much compute"]
    assert len(findings.verdict) == 4


def test_cells_are_means_and_deviations_over_seeds(findings, folder):
    with ResultStore(folder) as store:
        rows = store.rows(label="l1_filter", recovery="finetune")
    metrics = [100 * row.metric for row in rows]
    wanted = f"{statistics.fmean(metrics):.2f} ± {statistics.stdev(metrics):.2f}"
    table = table_of(findings, "mean ± standard deviation of 3 seeds")
    (row,) = [row for row in table.rows if row[0] == "l1_filter"]
    assert row[table.columns.index("fine-tuned")] == wanted
    assert row[1:3] == ("50% of MACs", "30.00 ± 0.00")


def test_each_method_stands_beside_the_control_of_its_kind(findings):
    table = table_of(findings, "mean ± standard deviation")
    column = table.columns.index("random, fine-tuned")
    cells = {row[0]: row[column] for row in table.rows}
    own = {row[0]: row[table.columns.index("fine-tuned")] for row in table.rows}
    assert cells["l1_filter"] == own["random"]
    assert cells["magnitude"] == own["random_weights"] != own["random"]


def test_differences_are_those_of_the_analysis(findings):
    (gap,) = [gap for gap in findings.differences if gap.one.label == "l1_filter" and rival_of(gap) == "scratch_e"]
    table = table_of(findings, "is better than its rivals")
    (row,) = [row for row in table.rows if row[0] == "l1_filter"]
    cell = row[table.columns.index("against scratch-E")]
    assert cell == f"{100 * gap.mean:+.2f} [{100 * gap.low:+.2f}, {100 * gap.high:+.2f}] better"


def test_training_after_the_cut_is_a_share_of_the_dense_networks(findings):
    """Three epochs of 368,128 multiply-adds an image, beside two of 747,136."""
    table = table_of(findings, "as a share of the dense network's training")
    (row,) = [row for row in table.rows if row[0] == "l1_filter"]
    assert row[table.columns.index("fine-tuned")] == f"3 ({3 * 368_128 / (2 * 747_136):.0%})" == "3 (74%)"


def test_budgets_asked_and_got_and_the_largest_error(findings):
    rows = {row[0]: row for row in table_of(findings, "asked and got").rows}
    assert rows["l1_filter"][1:] == ("50% of MACs", "50.70%", "368,128", "36,726", "2.0e-16")
    assert rows["magnitude"][-1] == "–"


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    folder = tmp_path_factory.mktemp("measured")
    made_up(folder, small_grid(latency=True, sensitivity=True))
    return gather(folder)


def test_latency_is_a_table_and_can_be_drawn_across_with_its_spread(measured):
    table = table_of(measured, "measured latency")
    rows = {row[0]: row for row in table.rows}
    assert table.columns[2:] == ("one sample, ms", "speed-up, one sample", "64 samples, ms", "speed-up, 64 samples")
    assert rows["l1_filter"][2:] == ("0.505 ± 0.005", "2.00x", "32.3 ± 0.32", "2.00x")
    assert rows["dense network"][2] == "1.01 ± 0.0085"
    assert "cpu, 1 thread" in table.note
    chart = cost_chart(measured)
    (across,) = [control for control in chart.controls if control.label == "Across"]
    assert list(across.options)[2:] == ["latency of one sample, ms", "latency of 64 samples, ms"]
    changed = json.loads(json.dumps(chart.specification))
    for edit in across.options["latency of 64 samples, ms"]:
        at = changed
        for key in edit.place[:-1]:
            at = at[key]
        at[edit.place[-1]] = edit.value
    fields = {changed["layer"][0]["layer"][3]["encoding"][axis]["field"] for axis in ("x", "x2")}
    fields.add(changed["layer"][0]["encoding"]["x"]["field"])
    assert all(field in row for field in fields for row in changed["layer"][0]["data"]["values"])
    assert changed["layer"][0]["transform"][3]["filter"]["field"] == "latency_64"


def test_without_latency_nothing_speaks_of_it(findings):
    html = render(page_of(findings))
    assert "latency" not in html.split("<script>")[0]
    assert "How each group takes being cut" not in html


def test_one_seed_has_the_quartiles_of_its_rounds(tmp_path):
    made_up(tmp_path, small_grid(latency=True, seeds=[0], control=False))
    (cut,) = [t for cell, t in gather(tmp_path).timings.items() if cell.label == "l1_filter"]
    assert (cut[1].ms, cut[1].spread_ms, cut[1].seeds) == (0.5, 0.05, 1)


def test_sensitivity_is_a_chart_and_a_table_of_what_can_go(measured):
    table = table_of(measured, "can go alone")
    assert table.rows == [("conv1", "16", "50.0%", "0.50"), ("stages.0.0.conv1", "16", "0.0%", "35.00")]
    assert "head (protected)" in table.note
    chart = sensitivity_chart(measured)
    assert len(chart.specification["layer"][0]["data"]["values"]) == 4
    assert "How each group takes being cut" in render(page_of(measured))


def test_page_json_and_card_have_all_that_was_measured(measured):
    values = json.loads(json.dumps(values_of(measured), allow_nan=False))
    card, html = card_of(measured), render(page_of(measured))
    (cut,) = [o for o in values["outcomes"] if (o["label"], o["recovery"]) == ("l1_filter", "none")]
    assert (cut["remove"], cut["removed"], cut["verification_error"]) == (0.5, 0.507, 2e-16)
    timed = {(one["label"], one["batch"]): one["ms"] for one in values["latency"]}
    assert timed["l1_filter", 1] == pytest.approx(0.505)
    (own,) = values["sensitivity"]
    assert SensitivityCurves.from_json(json.dumps(own["curves"])) == CURVES
    assert {one["job"] for one in values["training"]} >= {"digits_resnet dense seed 0"}
    assert values["training"][0]["epochs"][0].keys() == {"epoch", "loss", "lr", "seconds"}
    assert values["facts"]["seeds"] == "0, 1, 2"
    for words in ("budget asked and got", "channels of each group", "measured latency", "can go alone", "seeds"):
        assert words in card, words
        assert words in html, words
    for words in ("2.0e-16", "secateur compare experiment.toml", "python 3"):
        assert words in card, words
        assert words in html, words
    assert "digits_resnet l1_filter 50% of macs finetune seed 0" in card


def test_widths_before_and_after_are_of_the_first_seed(findings):
    table = table_of(findings, "channels of each group")
    assert table.columns == ("group", "before", "l1_filter", "random")
    assert ("stages.0.0.conv1", "16", "8", "8") in table.rows
    assert "seed 0" in table.caption


def test_the_page_holds_no_markup_of_others_and_every_section(tmp_path):
    made_up(tmp_path, small_grid(name="<b>bold</b>"), fails=("magnitude",), leaves=2)
    html = render(page_of(gather(tmp_path)))
    assert "<b>bold" not in html
    assert "RuntimeError: &lt;it&gt; broke" in html
    assert "This is not all" in html
    for heading in ("What each way reached", "What differs", "Accuracy and cost", "What failed", "The experiment"):
        assert f">{heading}</h2>" in html


def test_the_experiment_on_the_page_is_the_one_that_ran(findings):
    import tomllib

    assert made(tomllib.loads(findings.toml)).digest == findings.digest


def test_json_is_strict_and_holds_every_seed(findings):
    values = json.loads(json.dumps(values_of(findings), allow_nan=False))
    (own,) = [one for one in values["outcomes"] if (one["label"], one["recovery"]) == ("l1_filter", "scratch_b")]
    outcome = findings.by_cell[Cell("digits_resnet", "digits", "l1_filter", "l1_filter", "macs", 0.5, "scratch_b")]
    assert own["values"] == {str(seed): value for seed, value in outcome.values.items()}
    assert own["mean"] == outcome.mean
    assert len(values["differences"]) == len(findings.differences)


def test_one_seed_is_told_to_say_nothing_of_chance(tmp_path):
    made_up(tmp_path, small_grid(seeds=[0]))
    findings = gather(tmp_path)
    assert any("One seed says nothing of chance" in said for said in findings.verdict)
    counted = [said for said in findings.verdict if said.startswith("Pruned")]
    assert counted
    assert not any("told apart" in said or "better" in said for said in counted)
    assert all("of one seed" in said for said in counted)
    assert math.isnan(findings.outcomes[0].std)
    assert values_of(findings)["outcomes"][0]["std"] is None
    assert "±" not in table_of(findings, "standard deviation of one seed").rows[0][3]


def test_a_store_in_which_nothing_is_done_yet_has_a_page(tmp_path):
    made_up(tmp_path, leaves=10_000)
    made_page = page_of(gather(tmp_path))
    assert "of 51 jobs are done" in made_page.summary[0]
    assert [section.heading for section in made_page.sections] == ["The experiment"]


def test_a_newer_experiment_is_shown_unless_another_is_named(tmp_path):
    first = made_up(tmp_path, small_grid(name="first"))
    made_up(tmp_path, small_grid(name="second", seeds=[0]))
    assert gather(tmp_path).experiment.name == "second"
    assert gather(tmp_path, "first").digest == gather(tmp_path, first.digest).digest == first.digest
    with pytest.raises(ExperimentError, match=r"no experiment 'third'; there are: .*\(first\)"):
        gather(tmp_path, "third")


def test_the_card_is_markdown_with_the_same_figures(findings):
    card = card_of(findings)
    table = table_of(findings, "mean ± standard deviation")
    assert card.startswith("# Was pruning worth it? tiny\n")
    assert all("| " + " | ".join(row) + " |" in card for row in table.rows)
    assert "```toml" in card


def test_a_place_that_cannot_be_written_is_told(tmp_path):
    with pytest.raises(StoreError, match="Name another place"):
        write_text("x", tmp_path / "nowhere" / "card.md")
