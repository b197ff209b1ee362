"""A Ray cluster gives the same results as this machine, and one that goes away costs nothing that was finished."""

from __future__ import annotations

import os
import signal
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from secateur.compare.jobs import jobs_of
from secateur.compare.ray_bridge import keep, packed, unpack
from secateur.compare.ray_workers import RayWorkers
from secateur.compare.run import run
from secateur.compare.store import ResultStore
from secateur.compare.work import RESULT, Place, perform, write_json
from secateur.errors import ExperimentError, MissingExtra

from .experiments import OwnWorkers
from .quick import batches, quick
from .test_faults import assert_equal, needs_proc, parent_of
from .test_launch import BATCHES, EPOCHS, shared

needs_ray = pytest.mark.skipif(find_spec("ray") is None, reason="Ray is not installed")


def here(folder):
    return OwnWorkers(lambda job: perform(job, Place(folder)))


@needs_ray
def test_jobs_that_travel_come_back_whole(tmp_path):
    experiment = quick(tmp_path / "given", control=False)
    calm, store = tmp_path / "calm", tmp_path / "store"
    with torch.random.fork_rng():
        run(experiment, calm, here(calm), progress=False)
    summary = run(experiment, store, RayWorkers(store, "local", is_shared=False), progress=False)
    assert summary.is_complete, summary.failed
    assert summary.done == summary.ran == 3
    for job in jobs_of(experiment):
        assert_equal(Place(store), Place(calm), job.digest)


@needs_ray
@pytest.mark.slow
@pytest.mark.skipif(not torch.distributed.is_available(), reason="torch was built without torch.distributed")
def test_a_job_of_several_processes_runs_on_a_cluster_too(tmp_path):
    experiment = shared(tmp_path / "given", 2)
    calm, store = tmp_path / "calm", tmp_path / "store"
    with torch.random.fork_rng():
        run(experiment, calm, here(calm), progress=False)
    workers = RayWorkers(store, "local", cpus_per_job=2, is_shared=False)
    summary = run(experiment, store, workers, progress=False)
    assert summary.is_complete, summary.failed
    assert summary.done == summary.ran == 3
    assert len(batches(tmp_path / "given")) == 4 * (EPOCHS + 2) * BATCHES, "by each of two, here and there"
    for job in jobs_of(experiment):
        assert_equal(Place(store), Place(calm), job.digest)


def is_raylet(place):
    try:
        return (place / "cmdline").read_bytes().split(b"\0")[0].endswith(b"raylet")
    except OSError:
        return False


class LosesItsCluster(RayWorkers):
    """Kills the local cluster's own processes when the first job is done."""

    def answers(self, timeout_s):
        found = super().answers(timeout_s)
        if found:
            for place in Path("/proc").glob("[0-9]*"):
                if is_raylet(place) and parent_of(place.name) == self._bridge.pid:
                    os.kill(int(place.name), signal.SIGKILL)
        return found


@needs_ray
@needs_proc
def test_a_cluster_that_goes_away_is_told_and_the_same_command_goes_on(tmp_path):
    given, store = tmp_path / "given", tmp_path / "store"
    experiment = quick(given, control=False)
    with pytest.raises(ExperimentError, match=r"went away.*same command"):
        run(experiment, store, LosesItsCluster(store), progress=False)
    with ResultStore(store) as found:
        assert [row.kind for row in found.rows()] == ["dense"]
    trained = len(batches(given))
    with torch.random.fork_rng():
        summary = run(experiment, store, here(store), progress=False)
    assert summary.is_complete
    assert summary.ran == 2
    assert len(batches(given)) - trained <= 6, "two epochs of fine-tuning; the dense network is not trained again"


@needs_ray
def test_a_cluster_that_is_not_there_is_named(tmp_path):
    with pytest.raises(ExperimentError, match=r"127\.0\.0\.1:1 cannot be used"):
        run(
            quick(tmp_path / "given"), tmp_path / "store", RayWorkers(tmp_path / "store", "127.0.0.1:1"), progress=False
        )


def test_without_ray_the_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "ray", None)
    with pytest.raises(MissingExtra, match=r"secateur\[ray\]"):
        RayWorkers(tmp_path)


@needs_ray
def test_no_cpus_are_refused(tmp_path):
    with pytest.raises(ExperimentError, match="1 or more"):
        RayWorkers(tmp_path, cpus_per_job=0)


def test_a_folder_that_travelled_is_the_same_and_a_result_in_the_store_stays(tmp_path):
    place, away = Place(tmp_path / "store"), tmp_path / "away"
    (away / "checkpoints").mkdir(parents=True)
    (away / "plan.json").write_bytes(b"{}")
    (away / "checkpoints" / "state.pt").write_bytes(b"\0\1")
    write_json(away / RESULT, {"metric": 0.5})
    unpack(packed(away), tmp_path / "again")
    assert packed(tmp_path / "again") == packed(away)
    keep(place, "abc", packed(away))
    assert place.result("abc") == {"metric": 0.5}
    assert {path.name for path in place.of("abc").iterdir()} == {"plan.json", RESULT, ".lock"}
    write_json(away / RESULT, {"metric": 0.6})
    keep(place, "abc", packed(away))
    assert place.result("abc") == {"metric": 0.5}


@pytest.mark.parametrize("name", ["../there", "/etc/there", "a/../../there"])
def test_a_path_that_leads_out_of_the_folder_is_refused(tmp_path, name):
    with pytest.raises(ValueError, match="leads out"):
        unpack({name: b""}, tmp_path / "in")
