"""Workers that are processes of this machine."""

from __future__ import annotations

import json
import os
import selectors
import signal
import socket
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import ExperimentError
from ..threads import cores_shared
from .jobs import Job
from .run import Answer

MOST_UNREADY = 5  # workers in a row that end before they are ready, before no more are started


@dataclass
class _Worker:
    link: socket.socket
    job: Job | None = None
    process_id: int | None = None  # None = not ready yet
    unread: bytes = b""


@dataclass
class LocalWorkers:
    """As many processes as asked for; one that dies is replaced.

    Attributes:
        folder: of the store.
        count: of processes.
        threads: that each computes with; None = the machine's cores shared out.

    Raises:
        ExperimentError: a count makes no sense.
    """

    folder: Path
    count: int = 1
    threads: int | None = None
    _workers: list[_Worker] = field(default_factory=list)
    _parent: subprocess.Popen[bytes] | None = None
    _requests: socket.socket | None = None
    _unready: int = 0

    def __post_init__(self) -> None:
        if self.count < 1 or (self.threads is not None and self.threads < 1):
            raise ExperimentError(f"jobs={self.count}, threads={self.threads}: expected 1 or more.")
        self._picks = selectors.DefaultSelector()

    @property
    def free_count(self) -> int:
        """How many more jobs can be taken right now."""
        return self.count - sum(worker.job is not None for worker in self._workers)

    @property
    def process_ids(self) -> list[int]:
        """Of the workers that are ready or at work."""
        return [worker.process_id for worker in self._workers if worker.process_id is not None]

    def submit(self, job: Job) -> None:
        """Give a job to a free process; start one if there is none.

        Raises:
            ExperimentError: several workers in a row ended before they were ready.
        """
        worker = next((w for w in self._workers if w.job is None), None) or self._start()
        worker.job = job
        try:
            worker.link.sendall(json.dumps(job.to_json()).encode() + b"\n")
        except OSError:
            pass  # it died; its end of the connection says so, and the job is told as one that a worker died at

    def answers(self, timeout_s: float) -> list[Answer]:
        """Return what came back, waiting for the first at most so long."""
        found: list[Answer] = []
        for key, _ in self._picks.select(timeout_s):
            found += self._read(key.data)
        return found

    def _read(self, worker: _Worker) -> list[Answer]:
        try:
            chunk = worker.link.recv(1 << 16)
        except OSError:
            chunk = b""
        if not chunk:
            return self._bury(worker)
        *lines, worker.unread = (worker.unread + chunk).split(b"\n")
        found = []
        for line in lines:
            told: dict[str, Any] = json.loads(line)
            if "ready" in told:
                worker.process_id, self._unready = told["ready"], 0
            else:
                worker.job = None
                words = told.get("error", ""), told.get("said", "")
                found.append(Answer(told["digest"], *words, bool(told.get("full")), bool(told.get("dead"))))
        return found

    def _bury(self, worker: _Worker) -> list[Answer]:
        """Take a dead process out; its job is to be tried again."""
        self._picks.unregister(worker.link)
        self._workers.remove(worker)
        worker.link.close()
        self._unready += worker.process_id is None
        return [] if worker.job is None else [Answer(worker.job.digest, is_dead=True)]

    def _start(self) -> _Worker:
        if self._unready >= MOST_UNREADY:
            raise ExperimentError(
                f"{self._unready} worker processes in a row ended before they were ready; what they said is above. "
                "What was finished is kept: run the same command again once they can start."
            )
        own, other = socket.socketpair()
        with other:
            self._send(other)
        worker = _Worker(own)
        self._workers.append(worker)
        self._picks.register(own, selectors.EVENT_READ, worker)
        return worker

    def _send(self, end: socket.socket) -> None:
        """Have a worker forked at this end of a connection, by a parent that is started where there is none."""
        for _ in range(2):
            if self._requests is None:
                self._start_parent()
            try:
                assert self._requests is not None
                socket.send_fds(self._requests, [b"+"], [end.fileno()])
                return
            except OSError:
                self._end_parent()  # it is dead

    def _start_parent(self) -> None:
        threads = self.threads or cores_shared(self.count)
        environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
        command = [sys.executable, "-m", "secateur.compare.worker", str(self.folder), str(threads)]
        self._requests, other = socket.socketpair()
        with other:  # a process group of its own, so that one signal ends all of it, and Ctrl-C goes to the driver only
            self._parent = subprocess.Popen(command, stdin=other.fileno(), env=environment, process_group=0)

    def _end_parent(self) -> None:
        """Kill the parent and every worker of it."""
        if self._requests is not None:
            self._requests.close()
        if self._parent is not None:
            os.killpg(self._parent.pid, signal.SIGKILL)
            self._parent.wait()
        self._parent = self._requests = None

    def close(self) -> None:
        """Stop every process at once."""
        self._end_parent()
        for worker in self._workers:
            worker.link.close()
        self._workers.clear()
        self._picks.close()
