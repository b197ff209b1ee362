"""Do a job by several processes under `accelerate launch`: they share each batch of its training.

On CPUs they speak through gloo. They hold the worker's pipe as their standard input and leave when it closes, so none
outlives a worker, however it ends.
"""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

from ..errors import ExperimentError
from .jobs import Job


class ProcessesDied(ExperimentError):
    """The processes that shared a job were killed; the job can go on from its checkpoint."""


def launched(job: Job, store: Path, folder: Path) -> tuple[dict[str, Any], list[str]]:
    """Do a job by as many processes as it says, and return its result and what was warned of.

    The threads of this process are shared out to them.

    Args:
        job: the job.
        store: folder of the store.
        folder: of the job, held by this process.

    Raises:
        ExperimentError: they could not be started, or the job failed; the note has the traceback.
        ProcessesDied: one of them was killed.
    """
    said = folder / f".launched.{os.getpid()}.partial"
    said.unlink(missing_ok=True)
    threads = max(1, torch.get_num_threads() // job.processes)
    command = [
        *(sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", f"--num_processes={job.processes}"),
        *("--num_machines=1", "--mixed_precision=no", "--dynamo_backend=no", "--main_process_port=0"),
        *("--module", "secateur.compare.launched", str(store), json.dumps(job.to_json()), str(said), str(threads)),
    ]
    settings = {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": str(threads)}  # and so --multi_gpu means gloo
    with subprocess.Popen(command, stdin=subprocess.PIPE, env=os.environ | settings) as process:
        process.wait()
    try:
        return _outcome(job, said, process.returncode)
    finally:
        said.unlink(missing_ok=True)


def _outcome(job: Job, said: Path, code: int) -> tuple[dict[str, Any], list[str]]:
    told = _told(said)
    if not told:
        raise ExperimentError(
            f"{job}: its {job.processes} processes could not be started (accelerate launch ended with {code}); what it "
            "said is above. Leave processes out of the experiment to train in one."
        )
    for one in told:
        if "result" in one:
            return one["result"], one["warnings"]
    for one in told:
        if "error" in one:
            failed = ExperimentError(one["said"])
            failed.add_note(f"in one of {job.processes} processes:\n{one['error']}")
            raise failed from (OSError(errno.ENOSPC, one["said"]) if one["full"] else None)
    raise ProcessesDied(f"{job}: one of its {job.processes} processes ended (accelerate launch ended with {code}).")


def _told(said: Path) -> list[dict[str, Any]]:
    """Return what the processes said, as far as it is whole."""
    try:
        *lines, _ = said.read_text(encoding="utf-8").split("\n")
    except FileNotFoundError:
        return []
    return [json.loads(line) for line in lines]
