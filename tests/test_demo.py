"""The demo runs from end to end, and its report says what was found."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import secateur
from secateur.demo.__main__ import main
from secateur.demo.experiment import Outcome, Settings, run
from secateur.demo.findings import interval, page_of, short_table, values_of
from secateur.models import digits_resnet
from secateur.report.page import render


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("demo")


@pytest.fixture(scope="module")
def found(folder: Path) -> Outcome:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as the process that reloads the model has
    settings = Settings(seeds=(0, 1), epochs=2, tuning_epochs=1, timing_s=0.01)
    said: list[str] = []
    try:
        outcome = run(folder, settings, said.append)
    finally:
        torch.set_num_threads(threads)
    assert len(said) == settings.stage_count
    return outcome


def test_the_budget_is_met_and_the_result_exact(found):
    for results in found.results.values():
        for result in results:
            assert 0.5 <= result.removed < 0.52
            assert result.verification is not None
            assert result.verification.is_exact


def test_the_small_network_from_scratch_has_the_same_size(found):
    assert found.accuracy.keys() >= {("scratch", "trained"), ("l1_filter", "trained"), ("random", "as cut")}
    assert all(len(values) == 2 for values in found.accuracy.values())


def test_the_saved_model_is_the_same_in_a_new_process(found, folder):
    assert found.is_same
    small = secateur.load(folder / "small", model=digits_resnet())
    after = found.results["l1_filter"][0].after
    assert sum(p.numel() for p in small.parameters()) == after.params


def test_validation_and_test_images_are_apart_from_training(found):
    assert found.curves.sample_count == 144
    assert len(found.data.test_labels) == 359


def test_the_report_holds_the_figures(found):
    html = render(page_of(found, 1.0))
    result = found.results["l1_filter"][0]
    assert f"{result.after.macs:,}" in html
    assert f"{result.removed:.1%}" in html
    assert "1 thread, cpu" in html
    assert "from scratch" in html


def test_the_short_table_and_the_values_agree(found):
    values = json.loads(json.dumps(values_of(found, 1.0)))
    assert values["budget"]["removed"] == found.results["l1_filter"][0].removed
    assert values["accuracy"]["random"]["trained"] == found.accuracy["random", "trained"]
    assert "asked: remove 50.0% of macs; got 50.7%" in short_table(found)


def test_an_interval_of_equal_gaps_is_a_point_and_of_one_gap_is_everything():
    assert interval([0.5, 0.5]) == (0.5, 0.5)
    assert interval([0.5]) == (-float("inf"), float("inf"))


def test_a_folder_without_a_model_ends_with_1(tmp_path, capsys):
    assert main(["--reload", str(tmp_path)]) == 1
    assert "no saved model can be read" in capsys.readouterr().err


@pytest.mark.slow
def test_the_quick_demo_writes_its_report(tmp_path, capsys):
    assert main(["--quick", "--out", str(tmp_path / "demo")]) == 0
    assert capsys.readouterr().out.endswith("report.html\n")
    assert sorted(path.name for path in (tmp_path / "demo").iterdir()) == ["report.html", "results.json", "small"]
