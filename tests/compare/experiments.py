"""A grid that runs in seconds, and workers that run in the test's own process."""

from __future__ import annotations

from typing import Any

from secateur.compare.jobs import Job
from secateur.compare.run import Answer
from secateur.compare.spec import made
from secateur.compare.work import Place, write_json

COSTS = {"channels": 1, "macs": 10, "params": 5, "bytes": 20}
TINY: dict[str, Any] = {
    "name": "tiny",
    "models": [
        {
            "name": "digits_resnet",
            "data": "digits",
            "recipe": "digits",
            "changes": {"epochs": 2, "warmup_epochs": 0, "batch_size": 256},
            "finetune_epochs": 1,
        }
    ],
    "methods": [{"name": "l1_filter"}],
    "budgets": [{"remove": 0.5, "of": "macs"}],
    "recoveries": ["finetune", "scratch_e"],
    "seeds": [0],
}


def tiny(**changes):
    """Return a small experiment on the embedded digits."""
    return made({**TINY, **changes})


def pretend(folder, fails=()):
    """Return what leaves a made-up result in a job's folder, in place of doing it."""
    place = Place(folder)

    def perform(job):
        if any(word in str(job) for word in fails):
            raise RuntimeError(f"{job} broke")
        target = place.of(job.digest)
        target.mkdir(parents=True, exist_ok=True)
        write_json(target / "result.json", {"metric": 0.5, "costs": COSTS, "seconds": 0.0, "test_count": 10})

    return perform


class OwnWorkers:
    """Does one job at a time, here, by a function; what the function raises is an answer."""

    def __init__(self, perform, free=1):
        self.perform, self.free = perform, free
        self.waiting: list[Job] = []
        self.done: list[Job] = []
        self.is_closed = False

    @property
    def free_count(self):
        return self.free - len(self.waiting)

    def submit(self, job):
        self.waiting.append(job)

    def answers(self, timeout_s):
        job = self.waiting.pop(0)
        self.done.append(job)
        try:
            self.perform(job)
        except Exception as error:
            return [Answer(job.digest, error=f"Traceback: {error}", said=str(error))]
        return [Answer(job.digest)]

    def close(self):
        self.is_closed = True
