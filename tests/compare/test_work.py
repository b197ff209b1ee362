"""What jobs find out, on networks of four filters."""

from __future__ import annotations

import json

import torch

from secateur.compare.jobs import jobs_of
from secateur.compare.run import run
from secateur.compare.store import ResultStore
from secateur.compare.work import Place, perform
from secateur.methods.sensitivity import SensitivityCurves

from .experiments import OwnWorkers
from .quick import quick


def test_latency_is_of_the_cut_network_and_the_dense_one_at_two_batches(tmp_path, monkeypatch):
    monkeypatch.setattr("secateur.compare.work.TIMED_S", 0.01)
    weights = {"name": "magnitude", "budgets": [{"remove": 0.5, "of": "weights"}]}
    experiment = quick(
        tmp_path, methods=[{"name": "l1_filter"}, weights], control=False, latency=True, recoveries=["none"]
    )
    with torch.random.fork_rng():
        summary = run(experiment, tmp_path, OwnWorkers(lambda job: perform(job, Place(tmp_path))), progress=False)
    assert summary.is_complete, summary.failed
    assert summary.done == len(jobs_of(experiment)) == 5
    with ResultStore(tmp_path) as store:
        rows = store.rows(kind="latency")
        assert [row.label for row in rows] == ["l1_filter", "magnitude"]
        for row in rows:
            assert row.metric is None
            assert row.macs < row.macs_before
            assert 0 < row.latency_1_ms
            assert 0 < row.latency_64_before_ms
            for timed, batch in zip(store.detail(row.digest)["latency"], (1, 64), strict=True):
                assert timed["before"]["batch"] == timed["after"]["batch"] == batch
                assert timed["after"]["threads"] == torch.get_num_threads()
                assert timed["after"]["median_ms"] == getattr(row, f"latency_{batch}_ms")


def test_sensitivity_is_of_the_dense_network_of_the_first_seed_on_held_out_images(tmp_path):
    experiment = quick(tmp_path, control=False, sensitivity=True, recoveries=["none"], seeds=[3, 4])
    with torch.random.fork_rng():
        summary = run(experiment, tmp_path, OwnWorkers(lambda job: perform(job, Place(tmp_path))), progress=False)
    assert summary.is_complete, summary.failed
    with ResultStore(tmp_path) as store:
        (row,) = store.rows(kind="sensitivity")
        curves = SensitivityCurves.from_json(json.dumps(store.detail(row.digest)["sensitivity"]))
        (dense,) = store.rows(kind="dense", seed=3)
    assert (row.seed, row.metric, row.macs) == (3, None, dense.macs)
    assert curves.sample_count == 6, "a quarter of the training images"
    assert list(curves.groups) == ["0", "3"]
    assert curves.groups["0"].removed == (0, 0, 1, 1, 2, 2, 3, 3)
