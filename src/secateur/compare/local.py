"""Workers that are processes of this machine."""

from __future__ import annotations

import json
import os
import selectors
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import ExperimentError
from .jobs import Job
from .run import Answer


@dataclass
class _Worker:
    process: subprocess.Popen[bytes]
    job: Job | None = None
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
        """Of the workers that live."""
        return [worker.process.pid for worker in self._workers]

    def submit(self, job: Job) -> None:
        """Give a job to a free process; start one if there is none."""
        worker = next((w for w in self._workers if w.job is None), None) or self._start()
        worker.job = job
        try:
            assert worker.process.stdin is not None
            worker.process.stdin.write(json.dumps(job.to_json()).encode() + b"\n")
            worker.process.stdin.flush()
        except BrokenPipeError:
            pass  # it died; its end of the output says so, and the job is told as one that a worker died at

    def answers(self, timeout_s: float) -> list[Answer]:
        """Return what came back, waiting for the first at most so long."""
        found: list[Answer] = []
        for key, _ in self._picks.select(timeout_s):
            found += self._read(key.data)
        return found

    def _read(self, worker: _Worker) -> list[Answer]:
        assert worker.process.stdout is not None
        chunk = os.read(worker.process.stdout.fileno(), 1 << 16)
        if not chunk:
            return self._bury(worker)
        *lines, worker.unread = (worker.unread + chunk).split(b"\n")
        found = []
        for line in lines:
            told: dict[str, Any] = json.loads(line)
            if "ready" not in told:
                worker.job = None
                found.append(
                    Answer(told["digest"], told.get("error", ""), told.get("said", ""), bool(told.get("full")))
                )
        return found

    def _bury(self, worker: _Worker) -> list[Answer]:
        """Take a dead process out; its job is to be tried again."""
        assert worker.process.stdout is not None
        self._picks.unregister(worker.process.stdout)
        self._workers.remove(worker)
        _end(worker.process)
        return [] if worker.job is None else [Answer(worker.job.digest, is_dead=True)]

    def _start(self) -> _Worker:
        threads = self.threads or max(1, (os.cpu_count() or 1) // self.count)
        environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
        command = [sys.executable, "-m", "secateur.compare.worker", str(self.folder), str(threads)]
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment)
        worker = _Worker(process)
        self._workers.append(worker)
        self._picks.register(process.stdout, selectors.EVENT_READ, worker)  # type: ignore[arg-type]
        return worker

    def close(self) -> None:
        """Stop every process at once."""
        for worker in self._workers:
            _end(worker.process)
        self._workers.clear()
        self._picks.close()


def _end(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait()
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            try:
                pipe.close()
            except BrokenPipeError:
                pass
