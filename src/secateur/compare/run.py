"""Run an experiment: hand jobs to workers as soon as what they need is done, and write down what comes back.

One driver writes to a store. What a worker finished lies whole in the job's folder before it is told, so a driver that
is killed and started again takes it up without doing it again.
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from ..errors import ExperimentError
from ..train import ClassificationTask
from ..train.progress import ProgressBar
from .jobs import Job, jobs_of
from .shared import network_of, share
from .spec import Experiment
from .store import DONE, FAILED, ResultStore
from .work import MODEL, Place

log = logging.getLogger(__name__)
LOCK = "driver.lock"
MOST_DEATHS = 20  # of workers at one job, before the job is held to be the cause


@dataclass(frozen=True)
class Answer:
    """What came back of a job.

    Attributes:
        digest: of the job.
        error: traceback, if it failed.
        said: the error's own message.
        is_full: whether a full disk was behind it.
        is_dead: whether the worker died at it.
    """

    digest: str
    error: str = ""
    said: str = ""
    is_full: bool = False
    is_dead: bool = False


class Workers(Protocol):
    """What runs jobs: processes of this machine, or a cluster."""

    @property
    def free_count(self) -> int:
        """How many more jobs can be taken right now."""

    def submit(self, job: Job) -> None:
        """Take a job."""

    def answers(self, timeout_s: float) -> list[Answer]:
        """Return what came back, waiting for the first at most so long."""

    def close(self) -> None:
        """Stop all work at once."""


@dataclass(frozen=True)
class Summary:
    """What a run of an experiment came to.

    Attributes:
        experiment: its digest.
        done: jobs with a result, earlier runs' included.
        failed: digest -> the error's message.
        blocked: jobs that need a failed one.
        ran: jobs that this run did.
        seconds: wall time of this run.
    """

    experiment: str
    done: int
    failed: Mapping[str, str]
    blocked: int
    ran: int
    seconds: float

    @property
    def is_complete(self) -> bool:
        """Whether every job has a result."""
        return not self.failed and not self.blocked


def run(
    experiment: Experiment,
    folder: str | os.PathLike[str],
    workers: Workers,
    *,
    retry_failed: bool = False,
    wait: bool = False,
    progress: bool | None = None,
    watch: Callable[[ResultStore], object] | None = None,
) -> Summary:
    """Run what is left of an experiment.

    Args:
        experiment: what to run.
        folder: of the store; made if it is not there.
        workers: what runs jobs; closed at the end.
        retry_failed: try failed jobs again.
        wait: where another driver holds the store, wait for it in place of saying who it is.
        progress: True or False to force the bar; None = where there is a terminal.
        watch: called at the beginning and after each result that was written down. If it fails, a warning says so, it
            is not called again, and the run goes on.

    Raises:
        ExperimentError: another driver holds the store, or results cannot be kept (what was finished is).
    """
    start = time.perf_counter()
    try:
        with held(Path(folder), wait=wait), ResultStore(folder, create=True) as store:
            return _Driver(experiment, store, workers, start, watch).run(retry_failed=retry_failed, visible=progress)
    finally:
        workers.close()


class _Driver:
    """One run."""

    def __init__(
        self,
        experiment: Experiment,
        store: ResultStore,
        workers: Workers,
        start: float,
        watch: Callable[[ResultStore], object] | None,
    ) -> None:
        self.experiment, self.store, self.workers, self.start = experiment, store, workers, start
        self.watch = watch
        self.place = Place(store.folder)
        self.jobs = {job.digest: job for job in jobs_of(experiment)}
        self.task = ClassificationTask()
        self.deaths: dict[str, int] = {}
        self.networks: dict[str, str | None] = {}  # job -> what it trains from scratch
        self.trained: dict[str, Job] = {}  # that -> a job which is done with it
        self.ran = 0

    def run(self, *, retry_failed: bool, visible: bool | None) -> Summary:
        self.store.register(self.experiment, list(self.jobs.values()))
        if retry_failed:
            self.store.forget_failures(list(self.jobs))
        self.status = {d: s for d, s in self.store.statuses().items() if d in self.jobs}
        self._adopt()
        self._find_networks()
        self._show()
        running: set[str] = set()
        with ProgressBar("comparing", len(self.jobs), visible=visible) as bar:
            bar.advance(len(self.status))
            while True:
                bar.advance(self._share(running))
                ready = self._ready(running)
                for job in ready[: self.workers.free_count if ready else 0]:
                    self.workers.submit(job)
                    running.add(job.digest)
                if not running:
                    break
                for answer in self.workers.answers(timeout_s=5.0):
                    running.discard(answer.digest)
                    bar.advance(int(self._take(answer)))
        failed = {d: "" for d, s in self.status.items() if s == FAILED}
        return Summary(
            self.experiment.digest,
            sum(s == DONE for s in self.status.values()),
            {row.digest: row.error for row in self.store.rows(self.experiment.digest) if row.digest in failed},
            len(self.jobs) - len(self.status),
            self.ran,
            time.perf_counter() - self.start,
        )

    def _adopt(self) -> None:
        """Write down what was finished and not yet written when an earlier driver was killed."""
        for digest, job in self.jobs.items():
            if self.status.get(digest) != DONE and (found := self.place.result(digest)) is not None:
                self.store.record(job, found, self.task)
                self.status[digest] = DONE
            if self.status.get(digest) == DONE:
                self.place.tidy(digest)

    def _find_networks(self) -> None:
        """Find out what was trained from scratch before, for any experiment of the store."""
        done = {digest for digest, status in self.store.statuses().items() if status == DONE}
        for one in self.store.experiments():
            try:
                jobs = jobs_of(self.store.experiment(one["digest"]))
            except (KeyError, ValueError):  # another version's, with a method or a setting that is not known here
                log.info("experiment %s of this store is not read", one["digest"])
                continue
            for job in jobs:
                if job.digest in done:
                    self._keep_network(job)

    def _waiting(self, running: set[str]) -> list[Job]:
        """Return jobs that are not done, and need nothing that is not."""
        return [
            job
            for digest, job in self.jobs.items()
            if digest not in self.status
            and digest not in running
            and all(self.status.get(need) == DONE for need in job.needs)
        ]

    def _ready(self, running: set[str]) -> list[Job]:
        """Return jobs that can be handed out.

        What is timed only where nothing else is left, one at a time; of jobs that train one network, the first.
        """
        waiting = self._waiting(running)
        rest = [job for job in waiting if job.kind != "latency"]
        if not rest and not running:
            return waiting[:1]
        busy, ready = {self._network(self.jobs[digest]) for digest in running}, []
        for job in rest:
            network = self._network(job)
            if network is None or network not in busy:
                ready.append(job)
                busy.add(network)
        return ready

    def _share(self, running: set[str]) -> int:
        """Give jobs what another one trained already; return how many."""
        given = [job for job in self._waiting(running) if self._network(job) in self.trained]
        for job in given:
            share(job, self.trained[self._network(job) or ""], self.place)
            self._take(Answer(job.digest))
        return len(given)

    def _network(self, job: Job) -> str | None:
        """Return what a job that is ready or done trains from scratch."""
        if job.digest not in self.networks:
            self.networks[job.digest] = network_of(job, self.place) if job.kind == "recover" else None
        return self.networks[job.digest]

    def _keep_network(self, job: Job) -> None:
        network = self._network(job)
        if network is not None and (self.place.of(job.digest) / MODEL).exists():
            self.trained.setdefault(network, job)

    def _take(self, answer: Answer) -> bool:
        """Write an answer down; False if the job has to run again."""
        job = self.jobs[answer.digest]
        result = self.place.result(answer.digest)
        if result is not None:
            self.store.record(job, result, self.task)
            self.status[answer.digest] = DONE
            self._keep_network(job)
            self.ran += 1
            self._show()
            return True
        if answer.is_full:
            raise ExperimentError(
                f"the disk of {self.store.folder} is full ({answer.said}). What was finished is kept: free some space "
                "and run the same command again."
            )
        if answer.is_dead and self._may_try_again(answer.digest):
            return False
        error = answer.error or f"the worker died {self.deaths.get(answer.digest, 1)} times at this job"
        log.error("%s failed: %s", job, answer.said or error)
        self.store.record_failure(job, error)
        self.status[answer.digest] = FAILED
        self.ran += 1
        return True

    def _show(self) -> None:
        if self.watch is None:
            return
        try:
            self.watch(self.store)
        except Exception as error:  # hours of computing do not hang on who watches
            log.warning(
                "results are no longer passed on (%s: %s). They are kept, and passed on when the same command runs "
                "again.",
                type(error).__name__,
                error,
            )
            self.watch = None

    def _may_try_again(self, digest: str) -> bool:
        self.deaths[digest] = self.deaths.get(digest, 0) + 1
        log.warning("the worker at %s died; it is tried again", self.jobs[digest])
        return self.deaths[digest] < MOST_DEATHS


@contextmanager
def held(folder: Path, *, wait: bool = False) -> Iterator[None]:
    """Hold a store for one driver; the lock goes with the process, however it ends.

    Raises:
        ExperimentError: another process holds it; says which.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = (folder / LOCK).open("a+", encoding="utf-8")
    except OSError as error:
        raise ExperimentError(f"{folder} cannot be written ({error}): name another folder.") from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except OSError as error:
            file.seek(0)
            raise ExperimentError(
                f"{folder} is held by another run ({file.read().strip() or 'it does not say which'}): wait for it "
                "(--wait), stop it, or name another folder."
            ) from error
        file.truncate(0)
        file.write(json.dumps({"process": os.getpid(), "host": os.uname().nodename, "since": time.ctime()}))
        file.flush()
        yield
        file.truncate(0)
