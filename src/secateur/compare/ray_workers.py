"""Workers on a Ray cluster: results come back to the one driver, so that its store is whole.

A process of its own, the bridge, speaks with the cluster: Ray ends a process that lost its cluster, and the driver has
to outlive that to say so. A node that sees the store works in it. To any other node, what a job needs travels through
Ray's object store, and the job's folder travels back.
"""

from __future__ import annotations

import json
import selectors
import socket
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import ExperimentError
from ..extras import require
from .jobs import Job
from .run import Answer

LOCAL = "local"
PARTING_S = 15.0  # to leave the cluster in order, before the bridge is killed


@dataclass
class RayWorkers:
    """As many jobs at a time as the cluster has room for.

    Every node needs this package in the same version; a model of your own (``FILE.py:FUNCTION``) and data in files have
    to be under the same path everywhere. A half-trained network goes on from its checkpoint where the store is on a
    disk that nodes share; elsewhere, where the same node gets the job again.

    Attributes:
        folder: of the store.
        address: of a running cluster, as `ray.init` takes it; "local" or None = start one on this machine.
        cpus_per_job: CPUs that Ray sets aside for a job, and threads that it computes with.
        is_shared: whether nodes work in the store's folder; None = each node looks whether it is there.

    Raises:
        ExperimentError: a count makes no sense.
        MissingExtra: Ray is not installed.
    """

    folder: Path
    address: str | None = None
    cpus_per_job: int = 1
    is_shared: bool | None = None
    _room: int = 0
    _jobs: dict[str, Job] = field(default_factory=dict)
    _bridge: subprocess.Popen[bytes] | None = None
    _unread: bytes = b""

    def __post_init__(self) -> None:
        if self.cpus_per_job < 1:
            raise ExperimentError(f"cpus_per_job={self.cpus_per_job}: expected 1 or more.")
        require("ray", extra="ray", purpose="running jobs on a Ray cluster")
        self._link: socket.socket | None = None
        self._picks = selectors.DefaultSelector()

    @property
    def free_count(self) -> int:
        """How many more jobs can be taken right now; joins the cluster, or starts one, when first asked.

        Raises:
            ExperimentError: there is no such cluster, or it went away.
        """
        if self._bridge is None:
            self._start()
        while not self._room:
            self._receive(timeout_s=1.0)
        return max(0, self._room - len(self._jobs))

    def submit(self, job: Job) -> None:
        """Take a job."""
        self._jobs[job.digest] = job
        assert self._link is not None
        try:
            self._link.sendall(json.dumps(job.to_json()).encode() + b"\n")
        except OSError:
            pass  # the bridge is gone, which the next answer tells

    def answers(self, timeout_s: float) -> list[Answer]:
        """Return what came back, waiting for the first at most so long.

        Raises:
            ExperimentError: the cluster went away.
        """
        found = self._receive(timeout_s)
        for answer in found:
            self._jobs.pop(answer.digest, None)
        return found

    def _receive(self, timeout_s: float) -> list[Answer]:
        assert self._link is not None
        if not self._picks.select(timeout_s):
            return []
        try:
            chunk = self._link.recv(1 << 20)
        except OSError:
            chunk = b""
        if not chunk:
            raise self._lost("the connection to it broke off")
        *lines, self._unread = (self._unread + chunk).split(b"\n")
        return [answer for line in lines for answer in self._told(json.loads(line))]

    def _told(self, told: dict[str, Any]) -> list[Answer]:
        if "lost" in told:
            raise self._lost(told["lost"])
        if "room" in told:
            self._room = max(1, told["room"])
            return []
        error, said = told.get("error", ""), told.get("said", "")
        return [Answer(told["digest"], error, said, bool(told.get("full")), bool(told.get("dead")))]

    def _lost(self, said: str) -> ExperimentError:
        name = "the local Ray cluster" if self.address in (None, LOCAL) else f"the Ray cluster at {self.address}"
        verb = "went away" if self._room else "cannot be used"
        return ExperimentError(
            f"{name} {verb} ({said}). What was finished is kept: run the same command again once it is there."
        )

    def _start(self) -> None:
        settings = {
            "store": str(self.folder.resolve()),
            "address": self.address or LOCAL,
            "cpus": self.cpus_per_job,
            "is_shared": self.is_shared,
        }
        self._link, other = socket.socketpair()
        self._picks.register(self._link, selectors.EVENT_READ)
        command = [sys.executable, "-m", "secateur.compare.ray_bridge", json.dumps(settings)]
        with other:
            self._bridge = subprocess.Popen(command, stdin=other.fileno(), process_group=0)

    def close(self) -> None:
        """Leave the cluster; its tasks end with that, and a local one ends itself."""
        if self._link is not None:
            self._link.shutdown(socket.SHUT_WR)
        if self._bridge is not None:
            try:
                self._bridge.wait(PARTING_S)
            except subprocess.TimeoutExpired:
                self._bridge.kill()
                self._bridge.wait()
        if self._link is not None:
            self._link.close()
        self._picks.close()
        self._bridge = self._link = None
        self._jobs.clear()
