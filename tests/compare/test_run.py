"""The driver: order, failures, taking up what a killed one left, one driver to a store, a disk that is full."""

from __future__ import annotations

import multiprocessing
import os

import pytest

from secateur.compare.jobs import jobs_of
from secateur.compare.local import LocalWorkers
from secateur.compare.run import Answer, held, run
from secateur.compare.store import ResultStore
from secateur.errors import ExperimentError

from .experiments import OwnWorkers, pretend, tiny


def test_everything_runs_once_and_in_order(tmp_path):
    workers = OwnWorkers(pretend(tmp_path), free=3)
    summary = run(tiny(seeds=[0, 1]), tmp_path, workers, progress=False)
    assert summary.is_complete
    assert summary.done == summary.ran == len(jobs_of(tiny(seeds=[0, 1])))
    done = [job.digest for job in workers.done]
    assert len(set(done)) == len(done)
    assert all(done.index(need) < done.index(job.digest) for job in workers.done for need in job.needs)
    assert workers.is_closed
    again = OwnWorkers(pretend(tmp_path))
    assert run(tiny(seeds=[0, 1]), tmp_path, again, progress=False).ran == 0
    assert not again.done


def test_what_is_timed_runs_last_and_alone(tmp_path):
    beside = {}

    class Counting(OwnWorkers):
        def submit(self, job):
            super().submit(job)
            beside.update({one.digest: max(beside.get(one.digest, 0), len(self.waiting)) for one in self.waiting})

    workers = Counting(pretend(tmp_path), free=3)
    assert run(tiny(latency=True), tmp_path, workers, progress=False).is_complete
    kinds = [job.kind for job in workers.done]
    assert kinds[-2:] == ["latency"] * 2
    assert "latency" not in kinds[:-2]
    assert {beside[job.digest] for job in workers.done if job.kind == "latency"} == {1}
    assert 3 in beside.values()


def test_a_failure_is_kept_with_its_traceback_and_stops_only_what_needs_it(tmp_path):
    workers = OwnWorkers(pretend(tmp_path, fails=("l1_filter 50% of macs cut",)))
    summary = run(tiny(), tmp_path, workers, progress=False)
    (error,) = summary.failed.values()
    assert "broke" in error
    assert summary.blocked == 2
    assert summary.done == 4  # the dense network, and the random control with its two recoveries
    assert not summary.is_complete
    idle = OwnWorkers(pretend(tmp_path))
    assert run(tiny(), tmp_path, idle, progress=False).ran == 0, "a failure is not tried again unasked"
    assert run(tiny(), tmp_path, OwnWorkers(pretend(tmp_path)), retry_failed=True, progress=False).is_complete


def test_what_was_done_and_not_written_down_is_taken_up(tmp_path):
    first = jobs_of(tiny())[0]
    pretend(tmp_path)(first)
    workers = OwnWorkers(pretend(tmp_path))
    assert run(tiny(), tmp_path, workers, progress=False).is_complete
    assert first.digest not in {job.digest for job in workers.done}


def test_a_worker_that_dies_again_and_again_is_held_to_fail(tmp_path):
    class Dying(OwnWorkers):
        def answers(self, timeout_s):
            job = self.waiting.pop(0)
            self.done.append(job)
            return [Answer(job.digest, is_dead=True)]

    workers = Dying(None)
    summary = run(tiny(), tmp_path, workers, progress=False)
    assert "died" in next(iter(summary.failed.values()))
    assert len(workers.done) == 20


def test_a_full_disk_stops_the_run_and_keeps_what_was_finished(tmp_path):
    class Full(OwnWorkers):
        def answers(self, timeout_s):
            if len(self.done) < 2:
                return super().answers(timeout_s)
            return [Answer(self.waiting.pop(0).digest, "Traceback", "No space left on device", is_full=True)]

    with pytest.raises(ExperimentError, match=r"full.*same command"):
        run(tiny(), tmp_path, Full(pretend(tmp_path)), progress=False)
    with ResultStore(tmp_path) as store:
        assert list(store.statuses().values()) == ["done", "done"]
    assert run(tiny(), tmp_path, OwnWorkers(pretend(tmp_path)), progress=False).is_complete


def hold_until_told(folder, ready, leave):
    with held(folder):
        ready.set()
        leave.wait(60)


def test_a_second_driver_says_who_holds_the_store_or_waits(tmp_path):
    context = multiprocessing.get_context("spawn")
    ready, leave = context.Event(), context.Event()
    other = context.Process(target=hold_until_told, args=(tmp_path, ready, leave))
    other.start()
    assert ready.wait(60)
    with pytest.raises(ExperimentError, match=rf'"process": {other.pid}.*--wait'):
        run(tiny(), tmp_path, OwnWorkers(pretend(tmp_path)), progress=False)
    leave.set()
    assert run(tiny(), tmp_path, OwnWorkers(pretend(tmp_path)), wait=True, progress=False).is_complete
    other.join()


def test_counts_without_sense_are_refused(tmp_path):
    for given in ({"count": 0}, {"threads": 0}):
        with pytest.raises(ExperimentError, match="1 or more"):
            LocalWorkers(tmp_path, **given)


def test_processes_do_real_jobs_and_leave_with_the_driver(tmp_path):
    """Dense, cut, fine-tuned and from scratch, by real workers."""
    experiment = tiny(methods=[{"name": "l1_filter", "repair": ["fold"]}], control=False)
    workers = LocalWorkers(tmp_path, 2, threads=1)
    summary = run(experiment, tmp_path, workers, progress=False)
    assert summary.is_complete, summary.failed
    assert workers.process_ids == []
    with ResultStore(tmp_path) as store:
        rows = {row.recovery: row for row in store.rows(experiment.digest)}
        history = store.detail(rows["finetune"].digest)["history"]
    assert set(rows) == {"dense", "none", "finetune", "scratch_e"}
    assert rows["finetune"].macs == rows["none"].macs < rows["dense"].macs
    assert (rows["dense"].epochs, rows["finetune"].epochs, rows["scratch_e"].epochs) == (2, 1, 3)
    assert rows["none"].removed >= 0.5
    assert rows["none"].verification_error < 1e-9
    assert len(history) == 1
    assert not list(tmp_path.glob("jobs/*/checkpoints")), "checkpoints go when a job is done"
    assert os.path.exists(tmp_path / "jobs" / rows["none"].digest / "plan.json")
