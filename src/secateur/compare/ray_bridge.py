"""The process between a driver and a Ray cluster: ``python -m secateur.compare.ray_bridge SETTINGS``.

It reads jobs from the socket on its standard input, one JSON a line, and answers each with one line. It leaves the
cluster when the connection closes; the cluster then ends what it was doing for it.
"""

from __future__ import annotations

import json
import logging
import math
import os
import queue
import shutil
import socket
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from ..errors import first_line
from ..files import flush_files
from .jobs import Job
from .work import LOCK, RESULT, Place, perform, write_json
from .worker import failure

log = logging.getLogger(__name__)
MARK = ".store"  # tells a node whether what it sees under the store's path is the store
PATIENCE_S = 10.0  # to leave a cluster in order
ASK_S = 10.0  # between questions for the cluster's size
TRIES = 3  # to start a local cluster: on a busy machine it is not always ready in the 30 s that Ray gives it
Parcel = dict[str, bytes]  # path in a job's folder -> content
Waiting = queue.Queue[str | None]


def main() -> None:
    """Serve a driver until its connection closes."""
    link = socket.socket(fileno=os.dup(0))
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(2, 1)
    settings = json.loads(sys.argv[1])
    waiting: Waiting = queue.Queue()
    threading.Thread(target=_read, args=(link, waiting), daemon=True).start()
    try:
        Bridge(link, waiting, **settings).serve()
    except Exception as error:
        link.sendall(json.dumps({"lost": f"{type(error).__name__}: {first_line(error)}"}).encode() + b"\n")
        os._exit(1)


def _read(link: socket.socket, waiting: Waiting) -> None:
    for line in link.makefile(encoding="utf-8"):
        if line.endswith("\n"):
            waiting.put(line)
    waiting.put(None)
    threading.Timer(PATIENCE_S, os._exit, (1,)).start()  # should the cluster not let go


