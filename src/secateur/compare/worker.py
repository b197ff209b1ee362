"""A worker process: reads jobs from its standard input, one JSON a line, and answers each with one line.

It ends when its input does, so no worker outlives a driver that was killed, not even in the middle of a job.
"""

from __future__ import annotations

import json
import os
import queue
import sys
import threading
import traceback
from pathlib import Path
from typing import Any


def main() -> None:
    """Work until the input ends: ``python -m secateur.compare.worker STORE THREADS``."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8", buffering=1)
    os.dup2(2, 1)  # whatever else writes to standard output must not spoil the answers
    waiting: queue.Queue[str] = queue.Queue()
    threading.Thread(target=_read, args=(waiting,), daemon=True).start()
    import torch

    from .jobs import Job
    from .work import Place, perform

    torch.set_num_threads(int(sys.argv[2]))
    place = Place(Path(sys.argv[1]))
    _answer(answers, {"ready": os.getpid()})
    while True:
        job = Job.from_json(json.loads(waiting.get()))
        try:
            perform(job, place)
            _answer(answers, {"digest": job.digest})
        except Exception as error:
            trace = "".join(traceback.format_exception(error))
            full = _is_full(error)
            _answer(answers, {"digest": job.digest, "error": trace, "said": str(error), "full": full})


def _read(waiting: queue.Queue[str]) -> None:
    """Pass lines on; leave at once when there will be no more."""
    for line in sys.stdin:
        waiting.put(line)
    os._exit(0)


def _answer(answers: Any, value: dict[str, Any]) -> None:
    answers.write(json.dumps(value) + "\n")
    answers.flush()


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
