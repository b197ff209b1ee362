"""compare, results and report on the command line."""

from __future__ import annotations

import csv
import json
import re
import tomllib
from pathlib import Path

import pytest
from typer.testing import CliRunner

from secateur.cli import app
from secateur.compare.spec import made, read_experiment, to_toml
from secateur.compare.store import ResultStore

from .compare.results import made_up, small_grid

FLAGS = ("--model", "digits_resnet", "--data", "digits", "--recipe", "digits", "--method", "l1_filter", "--remove", 0.5)
SHORT = ("--with", "epochs=1", "--with", "warmup_epochs=0", "--with", "batch_size=256", "--finetune", 1)


def run(*args):
    return CliRunner().invoke(app, [str(arg) for arg in args])


def facts(*args):
    result = run(*args, "--json")
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    target = tmp_path_factory.mktemp("store")
    made_up(target, fails=("magnitude 50% of weights scratch_b",))
    return target


# ---------------------------------------------------------------- compare


def test_flags_and_a_file_make_the_same_experiment(tmp_path):
    """Several of a kind are given by repeating the flag."""
    given = ("--method", "thinet", "--remove", 0.3, "--of", "params", "--recovery", "distill", "--seeds", "0,4")
    told = facts("compare", *FLAGS, *given, *SHORT, "--out", tmp_path, "--dry-run")
    spec = tmp_path / "spec.toml"
    spec.write_text(
        'recoveries = ["distill"]\nseeds = [0, 4]\n[[budgets]]\nremove = 0.5\nof = "params"\n[[budgets]]\n'
        'remove = 0.3\nof = "params"\n[[methods]]\nname = "l1_filter"\n[[methods]]\nname = "thinet"\n[[models]]\n'
        'name = "digits_resnet"\ndata = "digits"\nrecipe = "digits"\nfinetune_epochs = 1\n'
        "changes = { epochs = 1, warmup_epochs = 0, batch_size = 256 }\n"
    )
    assert told["experiment"] == read_experiment(spec).digest
    assert len(told["estimates"]) == told["jobs"] == told["left"] == 2 * (1 + 3 * 2 * 2)
    assert facts("compare", spec, "--out", tmp_path, "--dry-run")["experiment"] == told["experiment"]


def test_what_is_measured_besides_and_how_training_is_shared_can_be_flags(tmp_path):
    more = ("--latency", "--sensitivity", "--processes", 2)
    told = facts("compare", *FLAGS, *SHORT, *more, "--seeds", 0, "--out", tmp_path, "--dry-run")
    spec = tmp_path / "spec.toml"
    spec.write_text(
        "latency = true\nsensitivity = true\nprocesses = 2\nseeds = [0]\n[[budgets]]\nremove = 0.5\n"
        '[[methods]]\nname = "l1_filter"\n[[models]]\nname = "digits_resnet"\ndata = "digits"\nrecipe = "digits"\n'
        "finetune_epochs = 1\nchanges = { epochs = 1, warmup_epochs = 0, batch_size = 256 }\n"
    )
    assert told["experiment"] == read_experiment(spec).digest
    assert sum("latency" in one["job"] for one in told["estimates"]) == 2
    assert sum("sensitivity" in one["job"] for one in told["estimates"]) == 1


def test_a_dry_run_lists_the_trials_with_time_and_multiply_adds(tmp_path):
    result = run("compare", *FLAGS, *SHORT, "--seeds", 0, "--out", tmp_path / "x", "--dry-run")
    assert result.exit_code == 0
    assert "digits_resnet l1_filter 50% of macs scratch_b seed 0" in result.stdout
    assert "9 of 9 jobs to do: ~" in result.stdout
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("--model", "digits_resnet"), "--data, --method, --remove"),
        (("spec.toml", "--seeds", "0"), "leave the options for it out"),
        ((*FLAGS, "--seeds", "0,x"), "no list of whole numbers"),
        ((*FLAGS, "--jobs", "0"), "--jobs"),
    ],
)
def test_a_wrong_command_line_ends_with_2(args, message, tmp_path):
    result = run("compare", *args, "--out", tmp_path)
    assert result.exit_code == 2
    assert message in " ".join(result.stderr.replace("│", " ").split())


def test_everything_that_is_wrong_is_told_at_once(tmp_path):
    result = run("compare", *FLAGS, "--method", "l1_fliter", "--recovery", "magic", "--out", tmp_path)
    assert result.exit_code == 1
    assert "the options: 2 things are wrong" in result.stderr
    assert "did you mean 'l1_filter'" in result.stderr


def test_a_comparison_runs_and_goes_on(tmp_path):
    args = (*FLAGS, *SHORT, "--seeds", 0, "--recovery", "none", "--out", tmp_path, "--threads", 1, "--quiet")
    told = facts("compare", *args)
    assert (told["done"], told["ran"], told["failed"], told["blocked"]) == (3, 3, [], 0)
    again = run("compare", *args)
    assert again.exit_code == 0
    assert "3 of 3 jobs done, 0 of them now" in again.stdout


