"""`make demo` runs an experiment that is checked here; the whole of it is for machines with a few minutes."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from typer.testing import CliRunner

from secateur.catalogue import CATALOGUE
from secateur.cli import app
from secateur.compare.jobs import jobs_of
from secateur.compare.spec import read_experiment, to_toml

ROOT = Path(__file__).parents[1]
ENTRIES = CATALOGUE.values()
SPEC = ROOT / "demo" / "digits.toml"


def commands():
    recipe = re.search(r"^demo:.*\n((?:\t.*\n)+)", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert recipe is not None
    return [shlex.split(line)[1:] for line in recipe[1].splitlines()]


def test_the_demo_is_six_methods_against_scratch_of_two_seeds():
    experiment = read_experiment(SPEC)
    assert len(experiment.methods) == 6
    assert {CATALOGUE[method.name].removes for method in experiment.methods} == {"channels", "weights"}
    assert {CATALOGUE[method.name].family for method in experiment.compared} == {entry.family for entry in ENTRIES}
    assert all(b.remove == 0.5 for m in experiment.methods for b in experiment.budgets_of(m))
    assert experiment.recoveries == ("finetune", "scratch_e", "scratch_b")
    assert len(jobs_of(experiment)) == 2 * (1 + 8 * 4) + 1  # and how its groups take being cut


def test_make_demo_calls_commands_that_there_are():
    compare, report = commands()
    assert compare[:2] == ["compare", "demo/digits.toml"]
    assert report[0] == "report"
    for command in (compare, report):
        known = CliRunner().invoke(app, [command[0], "--help"]).stdout
        assert [word for word in command if word.startswith("--") and word not in known] == []


@pytest.mark.slow
def test_a_short_form_of_the_demo_ends_with_its_report(tmp_path):
    experiment = read_experiment(SPEC)
    (model,) = experiment.models
    short = model.model_copy(update={"changes": {"epochs": 2}, "finetune_epochs": 1})
    spec = tmp_path / "short.toml"
    spec.write_text(to_toml(experiment.model_copy(update={"models": (short,), "seeds": (0,)})))
    for command in (["compare", str(spec), "--jobs", "2", "--threads", "1"], ["report", str(tmp_path / "run")]):
        given = [*command, "--out", str(tmp_path / ("run" if command[0] == "compare" else "report.html"))]
        result = CliRunner().invoke(app, given)
        assert result.exit_code == 0, result.output
    assert "What each way reached" in (tmp_path / "report.html").read_text()
