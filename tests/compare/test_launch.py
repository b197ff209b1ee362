"""A job that several processes share: the same result as of one, and none of them outlives its worker.

The slow ones start processes that import everything anew. Two processes sum their gradients in another order than one
does, so weights agree to 1e-4 of their size where batches divide evenly and no batch norm takes statistics of half one.
"""

from __future__ import annotations

import json
import os
import signal

import pytest
import torch
from safetensors.torch import load_file

from secateur.compare.jobs import jobs_of
from secateur.compare.launch import ProcessesDied, _outcome
from secateur.compare.local import LocalWorkers
from secateur.compare.run import run
from secateur.compare.store import ResultStore
from secateur.compare.work import MODEL, Place, perform
from secateur.compare.worker import failure
from secateur.errors import ExperimentError

from .experiments import OwnWorkers, tiny
from .quick import batches, quick
from .test_faults import needs_proc, processes, until

EPOCHS, BATCHES = 3, 5
LONG = 40  # epochs, so that a kill comes in time
JOB = jobs_of(tiny(processes=2))[0]


def shared(given, count, epochs=EPOCHS, **changes):
    """Return an experiment on 20 images in batches of 4, without batch norm."""
    experiment = quick(given, norms=False, control=False, processes=count, **changes)
    (model,) = experiment.models
    recipe = {"epochs": epochs, "warmup_epochs": 0, "batch_size": 4}
    return experiment.model_copy(update={"models": (model.model_copy(update={"changes": recipe}),)})


@pytest.mark.slow
@pytest.mark.skipif(not torch.distributed.is_available(), reason="torch was built without torch.distributed")
def test_two_processes_come_to_the_result_of_one_on_the_same_batches(tmp_path):
    found = {}
    for count in (1, 2):
        store = tmp_path / f"store {count}"
        experiment = shared(tmp_path / "given", count)
        with torch.random.fork_rng():
            summary = run(experiment, store, OwnWorkers(lambda job, s=store: perform(job, Place(s))), progress=False)
        assert summary.is_complete, summary.failed
        with ResultStore(store) as results:
            rows = {row.recovery: row for row in results.rows()}
            losses = [[epoch[1] for epoch in results.detail(row.digest).get("history", [])] for row in rows.values()]
        weights = {name: load_file(Place(store).of(row.digest) / MODEL) for name, row in rows.items()}
        found[count] = rows, losses, weights
    (alone, losses, weights), (both, losses_of_two, weights_of_two) = found[1], found[2]
    assert set(both) == {"dense", "none", "finetune"}
    for name, row in both.items():
        assert (row.macs, row.epochs) == (alone[name].macs, alone[name].epochs)
        assert row.metric == alone[name].metric
        for key, weight in weights[name].items():
            torch.testing.assert_close(weights_of_two[name][key], weight, rtol=1e-4, atol=1e-6)
    for one, two in zip(losses, losses_of_two, strict=True):
        assert two == pytest.approx(one, rel=1e-4)
    assert len(batches(tmp_path / "given")) == 3 * (EPOCHS + 2) * BATCHES, "once by one process, once by each of two"


class KilledOnce(LocalWorkers):
    """Kills its only worker, or one of the processes that share its job, after so many batches."""

    victim = "worker"
    killed = 0

    def __post_init__(self):
        super().__post_init__()
        self.given = self.folder.parent / "given"

    def answers(self, timeout_s):
        if not self.killed and len(batches(self.given)) >= 2 * BATCHES + 2:
            ranks = processes("secateur.compare.launched", str(self.folder))
            self.killed = self.process_ids[0] if self.victim == "worker" else max(ranks)
            os.kill(self.killed, signal.SIGKILL)
            until(lambda: not ranks.keys() & processes("secateur.compare.launched").keys())
        return super().answers(0.01)


@needs_proc
@pytest.mark.slow
@pytest.mark.parametrize("victim", ["worker", "one of them"])
def test_processes_die_with_their_worker_and_with_each_other_and_the_job_goes_on(tmp_path, victim):
    experiment, store = shared(tmp_path / "given", 2, LONG, recoveries=["none"]), tmp_path / "store"
    workers = KilledOnce(store, 1, threads=2)
    workers.victim = victim
    assert run(experiment, store, workers, progress=False).is_complete
    assert workers.killed
    with ResultStore(store) as results:
        (dense,) = results.rows(kind="dense")
        assert results.detail(dense.digest)["resumed_from"] >= BATCHES
    trained = len(batches(tmp_path / "given"))
    assert trained <= 2 * (LONG + 1) * BATCHES, "at most the epoch under way is trained again"
    assert not processes("secateur.compare.launched", str(store))
    assert not list(store.glob("jobs/*/.*.partial"))


def said(folder, *lines):
    path = folder / "said"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def test_processes_that_cannot_start_are_told(tmp_path):
    with pytest.raises(ExperimentError, match=r"2 processes could not be started .*ended with 1"):
        _outcome(JOB, tmp_path / "nothing", 1)


def test_processes_that_were_killed_are_tried_again(tmp_path):
    with pytest.raises(ProcessesDied) as told:
        _outcome(JOB, said(tmp_path, {"process": 7}, {"lost": "gloo: connection reset by peer"}), 1)
    assert failure(told.value)["dead"]


def test_an_error_in_one_process_is_that_of_the_job_with_its_traceback(tmp_path):
    with pytest.raises(ExperimentError) as told:
        _outcome(JOB, said(tmp_path, {"process": 7}, failure(OSError(28, "No space left"))), 1)
    answer = failure(told.value)
    assert (answer["full"], answer["dead"]) == (True, False)
    assert "OSError: [Errno 28] No space left" in answer["error"]
    with pytest.raises(ExperimentError, match="too large") as told:
        _outcome(JOB, said(tmp_path, failure(ValueError("too large")), {"process": 7}), 1)
    assert not failure(told.value)["full"]


def test_a_whole_result_counts_and_a_line_that_was_cut_off_does_not(tmp_path):
    whole = {"result": {"metric": 0.5}, "warnings": ["w"]}
    assert _outcome(JOB, said(tmp_path, {"process": 7}, whole), 0) == ({"metric": 0.5}, ["w"])
    path = said(tmp_path, {"process": 7})
    path.write_text(path.read_text() + json.dumps(whole)[:-3])
    with pytest.raises(ProcessesDied):
        _outcome(JOB, path, -9)