@pytest.mark.filterwarnings("ignore")  # what TensorBoard's dependencies warn about
def test_results_are_shown_by_a_tracker(folder, tmp_path):
    pytest.importorskip("tensorboard")
    spec = folder / "spec.toml"
    spec.write_text(to_toml(small_grid()))
    result = run("compare", spec, "--out", folder, "--track", "tensorboard", "--track-dir", tmp_path / "shown")
    assert "48 of 51 jobs done, 0 of them now" in result.stdout
    assert len(list((tmp_path / "shown" / "tiny").iterdir())) == 48


def test_a_tracker_that_there_is_not_is_refused_before_anything_runs(tmp_path):
    result = run("compare", *FLAGS, "--out", tmp_path / "x", "--track", "tensorbord")
    assert result.exit_code == 1
    assert "did you mean 'tensorboard'" in result.stderr
    assert not (tmp_path / "x").exists()


def test_failed_jobs_end_with_1_and_are_named(folder):
    spec = folder / "spec.toml"
    spec.write_text(to_toml(small_grid()))
    result = run("compare", spec, "--out", folder)
    assert result.exit_code == 1
    assert "failed: digits_resnet magnitude 50% of weights scratch_b seed 0: RuntimeError: <it> broke" in result.stderr
    assert "3 failed" in result.stdout
    assert "magnitude" in result.stdout


# ---------------------------------------------------------------- results


def test_results_filters_and_prints_a_table(folder):
    result = run("results", folder, "--method", "l1_filter", "--recovery", "finetune")
    lines = result.stdout.splitlines()
    assert lines[0].split() == "model method budget recovery seed status metric MACs parameters time".split()
    assert len(lines) == 4
    assert all("l1_filter" in line and "368,128" in line for line in lines[1:])
    failed = facts("results", folder, "--status", "failed")["results"]
    assert {row["recovery"] for row in failed} == {"scratch_b"}
    assert len(failed) == 3


def test_results_exports_all_that_the_filter_leaves(folder, tmp_path):
    target = tmp_path / "out.csv"
    assert run("results", folder, "--method", "magnitude", "--export", target, "--limit", 1).exit_code == 0
    with target.open(newline="") as file:
        assert len(list(csv.DictReader(file))) == 12
    assert "and 11 more" in run("results", folder, "--method", "magnitude", "--limit", 1).stdout


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("--method", "l1_fliter"), "did you mean 'l1_filter'"),
        (("--status", "fialed"), "did you mean 'failed'"),
        (("--experiment", "other"), "no experiment 'other'; there are:"),
        (("--export", "x.xlsx"), "no .csv, .json or .parquet"),
    ],
)
def test_results_says_what_there_is(folder, args, message):
    result = run("results", folder, *args)
    assert result.exit_code == 1
    assert message in result.stderr


@pytest.mark.parametrize("command", ["results", "report"])
def test_a_folder_without_results_is_told(tmp_path, command):
    result = run(command, tmp_path)
    assert result.exit_code == 1
    assert "holds no results" in result.stderr


# ---------------------------------------------------------------- report


def test_report_writes_the_page_json_and_a_card(folder, tmp_path):
    files = [tmp_path / name for name in ("page.html", "values.json", "card.md")]
    result = run("report", folder, "--out", files[0], "--json", files[1], "--markdown", files[2])
    assert result.exit_code == 0, result.output
    assert all(str(file) in result.stdout for file in files)
    assert files[0].read_text().startswith("<!DOCTYPE html>")
    assert json.loads(files[1].read_text())["jobs"]["all"] == 51
    assert "Pruned and fine-tuned, against" in files[2].read_text()


def test_report_goes_into_the_folder_and_json_to_standard_output(folder):
    result = run("report", folder, "--json", "-")
    assert json.loads(result.stdout)["verdict"]
    assert (folder / "report.html").exists()
    with ResultStore(folder) as store:
        assert len(store.rows()) == 51


def test_the_experiment_in_the_documentation_is_one():
    page = (Path(__file__).parents[1] / "docs" / "how-to" / "compare.md").read_text()
    (block,) = re.findall(r"```toml\n(.*?)```", page, re.DOTALL)
    assert len(made(tomllib.loads(block)).methods) == 2


def test_without_a_cluster_processes_work(tmp_path):
    from secateur.cli.compare import _workers
    from secateur.compare.local import LocalWorkers

    assert _workers(tmp_path, 3, 2, None) == LocalWorkers(tmp_path, 3, 2)


def test_a_cluster_takes_the_place_of_processes(tmp_path):
    pytest.importorskip("ray")
    from secateur.cli.compare import _workers

    made = _workers(tmp_path, 1, 4, "cluster:6379")
    assert (made.folder, made.address, made.cpus_per_job) == (tmp_path, "cluster:6379", 4)
    made.close()