class Bridge:
    """One driver's way to a cluster.

    Args:
        link: to the driver.
        waiting: jobs as JSON; None = there will be no more.
        store: the driver's folder.
        address: of the cluster, or "local".
        cpus: for each job.
        is_shared: whether nodes work in the store's folder; None = each looks.
    """

    def __init__(
        self, link: socket.socket, waiting: Waiting, *, store: str, address: str, cpus: int, is_shared: bool | None
    ) -> None:
        self.link, self.waiting = link, waiting
        self.place, self.address, self.cpus = Place(Path(store)), address, cpus
        is_shared = True if is_shared is None and address == "local" else is_shared
        self.how = {"store": store, "mark": mark_of(Path(store)), "is_shared": is_shared, "threads": cpus}
        self.running: dict[Any, Job] = {}
        self.room, self.asked = 0, -math.inf

    def serve(self) -> None:
        """Hand jobs on and answers back until the driver is gone."""
        _knock(self.address)
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        import ray

        self._join(ray)
        task = ray.remote(num_cpus=self.cpus, max_retries=0)(do)
        while True:
            self._tell_room(ray)
            try:
                line = self.waiting.get(timeout=0.05 if self.running else 1.0)
            except queue.Empty:
                pass
            else:
                if line is None:
                    break
                job = Job.from_json(json.loads(line))
                self.running[task.remote(job.to_json(), job.digest, self.how, self._parcels(ray, job))] = job
                continue
            if self.running:
                self._return_answers(ray)
        ray.shutdown()

    def _join(self, ray: Any) -> None:
        quiet = {"log_to_driver": False, "logging_level": logging.ERROR}
        if self.address != "local":
            ray.init(address=self.address, **quiet)
            return
        for left in reversed(range(TRIES)):
            try:
                ray.init(address="local", include_dashboard=False, **quiet)
                return
            except Exception as error:  # Ray raises no narrower one
                ray.shutdown()
                if not left:
                    raise
                log.warning("Ray did not start (%s); trying again", first_line(error))

    def _tell_room(self, ray: Any) -> None:
        if time.monotonic() - self.asked < ASK_S:
            return
        self.asked = time.monotonic()
        sizes = [node["Resources"].get("CPU", 0) for node in ray.nodes() if node["Alive"]]
        room = sum(int(size // self.cpus) for size in sizes)
        if room == 0:
            raise RuntimeError(f"no node has {self.cpus} CPUs, the largest {max(sizes, default=0):g}")
        if room != self.room:
            self.room = room
            self._tell({"room": room})

    def _parcels(self, ray: Any, job: Job) -> dict[str, Any]:
        """Put what a job needs, and what there is of its own, where nodes can get it; those that see the store do not.

        References inside a mapping are not resolved before the task asks for them.
        """
        if self.how["is_shared"]:
            return {}
        folders = {digest: self.place.of(digest) for digest in (*job.needs, job.digest)}
        return {digest: ray.put(packed(folder)) for digest, folder in folders.items() if folder.exists()}

    def _return_answers(self, ray: Any) -> None:
        done, _ = ray.wait(list(self.running), num_returns=1, timeout=0.05)
        for reference in done:
            job = self.running.pop(reference)
            try:
                answer: dict[str, Any] = ray.get(reference)
                if (parcel := answer.pop("parcel", None)) is not None:
                    keep(self.place, job.digest, parcel)
            except ray.exceptions.RayTaskError as error:
                answer = {"digest": job.digest, **failure(error)}
            except ray.exceptions.RayError:
                answer = {"digest": job.digest, "dead": True}  # its process or its node ended
            except OSError as error:
                answer = {"digest": job.digest, **failure(error)}
            self._tell(answer)

    def _tell(self, value: dict[str, Any]) -> None:
        self.link.sendall(json.dumps(value).encode() + b"\n")


def _knock(address: str) -> None:
    """Find out soon whether anything listens at HOST:PORT; Ray itself tries for minutes.

    Raises:
        OSError: nothing does.
    """
    host, colon, port = address.rpartition("://")[2].rpartition(":")
    if colon and port.isdigit():
        socket.create_connection((host.strip("[]"), int(port)), timeout=PATIENCE_S).close()


def do(raw: dict[str, Any], digest: str, how: dict[str, Any], parcels: dict[str, Any]) -> dict[str, Any]:
    """Do a job on a node, in the store where it is there, else in a folder of the node; runs as a Ray task.

    Args:
        raw: the job as JSON.
        digest: of the job, as the driver has it.
        how: `store`, `mark`, `is_shared` and `threads`.
        parcels: digest -> reference to the content of the folder of a job.

    Returns:
        An answer, with the folder's content where it was not done in the store.
    """
    import torch

    job = Job.from_json(raw)
    if job.digest != digest:
        said = f"this node has another version of secateur than the driver: job {digest} is {job.digest} here"
        return {"digest": digest, "error": said, "said": said}
    torch.set_num_threads(how["threads"])
    store, is_shared = Path(how["store"]), how["is_shared"]
    if is_shared is None:
        is_shared = (store / MARK).is_file() and mark_of(store) == how["mark"]
    try:
        if is_shared:
            perform(job, Place(store))
            return {"digest": digest}
        return {"digest": digest, "parcel": _do_away(job, how["mark"], parcels)}
    except Exception as error:
        return {"digest": digest, **failure(error)}


def _do_away(job: Job, mark: str, parcels: Mapping[str, Any]) -> Parcel:
    """Do a job without the store. Its own folder stays on the node until it is done, to go on from."""
    import ray

    own = Path(tempfile.gettempdir()) / f"secateur-{os.getuid()}-{mark}" / job.digest
    with tempfile.TemporaryDirectory(prefix="secateur-") as folder:
        place = Place(Path(folder))
        place.of(job.digest).parent.mkdir()
        for digest in job.needs:
            unpack(ray.get(parcels[digest]), place.of(digest))
        if not own.exists() and job.digest in parcels:
            unpack(ray.get(parcels[job.digest]), own)
        own.mkdir(parents=True, exist_ok=True)
        place.of(job.digest).symlink_to(own)
        perform(job, place)
        parcel = packed(own)
    shutil.rmtree(own)
    return parcel


def mark_of(store: Path) -> str:
    """Return what tells this store from others under the same path on other machines; made where there is none."""
    try:
        return (store / MARK).read_text(encoding="utf-8")
    except FileNotFoundError:
        (store / MARK).write_text(uuid.uuid4().hex, encoding="utf-8")
        return (store / MARK).read_text(encoding="utf-8")


def packed(folder: Path) -> Parcel:
    """Return the content of all files of a folder and of those in it."""
    paths = (path for path in folder.rglob("*") if path.is_file() and path.name != LOCK)
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


def unpack(parcel: Parcel, folder: Path) -> None:
    """Write the files of a parcel.

    Raises:
        ValueError: a path leads out of the folder.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in parcel.items():
        if ".." in PurePosixPath(name).parts or PurePosixPath(name).is_absolute():
            raise ValueError(f"{name!r} leads out of the folder {folder}.")
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)


def keep(place: Place, digest: str, parcel: Parcel) -> None:
    """Write a job's folder that came back into the store, the result last; one that is done already stays."""
    with place.alone(digest) as folder:
        if place.result(digest) is None:
            unpack({name: content for name, content in parcel.items() if name != RESULT}, folder)
            flush_files(folder)
            write_json(folder / RESULT, json.loads(parcel[RESULT]))
        place.tidy(digest)


if __name__ == "__main__":
    from secateur.compare import ray_bridge  # under this name nodes can import what tasks are made of

    ray_bridge.main()
