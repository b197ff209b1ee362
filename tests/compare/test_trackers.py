"""Finished results are runs of a tracker, with curve, figures and what was asked for."""

from __future__ import annotations

import pytest

from secateur.compare.jobs import jobs_of
from secateur.compare.store import ResultStore
from secateur.compare.trackers import show
from secateur.train import ClassificationTask, Tracking

from .experiments import tiny

RESULT = {
    "metric": 0.9,
    "costs": {"channels": 1, "macs": 10, "params": 5, "bytes": 20},
    "history": [[0, 2.0, 0.1, 0.5], [1, 1.0, 0.05, 0.5]],
    "seconds": 1.5,
}


@pytest.fixture
def store(tmp_path):
    with ResultStore(tmp_path / "store", create=True) as found:
        jobs = jobs_of(tiny())
        found.register(tiny(), jobs)
        found.record(jobs[0], RESULT, ClassificationTask())
        found.record(jobs[1], RESULT | {"metric_as_cut": 0.4}, ClassificationTask())
        found.record_failure(jobs[2], "it broke")
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
def test_results_of_an_experiment_are_runs_of_one_experiment_of_mlflow(store, tmp_path):
    mlflow = pytest.importorskip("mlflow")
    show(store, Tracking("mlflow", tmp_path / "shown", "tiny"))
    client = mlflow.tracking.MlflowClient(f"sqlite:///{tmp_path / 'shown' / 'mlflow.db'}")
    runs = client.search_runs([client.get_experiment_by_name("tiny").experiment_id])
    assert sorted(run.data.params["recovery"] for run in runs) == ["dense", "none"]
    assert {run.data.metrics["test/accuracy"] for run in runs} == {0.9}
