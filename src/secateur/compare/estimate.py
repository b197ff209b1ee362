"""What an experiment will take before it runs: multiply-adds from recipes and graphs, time from what was measured."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ..catalogue import CATALOGUE
from ..graph.groups import ChannelGraph, trace
from ..threads import torch_threads
from ..train import Recipe
from ..train.randomness import same_randomness_after
from .jobs import Job, jobs_of
from .spec import Experiment, MethodPart, ModelPart
from .store import DONE, FILE, ResultStore, Row
from .work import TRIED, Place, images_of, recipe_of, source_of

PASSES = 3  # forward, and backward to the inputs and to the weights
MEASURED_S = 0.5
TO_DO = "to do"


@dataclass(frozen=True)
class Estimate:
    """What one job will take.

    Attributes:
        job: the job.
        status: "done", "failed" or "to do".
        train_macs: multiply-adds of its training, all images of all epochs, forward and backward.
        is_exact: False where they hang on a cut that is not made yet, or on a method that does not say how it trains.
        seconds: that it took, or will take.
    """

    job: Job
    status: str
    train_macs: int
    is_exact: bool
    seconds: float


def estimates(
    experiment: Experiment, folder: str | Path | None = None, *, threads: int | None = None
) -> list[Estimate]:
    """Return what each job of an experiment takes.

    A network that is not cut yet counts as if its budget were of multiply-adds. Time follows from jobs in the store;
    where it has none of a model, a few training steps of the dense network are measured.

    Args:
        experiment: what to run.
        folder: of the store, if there is one already.
        threads: CPU threads of a job; None = torch's own number.

    Raises:
        SecateurError: a model or its data cannot be had.
    """
    known = _Known(folder, threads)
    graphs: dict[str, ChannelGraph] = {}
    told = []
    for job in jobs_of(experiment):
        graph = _dense(job, graphs)
        macs, is_exact = _train_macs(job, graph.costs().macs, known.costs)
        row = known.rows.get(job.digest)
        took = row.seconds if row is not None and row.status == DONE else None
        seconds = known.seconds(job, macs, graph) if took is None else took
        told.append(Estimate(job, TO_DO if row is None else row.status, macs, is_exact, seconds))
    return told


class _Known:
    """What the store says of jobs that are done, and what was measured in its place."""

    def __init__(self, folder: str | Path | None, threads: int | None) -> None:
        self._threads = threads
        self.rows: dict[str, Row] = {}
        self.place = None if folder is None else Place(Path(folder))
        if folder is not None and (Path(folder) / FILE).exists():
            with ResultStore(folder) as store:
                self.rows = {row.digest: row for row in store.rows()}
        self._speeds: dict[tuple[str, str], float] = {}
        self._cuts: dict[str | None, list[float]] = defaultdict(list)
        for row in self.rows.values():
            if row.status == DONE and row.kind == "cut":
                self._cuts[row.label].append(row.seconds)

    def costs(self, digest: str) -> Mapping[str, Any] | None:
        """Return the result of a job, if it is done."""
        return None if self.place is None else self.place.result(digest)

    def seconds(self, job: Job, train_macs: int, dense: ChannelGraph) -> float:
        method = job.method or {}
        if job.kind == "sensitivity":
            _, held_out = images_of(job)
            return (len(dense.groups) * len(TRIED) + 1) * held_out * dense.costs().macs * self._speed(job)
        if job.kind == "cut" and (took := self._cuts.get(method.get("label") or method.get("name"))):
            return sum(took) / len(took)
        return train_macs * self._speed(job)

    def _speed(self, job: Job) -> float:
        """Seconds of one multiply-add of training."""
        key = (str(job.model["name"]), str(job.model["data"]))
        if key not in self._speeds:
            with torch_threads(self._threads):
                self._speeds[key] = self._found(key, images_of(job)[0]) or _measured(job)
        return self._speeds[key]

    def _found(self, key: tuple[str, str], images: int) -> float | None:
        own = [r for r in self.rows.values() if (r.model, r.data) == key and r.status == DONE and r.epochs]
        macs = sum(training_macs(row.epochs, images, row.macs) for row in own)
        return sum(row.seconds for row in own) / macs if macs else None


def _dense(job: Job, known: dict[str, ChannelGraph]) -> ChannelGraph:
    part = ModelPart.model_validate(job.model)
    if part.name + part.data not in known:
        source = source_of(job)
        model = source.model().eval()
        known[part.name + part.data] = trace(model, source.example(model))
    return known[part.name + part.data]


def training_macs(epochs: int, images: int, macs: int) -> int:
    """Return the multiply-adds of a training, forward and backward.

    Args:
        epochs: how many.
        images: in each.
        macs: of one image, forward.
    """
    return PASSES * epochs * images * macs


def _train_macs(job: Job, dense: int, result: Callable[[str], Mapping[str, Any] | None]) -> tuple[int, bool]:
    """Return the multiply-adds of a job's training, and whether they are exact."""
    images = images_of(job)[0]
    part = ModelPart.model_validate(job.model)
    if job.kind in ("latency", "sensitivity"):
        return 0, True
    if job.kind == "dense":
        return training_macs(0 if part.weights else part.base_recipe(job.seed).epochs, images, dense), True
    if job.kind == "cut":
        made = MethodPart.model_validate(job.method)
        recipe = getattr(CATALOGUE[made.name].make(**made.settings), "recipe", None)
        trains = "training" in CATALOGUE[made.name].needs
        epochs = _epochs(recipe) if isinstance(recipe, Recipe) else 0
        return training_macs(epochs, images, dense), isinstance(recipe, Recipe) or not trains
    found = result(job.needs[0])
    assert job.budget is not None
    left = round(dense * (1 - job.budget["remove"])) if found is None else int(found["costs"]["macs"])
    epochs = _epochs(recipe_of(job, macs_before=dense, macs_after=max(left, 1)))
    return training_macs(epochs, images, left), found is not None


def _epochs(recipe: Recipe) -> int:
    return recipe.epochs - recipe.first_epoch


def _measured(job: Job) -> float:
    """Seconds of one multiply-add, of a few training steps of the dense network on noise."""
    part = ModelPart.model_validate(job.model)
    source = source_of(job)
    model = source.model().eval()
    size = part.batch_size
    batch, macs = source.example(model, size), PASSES * size * trace(model, source.example(model)).costs().macs
    with same_randomness_after(torch.device("cpu")):
        model.train()
        _step(model, batch)
        steps, start = 0, time.perf_counter()
        while time.perf_counter() - start < MEASURED_S:
            _step(model, batch)
            steps += 1
    return (time.perf_counter() - start) / (steps * macs) if macs else 0.0


def _step(model: torch.nn.Module, batch: torch.Tensor) -> None:
    model.zero_grad()
    model(batch).square().mean().backward()


def totals(told: Sequence[Estimate], *, jobs: int = 1) -> dict[str, Any]:
    """Return how much is left to do: jobs, multiply-adds, seconds of one worker and of `jobs` workers."""
    left = [one for one in told if one.status != DONE]
    seconds = sum(one.seconds for one in left)
    return {
        "jobs": len(told),
        "left": len(left),
        "train_macs": sum(one.train_macs for one in left),
        "is_exact": all(one.is_exact for one in left),
        "seconds": seconds,
        "wall_seconds": seconds / max(1, min(jobs, len(left))),
    }
