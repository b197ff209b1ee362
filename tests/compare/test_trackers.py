"""Finished results are runs of a tracker, with curve, figures and what was asked for."""

from __future__ import annotations

import os
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest

from secateur.compare.jobs import jobs_of
from secateur.compare.run import run
from secateur.compare.store import ResultStore
from secateur.compare.trackers import show
from secateur.train import ClassificationTask, Tracking

from .experiments import OwnWorkers, pretend, tiny

RESULT = {
    "metric": 0.9,
    "costs": {"channels": 1, "macs": 10, "params": 5, "bytes": 20},
    "history": [[0, 2.0, 0.1, 0.5], [1, 1.0, 0.05, 0.5]],
    "seconds": 1.5,
}


@contextmanager
def filled(folder):
    with ResultStore(Path(folder) / "store", create=True) as found:
        jobs = jobs_of(tiny())
        found.register(tiny(), jobs)
        found.record(jobs[0], RESULT, ClassificationTask())
        found.record(jobs[1], RESULT | {"metric_as_cut": 0.4}, ClassificationTask())
        found.record_failure(jobs[2], "it broke")
        yield found


@pytest.fixture
def store(tmp_path):
    with filled(tmp_path) as found:
        yield found


@pytest.mark.filterwarnings("ignore")  # what TensorBoard's dependencies warn about
def test_each_result_is_a_run_of_its_own_in_tensorboard(store, tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    assert show(store, Tracking("tensorboard", tmp_path / "shown", "tiny")) == 2
    folders = {path.name.split("-seed")[0]: path for path in (tmp_path / "shown" / "tiny").iterdir()}
    assert set(folders) == {"digits_resnet-dense", "digits_resnet-l1_filter-0.5-of-macs-none"}
    found = EventAccumulator(str(folders["digits_resnet-l1_filter-0.5-of-macs-none"]))
    found.Reload()
    assert [(event.step, event.value) for event in found.Scalars("train/loss")] == [(1, 2.0), (2, 1.0)]
    (accuracy,) = found.Scalars("test/accuracy")
    assert (accuracy.step, accuracy.value) == (2, pytest.approx(0.9))
    assert found.Scalars("test/accuracy_as_cut")[0].value == pytest.approx(0.4)
    assert found.Scalars("cost/macs")[0].value == 10


@pytest.mark.filterwarnings("ignore")
def test_a_result_is_shown_once_in_each_place(store, tmp_path):
    pytest.importorskip("tensorboard")
    tracking = Tracking("tensorboard", tmp_path / "shown", "tiny")
    assert [show(store, tracking), show(store, tracking)] == [2, 0]
    store.record(jobs_of(tiny())[2], RESULT, ClassificationTask())
    assert show(store, tracking) == 1
    assert len(list((tmp_path / "shown" / "tiny").iterdir())) == 3
    assert show(store, Tracking("tensorboard", tmp_path / "elsewhere", "tiny")) == 3


@pytest.mark.filterwarnings("ignore")
def test_results_go_to_a_tracker_as_they_come_and_those_of_earlier_runs_too(tmp_path):
    pytest.importorskip("tensorboard")
    tracking, seen = Tracking("tensorboard", tmp_path / "shown", "tiny"), []

    def watch(store):
        seen.append(show(store, tracking))

    half = tiny(recoveries=["finetune"], control=False)
    run(half, tmp_path, OwnWorkers(pretend(tmp_path)), progress=False)
    run(tiny(control=False), tmp_path, OwnWorkers(pretend(tmp_path)), progress=False, watch=watch)
    assert seen == [3, 1], "dense, cut and fine-tuned were there; from scratch came"
    run(tiny(control=False), tmp_path, OwnWorkers(pretend(tmp_path)), progress=False, watch=watch)
    assert seen[2:] == [0]


def test_a_tracker_that_fails_stops_neither_the_run_nor_says_nothing(tmp_path, caplog):
    calls = []

    def watch(store):
        calls.append(len(store.statuses()))
        if len(calls) == 2:
            raise ConnectionError("the server is gone")

    summary = run(tiny(), tmp_path, OwnWorkers(pretend(tmp_path)), progress=False, watch=watch)
    assert summary.is_complete
    assert calls == [0, 1]
    assert "no longer passed on (ConnectionError: the server is gone)" in caplog.text


@pytest.mark.filterwarnings("ignore")
def test_results_of_an_experiment_are_runs_of_one_experiment_of_mlflow(store, tmp_path):
    mlflow = pytest.importorskip("mlflow")
    show(store, Tracking("mlflow", tmp_path / "shown", "tiny"))
    client = mlflow.tracking.MlflowClient(f"sqlite:///{tmp_path / 'shown' / 'mlflow.db'}")
    runs = client.search_runs([client.get_experiment_by_name("tiny").experiment_id])
    assert sorted(run.data.params["recovery"] for run in runs) == ["dense", "none"]
    assert {run.data.metrics["test/accuracy"] for run in runs} == {0.9}


TRACKIO = """
import sys
from tests.compare.test_trackers import filled, show, Tracking
with filled(sys.argv[1]) as store:
    assert show(store, Tracking("trackio", sys.argv[1] + "/shown", "tiny")) == 2
from trackio.sqlite_storage import SQLiteStorage
names = SQLiteStorage.get_runs("tiny")
assert len(names) == 2, names
last = {name.split("-seed")[0]: SQLiteStorage.get_logs("tiny", name)[-1] for name in names}
cut = last["digits_resnet-l1_filter-0.5-of-macs-none"]
assert (cut["step"], cut["test/accuracy"], cut["test/accuracy_as_cut"], cut["cost/macs"]) == (2, 0.9, 0.4, 10), cut
"""


@pytest.mark.slow
def test_trackio_has_them_too(tmp_path):
    """In a process of its own, which trackio leaves much behind in."""
    pytest.importorskip("trackio")
    root = Path(__file__).parents[2]
    unset = {key: value for key, value in os.environ.items() if not key.startswith("TRACKIO")}
    paths = os.pathsep.join([str(root / "src"), str(root)])
    done = subprocess.run(
        [sys.executable, "-c", TRACKIO, str(tmp_path)],
        env=unset | {"TRACKIO_DIR": str(tmp_path / "trackio"), "OMP_NUM_THREADS": "1", "PYTHONPATH": paths},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == 0, done.stderr
