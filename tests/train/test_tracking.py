"""Runs are written to trackers once per epoch, and come out as they would have without."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from secateur.errors import MissingExtra, TrainingError, UnknownName
from secateur.train import Attachment, ClassificationTask, Recipe, Tracking, fit, tracking
from secateur.train.tracking import Tracks

from .cases import KillAt, Killed, noisy_loader, tiny_model

SOURCE = Path(__file__).parents[2] / "src"
RECIPE = Recipe(epochs=3, lr=0.02, seed=1)
SCORES = torch.tensor([0.0, 1.0, 2.0, 3.0, 4.0])


class Measured(Attachment):
    """Measures what is easy to check, with a name and a value that trackers refuse."""

    def __init__(self):
        self.epochs = 0

    def after_epoch(self, moment):
        self.epochs += 1

    def measurements(self):
        scores = torch.cat([SCORES + self.epochs, torch.tensor([math.nan])])
        return {"width/0[heads]": 4 - self.epochs, "scores/0": scores, "bad": math.inf, "empty": torch.zeros(0)}

    def state_dict(self):
        return {"epochs": self.epochs}

    def load_state_dict(self, state):
        self.epochs = state["epochs"]


def run(shown=None, *others, folder=None):
    model = tiny_model()
    result = fit(
        model,
        noisy_loader(),
        ClassificationTask(),
        RECIPE,
        attachments=[*others, Measured()],
        eval_loader=noisy_loader(shuffle=False),
        checkpoint_dir=folder,
        tracking=shown,
        progress=False,
    )
    return result, model.state_dict()


def events(folder):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator(str(folder), size_guidance={"histograms": 0, "scalars": 0})
    found.Reload()
    return found


@pytest.fixture
def board():
    pytest.importorskip("tensorboard")


@pytest.mark.filterwarnings("ignore")  # what TensorBoard's dependencies warn about
def test_tensorboard_has_numbers_and_histograms_of_each_epoch(board, tmp_path):
    result, _ = run(Tracking("tensorboard", tmp_path, "a-run"))
    found = events(tmp_path / "a-run")
    losses = [(event.step, event.value) for event in found.Scalars("train/loss")]
    assert losses == [(k + 1, pytest.approx(record.loss)) for k, record in enumerate(result.history)]
    assert [event.value for event in found.Scalars("evaluation/accuracy")] == pytest.approx(
        [record.metric for record in result.history]
    )
    assert [event.value for event in found.Scalars("width/0_heads_")] == [3, 2, 1]
    last = found.Histograms("scores/0")[-1]
    assert last.step == 3
    assert (last.histogram_value.min, last.histogram_value.max, last.histogram_value.num) == (3, 7, 5)
    assert found.Tags()["histograms"] == ["scores/0"]
    assert "bad" not in found.Tags()["scalars"]


@pytest.mark.filterwarnings("ignore")
def test_a_tracked_run_ends_with_the_same_weights(board, tmp_path):
    (_, plain), (_, shown) = run(), run(Tracking("tensorboard", tmp_path))
    assert all(torch.equal(plain[name], shown[name]) for name in plain)


@pytest.mark.filterwarnings("ignore")
def test_a_killed_run_closes_its_files_and_goes_on_in_the_same_folder(board, tmp_path):
    shown = Tracking("tensorboard", tmp_path / "shown")
    with pytest.raises(Killed):
        run(shown, KillAt("after_step", 7), folder=tmp_path / "checkpoints")
    assert [event.step for event in events(tmp_path / "shown" / "secateur").Scalars("train/loss")] == [1]
    run(shown, KillAt("never", 0), folder=tmp_path / "checkpoints")
    found = events(tmp_path / "shown" / "secateur")  # of two files of the same second, either may be read first
    assert sorted(event.step for event in found.Scalars("train/loss")) == [1, 2, 3]
    assert sorted((event.step, event.value) for event in found.Scalars("width/0_heads_")) == [(1, 3), (2, 2), (3, 1)]


def test_nothing_is_asked_of_attachments_where_nothing_is_tracked(monkeypatch):
    monkeypatch.setattr(Measured, "measurements", lambda self: pytest.fail("asked"))
    run()


class Recorder:
    """A tracker that remembers."""

    def __init__(self, name):
        self.name, self.calls = name, []

    def log(self, values, step):
        self.calls.append((step, values))


def test_what_has_no_histograms_gets_quartiles():
    tracker = Recorder("mlflow")
    Tracks([tracker]).write(2, {"scores/0": SCORES, "lr": 0.5})
    parts = {"least": 0, "quarter": 1, "median": 2, "three_quarters": 3, "most": 4}
    assert tracker.calls == [(2, {"lr": 0.5} | {f"scores/0/{part}": value for part, value in parts.items()})]


def test_many_numbers_go_in_parts_and_none_is_lost():
    tracker = Recorder("mlflow")
    Tracks([tracker]).write(1, {f"width/{k}": k for k in range(1201)})
    assert [len(values) for _, values in tracker.calls] == [500, 500, 201]
    assert {name for _, values in tracker.calls for name in values} == {f"width/{k}" for k in range(1201)}


def test_a_tracker_without_its_package_says_what_to_install(monkeypatch):
    monkeypatch.setattr(tracking, "find_spec", lambda name: None)
    with pytest.raises(MissingExtra, match=r'pip install "secateur\[track\]"'):
        Tracking("tensorboard")
    with pytest.raises(MissingExtra, match=r"tracking with mlflow needs .*: pip install mlflow\."):
        Tracking(("mlflow",))


@pytest.mark.parametrize(
    ("trackers", "run_name", "error", "match"),
    [
        ("tensorbord", "a", UnknownName, "did you mean 'tensorboard'"),
        ((), "a", TrainingError, "expected one or several of mlflow, tensorboard, trackio"),
        ("tensorboard", "../a", TrainingError, r"run='\.\./a': expected letters"),
    ],
)
def test_senseless_tracking_is_refused(trackers, run_name, error, match):
    with pytest.raises(error, match=match):
        Tracking(trackers, run=run_name)


MLFLOW = """
import sys, torch
from tests.train.test_tracking import Tracking, run
import mlflow
assert not mlflow.is_tracking_uri_set()
run(Tracking("mlflow", sys.argv[1], "a-run"))
assert not mlflow.is_tracking_uri_set(), "MLflow is told no longer where to write"
client = mlflow.MlflowClient(f"sqlite:///{sys.argv[1]}/mlflow.db")
(own,) = client.search_runs([client.get_experiment_by_name("a-run").experiment_id])
widths = client.get_metric_history(own.info.run_id, "width/0_heads_")
assert [(point.step, point.value) for point in widths] == [(1, 3), (2, 2), (3, 1)], widths
assert [point.value for point in client.get_metric_history(own.info.run_id, "scores/0/median")] == [3, 4, 5]
assert (own.info.status, own.data.params["epochs"]) == ("FINISHED", "3")
"""

TRACKIO = """
import contextlib, io, sys
from tests.train.test_tracking import Tracking, run
import trackio
said = io.StringIO()
with contextlib.redirect_stdout(said):
    run(Tracking("trackio", run="a-run"))
assert said.getvalue() == "", said.getvalue()
from trackio.sqlite_storage import SQLiteStorage
(name,) = SQLiteStorage.get_runs("a-run")
rows = SQLiteStorage.get_logs("a-run", name)
assert [row["width/0_heads_"] for row in rows] == [3, 2, 1], rows
assert [row["step"] for row in rows] == [1, 2, 3]
assert sum(rows[-1]["scores/0"]["values"]) == 5
"""


@pytest.mark.slow
@pytest.mark.parametrize(("name", "script"), [("mlflow", MLFLOW), ("trackio", TRACKIO)])
def test_other_trackers_have_it_too_in_local_stores(name, script, tmp_path):
    """In a process of its own: these packages take long to import and leave much behind."""
    pytest.importorskip(name)
    settings = {"TRACKIO_DIR": str(tmp_path / "trackio"), "OMP_NUM_THREADS": "1"}
    paths = os.pathsep.join([str(SOURCE), str(SOURCE.parent)])
    unset = {k: v for k, v in os.environ.items() if not k.startswith(("MLFLOW", "TRACKIO"))}
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)],
        env=unset | settings | {"PYTHONPATH": paths},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == 0, done.stderr
