"""Worker processes: one parent imports everything once and forks a worker for each connection it is sent.

A worker reads jobs from its connection, one JSON a line, and answers each with one line. It ends when the connection
does, so no worker outlives a driver that was killed, not even in the middle of a job. Forking makes a worker that died
cheap to replace: nothing is imported again.
"""

from __future__ import annotations

import json
import os
import queue
import signal
import socket
import sys
import threading
import traceback
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from .launch import ProcessesDied


def main() -> None:
    """Fork workers until the socket on standard input closes: ``python -m secateur.compare.worker STORE THREADS``."""
    link = socket.socket(fileno=os.dup(0))
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(2, 1)  # what is printed in a job is a message, and no result of the command
    _import_all()
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the kernel takes dead workers away
    while True:
        data, handles, _, _ = socket.recv_fds(link, 1, 1)
        if not data:
            return
        if os.fork() == 0:
            link.close()
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            work(socket.socket(fileno=handles[0]), Path(sys.argv[1]), int(sys.argv[2]))
        for handle in handles:
            os.close(handle)


def _import_all() -> None:
    """Import what jobs need, so that workers have it; nothing here computes, for threads do not survive a fork."""
    import_module("secateur.compare.work")
    if find_spec("accelerate"):
        import_module("accelerate.data_loader")  # fit imports it on its first call


def work(link: socket.socket, store: Path, threads: int) -> None:
    """Do jobs until the connection closes; never returns."""
    waiting: queue.Queue[str] = queue.Queue()
    threading.Thread(target=_read, args=(link, waiting), daemon=True).start()
    import torch

    from .jobs import Job
    from .work import Place, perform

    torch.set_num_threads(threads)
    place = Place(store)
    _answer(link, {"ready": os.getpid()})
    while True:
        job = Job.from_json(json.loads(waiting.get()))
        try:
            perform(job, place)
            _answer(link, {"digest": job.digest})
        except Exception as error:
            _answer(link, {"digest": job.digest, **failure(error)})


def failure(error: BaseException) -> dict[str, Any]:
    """Return what an answer says of an error."""
    trace = "".join(traceback.format_exception(error))
    return {
        "error": trace,
        "said": str(error),
        "full": _is_full(error),
        "dead": isinstance(error, ProcessesDied),
    }


def _read(link: socket.socket, waiting: queue.Queue[str]) -> None:
    """Pass lines on; leave at once when there will be no more."""
    try:
        for line in link.makefile(encoding="utf-8"):
            if line.endswith("\n"):  # otherwise the driver was killed while it wrote
                waiting.put(line)
    finally:
        os._exit(0)


def _answer(link: socket.socket, value: dict[str, Any]) -> None:
    link.sendall(json.dumps(value).encode() + b"\n")


def _is_full(error: BaseException | None) -> bool:
    """Whether a disk that is full, or a quota, is behind an error."""
    import errno

    while error is not None:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            return True
        error = error.__cause__ or error.__context__
    return False


if __name__ == "__main__":
    main()
