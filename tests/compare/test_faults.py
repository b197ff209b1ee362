"""Whatever is killed when: the same command goes on, nothing finished runs twice, and the results are the same."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import signal
import time
from pathlib import Path

import pytest
import torch

from secateur.compare.jobs import jobs_of
from secateur.compare.local import LocalWorkers
from secateur.compare.run import run
from secateur.compare.store import ResultStore
from secateur.compare.work import RESULT, Place, perform
from secateur.errors import ExperimentError

from .experiments import OwnWorkers
from .quick import batches, quick

EPOCH = 3  # batches
PATIENCE_S = 600.0
# who trained, how long and where; of jobs that share one training, the first to get there does it
NOT_COMPARED = ("seconds", "resumed_from", "machine", "history", "shared_with")
EACH_KIND = ["finetune", "scratch_e", "weight_rewind"]
needs_proc = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="finds processes in /proc")


def grid(given):
    return quick(given, recoveries=EACH_KIND, seeds=[0, 1, 2])


def drive(given, store):
    run(grid(given), store, LocalWorkers(store, 2, threads=1), progress=False)


def parent_of(process_id):
    """Return the parent of a living process; None if there is none, or it only waits to be taken away."""
    try:
        state, parent = Path(f"/proc/{process_id}/stat").read_text().rpartition(")")[2].split()[:2]
    except OSError:
        return None
    return None if state == "Z" else int(parent)


def processes(*words):
    """Return living processes whose command has these words -> their parents."""
    found = {}
    for place in Path("/proc").glob("[0-9]*"):
        try:
            command = (place / "cmdline").read_bytes().decode().split("\0")
        except OSError:
            continue
        if set(words) <= set(command) and (parent := parent_of(place.name)) is not None:
            found[int(place.name)] = parent
    return found


def until(claim):
    """Wait until something is so."""
    start, event = time.monotonic(), multiprocessing.Event()
    while not claim():
        assert time.monotonic() - start < PATIENCE_S, "waited in vain"
        event.wait(0.01)


class Runs:
    """Drivers of one store, one after the other, and what was seen of them."""

    def __init__(self, given, store):
        self.given, self.store = given, store
        self.context = multiprocessing.get_context("forkserver")
        self.context.set_forkserver_preload(["secateur.compare.local", "scipy.stats"])
        self.finished = {}
        self.start()

    def start(self):
        self.driver = self.context.Process(target=drive, args=(self.given, self.store))
        self.driver.start()

    def look(self):
        """Check that no result was written anew."""
        for path in self.store.glob(f"jobs/*/{RESULT}"):
            seen = path.stat()
            mark = (seen.st_ino, seen.st_mtime_ns)
            assert self.finished.setdefault(path.parent.name, mark) == mark, "something finished ran again"

    def wait_for_batches(self, count):
        """Return whether there were so many before the driver was through."""

        def is_time():
            self.look()
            return len(batches(self.given)) >= count or not self.driver.is_alive()

        until(is_time)
        return self.driver.is_alive()

    def workers(self):
        """Return the parent of workers, if it lives, and the workers."""
        found = processes("secateur.compare.worker", str(self.store))
        parents = [one for one, parent in found.items() if parent == self.driver.pid]
        return parents, [one for one in found if one not in parents]

    def kill(self, victim):
        """Kill driver, parent of the workers, or a worker; return how many workers die of it."""
        until(lambda: self.workers()[victim == "worker"])
        parents, workers = self.workers()
        if victim == "driver":
            self.driver.kill()
            self.driver.join()
            until(lambda: self.workers() == ([], []))
            self.start()
            return len(workers)
        os.kill(max(workers) if victim == "worker" else parents[0], signal.SIGKILL)
        return 1 if victim == "worker" else len(workers)


@needs_proc
def test_kills_at_random_moments_change_nothing(tmp_path):
    given, store, calm = tmp_path / "given", tmp_path / "store", tmp_path / "calm"
    jobs = jobs_of(grid(given))
    assert len(jobs) >= 20
    with torch.random.fork_rng():
        run(grid(given), calm, OwnWorkers(lambda job: perform(job, Place(calm))), progress=False)
    needed = len(batches(given))

    chance = random.Random(0)
    victims = ["driver"] * 3 + ["parent"] + ["worker"] * 8
    chance.shuffle(victims)
    runs, lost = Runs(given, store), 0
    for victim in victims:
        assert runs.wait_for_batches(len(batches(given)) + chance.randint(1, 8)), "through before all kills"
        runs.driver.join(chance.uniform(0, 0.02))
        lost += runs.kill(victim)
    runs.driver.join()
    assert runs.driver.exitcode == 0
    runs.look()

    with ResultStore(store) as found, ResultStore(calm) as wanted:
        assert sorted(row.digest for row in found.rows()) == sorted(job.digest for job in jobs)
        assert set(found.statuses().values()) == {"done"}
        for job in jobs:
            assert_equal(Place(store), Place(calm), job.digest)
            assert seconds_aside(found.detail(job.digest)) == seconds_aside(wanted.detail(job.digest))
    again = len(batches(given)) - 2 * needed
    assert 0 < again <= EPOCH * lost, "at most the epoch under way is trained again"
    assert not list(store.glob("jobs/*/checkpoints"))
    assert not list(store.glob("jobs/*/.*.partial"))


def seconds_aside(detail):
    history = [epoch[:3] for epoch in detail.get("history", [])]
    return {key: value for key, value in detail.items() if key not in NOT_COMPARED} | {"history": history}


def assert_equal(one, other, digest):
    first, second = (place.result(digest) for place in (one, other))
    assert {k: v for k, v in first.items() if k not in NOT_COMPARED} == {
        k: v for k, v in second.items() if k not in NOT_COMPARED
    }
    files = {path.name for path in one.of(digest).iterdir()} - {RESULT}
    assert files == {path.name for path in other.of(digest).iterdir()} - {RESULT}
    for name in files:
        assert (one.of(digest) / name).read_bytes() == (other.of(digest) / name).read_bytes(), name


class KilledAt(LocalWorkers):
    """Kills its only worker when so many batches are trained."""

    def __init__(self, folder, given, moments):
        super().__init__(folder, 1, threads=1)
        self.given, self.moments = given, list(moments)

    def answers(self, timeout_s):
        if self.moments and len(batches(self.given)) >= self.moments[0]:
            self.moments.pop(0)
            os.kill(self.process_ids[0], signal.SIGKILL)
        return super().answers(0.01)


def test_half_trained_networks_and_methods_that_train_go_on_where_they_were(tmp_path):
    """Ten epochs of the dense network and ten of the method, each killed in its eighth."""
    slimming = {"name": "network_slimming", "settings": {"recipe": {"epochs": 10, "warmup_epochs": 0}}}
    given, store = tmp_path / "given", tmp_path / "store"
    experiment = quick(given, methods=[slimming], control=False, recoveries=["none"])
    experiment = experiment.model_copy(
        update={"models": (experiment.models[0].model_copy(update={"changes": {"epochs": 10, "batch_size": 8}}),)}
    )
    eighth = 7 * EPOCH + 1
    workers = KilledAt(store, given, [eighth, 10 * EPOCH + EPOCH + eighth])
    assert run(experiment, store, workers, progress=False).is_complete
    assert not workers.moments
    trained = batches(given)
    assert 20 * EPOCH < len(trained) <= 20 * EPOCH + 2 * EPOCH
    assert len(set(trained)) == 3, "two processes were killed"
    dense = jobs_of(experiment)[0]
    with ResultStore(store) as found:
        assert found.detail(dense.digest)["resumed_from"] >= 6 * EPOCH


def test_workers_that_cannot_start_stop_the_run_with_a_word(tmp_path, monkeypatch):
    (tmp_path / "torch.py").write_text("raise ImportError('this torch is broken')")
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
    with pytest.raises(ExperimentError, match="before they were ready"):
        run(quick(tmp_path / "given"), tmp_path, LocalWorkers(tmp_path, 1, threads=1), progress=False)


def test_a_result_that_is_half_written_is_none(tmp_path):
    place = Place(tmp_path)
    place.of("abc").mkdir(parents=True)
    (place.of("abc") / RESULT).write_text(json.dumps({"metric": 0.5})[:8])
    assert place.result("abc") is None
