"""One of the processes that share a job: ``python -m secateur.compare.launched STORE JOB SAID THREADS``.

Each does the whole job, they meet in training, and the first one writes the files. Into SAID goes a line when the first
is there, and one with what came out.
"""

from __future__ import annotations

import fcntl
import json
import os
import sys
import threading
from pathlib import Path
from typing import Any

LOCK = ".launched.lock"


def main() -> None:
    """Do this process's share of the job."""
    threading.Thread(target=_leave_with_the_worker, daemon=True).start()
    import torch

    from .jobs import Job
    from .work import Place, do
    from .worker import failure

    store, raw, said = Path(sys.argv[1]), json.loads(sys.argv[2]), Path(sys.argv[3])
    torch.set_num_threads(int(sys.argv[4]))
    job, place, is_main = Job.from_json(raw), Place(store), os.environ["RANK"] == "0"
    with (place.of(job.digest) / LOCK).open("a") as lock:
        if is_main:
            fcntl.flock(lock, fcntl.LOCK_EX)  # the processes of a worker that was killed may take a moment to end
            _say(said, {"process": os.getpid()})
        try:
            result, warned = do(job, place, place.of(job.digest), is_main=is_main)
        except Exception as error:
            _say(said, {"lost": str(error)} if _is_of_another(error) else failure(error))
            os._exit(1)  # the launcher ends the others
        if is_main:
            _say(said, {"result": result, "warnings": warned})
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def _is_of_another(error: Exception) -> bool:
    """Whether an error only tells that another process is gone; gloo raises no narrower one."""
    import torch

    return isinstance(error, torch.distributed.DistError) or "gloo" in str(error)


def _say(said: Path, value: Any) -> None:
    """Add a line, in one call, so that lines of several processes do not mix."""
    with said.open("ab", buffering=0) as file:
        file.write(json.dumps(value).encode() + b"\n")


def _leave_with_the_worker() -> None:
    while os.read(0, 1):
        pass
    os._exit(1)


if __name__ == "__main__":
    main()
