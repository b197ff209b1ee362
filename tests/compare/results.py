"""A store with made-up results, so that what reads one can be tested without training."""

from __future__ import annotations

import json
import random
from dataclasses import replace

from secateur.compare.jobs import jobs_of
from secateur.compare.store import ResultStore
from secateur.methods.sensitivity import GroupCurve, SensitivityCurves
from secateur.train import ClassificationTask

from .experiments import tiny

BEFORE = {"channels": 100, "macs": 747_136, "params": 75_002, "bytes": 300_008}
AFTER = {"channels": 70, "macs": 368_128, "params": 36_726, "bytes": 146_904}
LEVELS = {"dense": 0.95, "finetune": 0.93, "scratch_e": 0.90, "scratch_b": 0.9295}


def small_grid(**changes):
    """Return an experiment of two methods, one of them on single weights, and two seeds."""
    methods = [{"name": "l1_filter"}, {"name": "magnitude", "budgets": [{"remove": 0.5, "of": "weights"}]}]
    recoveries = ["finetune", "scratch_e", "scratch_b"]
    return tiny(**{"methods": methods, "recoveries": recoveries, "seeds": [0, 1, 2], **changes})


def made_up(folder, experiment=None, *, fails=(), leaves=0):
    """Fill a store; return the experiment.

    Args:
        folder: of the store.
        experiment: None = `small_grid()`.
        fails: jobs with such a word in their name are failures.
        leaves: so many jobs at the end are not done.
    """
    experiment = small_grid() if experiment is None else experiment
    jobs = jobs_of(experiment)
    with ResultStore(folder, create=True) as store:
        store.register(experiment, jobs)
        for job in jobs[: len(jobs) - leaves]:
            if any(word in str(job) for word in fails):
                store.record_failure(job, "Traceback (most recent call last):\nRuntimeError: <it> broke")
            else:
                store.record(job, result_of(job), ClassificationTask())
    return experiment


CURVES = SensitivityCurves(
    metric_name="accuracy",
    higher_is_better=True,
    base_metric=0.95,
    base_loss=0.1,
    base_macs=1000,
    base_params=100,
    groups={
        "conv1": GroupCurve(16, (0, 0.5), (0, 8), (0.95, 0.945), (0.1, 0.1), (0, 100), (0, 10)),
        "stages.0.0.conv1": GroupCurve(16, (0, 0.5), (0, 8), (0.95, 0.60), (0.1, 1.0), (0, 200), (0, 20)),
    },
    unremovable={"head": "protected"},
    scores="l1_filter",
    sample_count=143,
)


def curves_of(job):
    """Return how the groups of a network take being cut, as a job's result has it."""
    base = 0.95 if job.model["name"] == "digits_resnet" else 0.96
    return json.loads(replace(CURVES, base_metric=base).to_json())


def times_of(job):
    """Return what timing the cut network of a job against the dense one found, at two batches."""
    speed_up = 2.0 if "l1_filter" in str(job) else 1.0
    found = []
    for batch in (1, 64):
        before = {"median_ms": batch * (1.0 + 0.01 * job.seed), "iqr_ms": 0.1, "threads": 1, "batch": batch}
        before |= {"device": "cpu", "runs": 20}
        after = before | {"median_ms": before["median_ms"] / speed_up}
        found.append({"before": before, "after": after, "speed_up": speed_up, "speed_up_iqr": 0.05})
    return found


def result_of(job):
    """Return a result whose level hangs on the way and the method, and its noise on way and seed."""
    if job.kind in ("latency", "sensitivity"):
        found = {"latency": times_of(job)} if job.kind == "latency" else {"sensitivity": curves_of(job)}
        return {"metric": None, "costs": AFTER, "costs_before": BEFORE, "removed": 0.507, "seconds": 0.5, **found}
    draw = random.Random(job.digest)
    level = LEVELS.get(job.recovery or job.kind, 0.8) + 0.01 * job.seed
    level -= 0.02 * (job.model["name"] != "digits_resnet")
    level -= 0.03 * ("random" in str(job)) + 0.01 * ("random_weights" in str(job))
    epochs = {"dense": 2, "cut": 0}.get(job.kind, 3)
    result = {
        "metric": level + 0.0005 * ((job.seed + list(LEVELS).index(job.recovery or "dense")) % 3 - 1),
        "costs": BEFORE if job.kind == "dense" else AFTER,
        "epochs": epochs,
        "seconds": 1.5,
        "test_count": 10_000,
        "history": [[epoch + 1, 1.0 / (epoch + 1) + 0.1 * draw.random(), 0.1, 0.1] for epoch in range(epochs)],
        "machine": {"python": "3", "torch": "2"},
    }
    if job.kind != "dense":
        result |= {
            "metric_as_cut": 0.3,
            "costs_before": BEFORE,
            "removed": 0.507,
            "widths": {"conv1": [16, 16], "stages.0.0.conv1": [16, 8]},
            "verification_error": None if "weights" in str(job) else 2e-16,
        }
    return result
