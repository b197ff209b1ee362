"""The store keeps what was found, refuses what it cannot read, and stays quick when it is large."""

from __future__ import annotations

import csv
import json
import sqlite3
import time

import pytest

from secateur.compare.jobs import jobs_of
from secateur.compare.store import COLUMNS, FILE, ResultStore, export
from secateur.errors import ExperimentError
from secateur.train import ClassificationTask

from .experiments import tiny

COSTS = {"channels": 1, "macs": 10, "params": 5, "bytes": 20}
RESULT = {"metric": 0.9, "costs": COSTS, "seconds": 1.5, "history": [[0, 2.0, 0.1, 0.5]], "test_count": 359}


@pytest.fixture
def filled(tmp_path):
    experiment = tiny()
    with ResultStore(tmp_path, create=True) as store:
        jobs = jobs_of(experiment)
        store.register(experiment, jobs)
        store.record(jobs[0], RESULT, ClassificationTask())
        store.record_failure(jobs[1], "Traceback: it broke")
        yield store, experiment, jobs


def test_what_was_recorded_is_there_for_another_reader(filled, tmp_path):
    _, experiment, jobs = filled
    with ResultStore(tmp_path) as reader:
        assert reader.statuses() == {jobs[0].digest: "done", jobs[1].digest: "failed"}
        (dense,) = reader.rows(status="done")
        assert (dense.kind, dense.recovery, dense.metric, dense.macs, dense.seed) == ("dense", "dense", 0.9, 10, 0)
        assert reader.detail(dense.digest)["history"] == RESULT["history"]
        (broken,) = reader.rows(experiment.digest, status="failed")
        assert broken.error == "Traceback: it broke"
        (known,) = reader.experiments()
        assert (known["name"], known["jobs"], known["done"], known["failed"]) == ("tiny", len(jobs), 1, 1)
        assert reader.experiment(experiment.digest) == experiment


def test_a_failure_gives_way_to_a_result_and_can_be_forgotten(filled):
    store, _, jobs = filled
    store.forget_failures([job.digest for job in jobs])
    assert list(store.statuses().values()) == ["done"]
    store.record_failure(jobs[1], "again")
    store.record(jobs[1], RESULT, ClassificationTask())
    assert set(store.statuses().values()) == {"done"}


def test_results_are_exported_whole(filled, tmp_path):
    store, _, _ = filled
    rows = store.rows()
    export(rows, tmp_path / "out.csv")
    with (tmp_path / "out.csv").open() as file:
        assert [line["status"] for line in csv.DictReader(file)] == ["done", "failed"]
    export(rows, tmp_path / "out.json")
    assert json.loads((tmp_path / "out.json").read_text())[0]["metric"] == 0.9
    parquet = pytest.importorskip("pyarrow.parquet")
    export(rows, tmp_path / "out.parquet")
    assert parquet.read_table(tmp_path / "out.parquet").column("metric").to_pylist() == [0.9, None]
    with pytest.raises(ExperimentError, match=r"\.xls"):
        export(rows, tmp_path / "out.xls")
    with pytest.raises(ExperimentError, match="another place"):
        export(rows, tmp_path / "no" / "folder" / "out.csv")


def test_a_store_of_a_newer_version_is_left_as_it_is(filled, tmp_path):
    store, _, _ = filled
    store.close()
    with sqlite3.connect(tmp_path / FILE) as link:
        link.execute("PRAGMA user_version = 99")
    before = (tmp_path / FILE).read_bytes()
    with pytest.raises(ExperimentError, match=r"schema 99.*upgrade"):
        ResultStore(tmp_path)
    assert (tmp_path / FILE).read_bytes() == before


def test_a_store_of_an_older_version_is_brought_up_to_date(filled, tmp_path):
    store, _, jobs = filled
    store.close()
    with sqlite3.connect(tmp_path / FILE) as link:
        for name in COLUMNS:
            if name.startswith("latency"):
                link.execute(f"ALTER TABLE results DROP COLUMN {name}")
        link.execute("PRAGMA user_version = 1")
    with ResultStore(tmp_path) as again:
        (dense,) = again.rows(status="done")
        assert (dense.metric, dense.latency_1_ms) == (0.9, None)
        timed = [{"after": {"batch": 64, "median_ms": 1.5}, "before": {"batch": 64, "median_ms": 3.0}}]
        again.record(jobs[1], RESULT | {"latency": timed}, ClassificationTask())
        (row,) = again.rows(digest=jobs[1].digest)
        assert (row.latency_64_ms, row.latency_64_before_ms, row.latency_1_ms) == (1.5, 3.0, None)
        assert again.detail(row.digest)["latency"] == timed


def test_what_is_no_store_is_refused(tmp_path):
    with pytest.raises(ExperimentError, match="holds no results"):
        ResultStore(tmp_path / "nothing")
    assert not (tmp_path / "nothing").exists()
    (tmp_path / FILE).write_bytes(b"this is no database, though it is long enough to be taken for one" * 20)
    with pytest.raises(ExperimentError, match="cannot be opened"):
        ResultStore(tmp_path)


def test_unknown_columns_and_experiments_are_named(filled):
    store, _, _ = filled
    with pytest.raises(ExperimentError, match="colour"):
        store.rows(colour="red")
    with pytest.raises(ExperimentError, match="abc"):
        store.experiment("abc")


def test_rows_can_be_of_several_kinds_and_of_one_experiment_and_not_too_many(filled):
    store, experiment, jobs = filled
    store.record(jobs[1], RESULT | {"seconds": 0.5}, ClassificationTask())
    store.record(jobs[2], RESULT, ClassificationTask())
    assert [row.kind for row in store.rows(experiment.digest, kind=("dense", "cut"))] == ["dense", "cut"]
    assert [row.kind for row in store.rows(experiment.digest, limit=1)] == ["dense"]
    assert store.rows("another") == []
    assert store.tuples(experiment.digest, columns=("kind", "seed"), kind="dense") == [("dense", 0)]
    told = {"count": 3, "seconds": 3.5, "seed": 0, "metric_name": "accuracy", "higher_is_better": 1}
    assert store.totals(experiment.digest) == told
    assert store.totals("another")["count"] == 0


def test_a_hundred_thousand_results_open_at_once(filled, tmp_path):
    store, _, _ = filled
    (names, first) = ("digest, kind, model, data, recovery, seed, status, metric", store.rows(status="done")[0])
    with store._link:
        store._link.executemany(
            f"INSERT INTO results ({names}) VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
            ((f"{i:016x}", "recover", first.model, first.data, "finetune", i, "done", 0.5) for i in range(100_000)),
        )
    start = time.perf_counter()
    with ResultStore(tmp_path) as reader:
        assert len(reader.statuses()) == 100_002
    assert time.perf_counter() - start < 10, "a guard against a scan per row; the benchmark has the figure"
