"""An experiment as jobs: each is one piece of work, named by the digest of everything that decides its result.

A dense network is trained once for each seed and every method cuts that same one; a cut is made once and every recovery
starts from it. Jobs that two experiments share are the same job and run once.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from ..catalogue import CATALOGUE
from .spec import Experiment, MethodPart, digest_of

VERSION = 1  # of what a job does; a change that alters results raises it
KINDS = ("dense", "cut", "recover", "latency", "sensitivity")


@dataclass(frozen=True)
class Job:
    """One piece of work.

    Attributes:
        kind: "dense" (train the whole network), "cut" (prune it), "recover" (train what is left, or its like anew),
            "latency" (time what is left against the whole; no other job may run beside it) or "sensitivity" (cut one
            group of the whole network at a time).
        model: the model part, as JSON.
        seed: of everything random.
        hold_out: share of the training images that nothing trains on.
        method: the method part, as JSON; None for a dense network.
        budget: the budget part, as JSON; None for a dense network.
        recovery: what follows the cut; "" for the other kinds.
        scratch_cap: of scratch_b.
        needs: digests of the jobs that have to be done before.
        processes: that share its training; 1 for what trains nothing.
    """

    kind: str
    model: Mapping[str, Any]
    seed: int
    hold_out: float
    method: Mapping[str, Any] | None = None
    budget: Mapping[str, Any] | None = None
    recovery: str = ""
    scratch_cap: float | None = None
    needs: tuple[str, ...] = ()
    processes: int = 1
    digest: str = field(init=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "digest", digest_of({"version": VERSION, **self.to_json()}))

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON, readable by `from_json`."""
        names = ("kind", "model", "seed", "hold_out", "method", "budget", "recovery", "scratch_cap")
        shared = {} if self.processes == 1 else {"processes": self.processes}
        return {name: getattr(self, name) for name in names} | {"needs": list(self.needs)} | shared

    @classmethod
    def from_json(cls, raw: Mapping[str, Any]) -> Job:
        """Return the job that `to_json` wrote."""
        return cls(**{**raw, "needs": tuple(raw["needs"])})

    def __str__(self) -> str:
        method = "" if self.method is None else f" {self.method['label'] or self.method['name']}"
        budget = "" if self.budget is None else f" {self.budget['remove']:.0%} of {self.budget['of']}"
        return f"{self.model['name']}{method}{budget} {self.recovery or self.kind} seed {self.seed}"


def jobs_of(experiment: Experiment) -> list[Job]:
    """Return all jobs of an experiment, each after those that it needs: all of a seed before those of the next."""
    found: dict[str, Job] = {}
    for seed in experiment.seeds:
        for model in experiment.models:
            count = experiment.processes if model.weights is None else 1
            dense = Job("dense", _plain(model), seed, experiment.hold_out, processes=count)
            found.setdefault(dense.digest, dense)
            if experiment.sensitivity and seed == experiment.seeds[0]:
                alone = replace(dense, kind="sensitivity", needs=(dense.digest,), processes=1)
                found.setdefault(alone.digest, alone)
            for method in experiment.compared:
                for job in _of_method(experiment, method, dense):
                    found.setdefault(job.digest, job)
    return list(found.values())


def _of_method(experiment: Experiment, method: MethodPart, dense: Job) -> list[Job]:
    jobs = []
    for budget in experiment.budgets_of(method):
        own = {name: value for name, value in _plain(method).items() if name not in ("budgets", "recoveries")}
        given: dict[str, Any] = {"method": own, "budget": _plain(budget)}
        count = experiment.processes if "training" in CATALOGUE[method.name].needs else 1
        cut = Job("cut", dense.model, dense.seed, dense.hold_out, **given, needs=(dense.digest,), processes=count)
        jobs.append(cut)
        if experiment.latency:
            jobs.append(replace(cut, kind="latency", needs=(cut.digest, dense.digest), processes=1))
        for recovery in experiment.recoveries_of(method):
            if recovery != "none":
                jobs.append(_recovery(experiment, cut, dense, recovery))
    return jobs


def _recovery(experiment: Experiment, cut: Job, dense: Job, recovery: str) -> Job:
    cap = experiment.scratch_cap if recovery == "scratch_b" else None
    needs = (cut.digest, dense.digest)
    given = (cut.method, cut.budget, recovery, cap, needs, experiment.processes)
    return Job("recover", cut.model, cut.seed, cut.hold_out, *given)


def is_weight_job(job: Job) -> bool:
    """Whether the job is about single weights."""
    return job.method is not None and CATALOGUE[job.method["name"]].removes == "weights"


def _plain(part: Any) -> dict[str, Any]:
    found: dict[str, Any] = part.model_dump(mode="json")
    return found
