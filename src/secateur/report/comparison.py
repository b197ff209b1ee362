"""From a store of results to one answer: gathered once, then a page, a card or JSON.

Nothing here computes a result or chooses among them: every figure is of the last epoch, on the test images.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from importlib.metadata import version
from typing import Any

from ..compare.analysis import MEASURED, SCRATCH, WORDS, Cell, Difference, Outcome, comparisons, outcomes_of, sentence
from ..compare.jobs import Job
from ..compare.spec import Experiment, to_toml
from ..compare.store import DONE, FAILED, ResultStore, Row
from ..compare.timings import Timing, timings
from ..methods.sensitivity import SensitivityCurves

AGAINST = ("scratch_e", "scratch_b", "random", "dense")
MOST_CURVES = 100  # training runs that are drawn, and cuts whose widths are shown
EPOCH = ("epoch", "loss", "lr", "seconds")  # what a training curve has of each
VERDICTS = {
    "better": "better",
    "as good": "as good within 0.3 points",
    "worse": "worse",
    "open": "not to be told apart",
}


@dataclass(frozen=True)
class Findings:
    """What one experiment came to.

    Attributes:
        experiment: what was run.
        digest: of it.
        folder: of the store.
        outcomes: what each way reached.
        differences: the pairs that answer the question.
        failures: rows of jobs that failed.
        job_count: of all jobs.
        done_count: of those with a result.
        metric_name: what was measured on the test images.
        higher_is_better: whether more of it is better.
        details: digest -> training curve, widths and machine, of the first seed, as far as they are shown.
        shown: the rows of these, with the row of each.
        seconds: of all jobs together.
        timings: cell right after a cut, or of a dense network -> batch -> how long it takes, where it was measured.
        sensitivity: (model, data) -> how the groups of the dense network take being cut, where it was measured.
    """

    experiment: Experiment
    digest: str
    folder: str
    outcomes: Sequence[Outcome]
    differences: Sequence[Difference]
    failures: Sequence[Row]
    job_count: int
    done_count: int
    metric_name: str
    higher_is_better: bool
    details: Mapping[str, Mapping[str, Any]]
    shown: Sequence[Row]
    seconds: float
    timings: Mapping[Cell, Mapping[int, Timing]] = field(default_factory=dict)
    sensitivity: Mapping[tuple[str, str], SensitivityCurves] = field(default_factory=dict)

    def timings_of(self, cell: Cell) -> Mapping[int, Timing]:
        """Return batch -> how long a way's network takes; it has the shape that the cut gave it."""
        if not self.timings:
            return {}
        return self.timings.get(cell if cell.label is None else replace(cell, recovery="none"), {})

    @cached_property
    def timed_batches(self) -> list[int]:
        """The batches with which anything was timed."""
        return sorted({batch for found in self.timings.values() for batch in found})

    @cached_property
    def by_cell(self) -> dict[Cell, Outcome]:
        """What each way reached, by way."""
        return {outcome.cell: outcome for outcome in self.outcomes}

    @property
    def toml(self) -> str:
        """The experiment as a file that `secateur compare` takes."""
        return to_toml(self.experiment)

    @property
    def command(self) -> str:
        """What runs it again, or goes on with it."""
        return f"secateur compare experiment.toml --out {self.folder}"

    @cached_property
    def verdict(self) -> list[str]:
        """The answer in a few sentences."""
        return _verdict(self)


def gather(folder: str | os.PathLike[str], experiment: str | None = None) -> Findings:
    """Read the results of one experiment.

    Args:
        folder: of the store.
        experiment: its name or digest; None = the newest.

    Raises:
        ExperimentError: there is no store, or no such experiment in it.
    """
    with ResultStore(folder) as store:
        digest = store.named(experiment)
        found = store.experiment(digest)
        reached = outcomes_of(store.tuples(digest, columns=MEASURED, status=DONE))
        totals = store.totals(digest)
        failures = store.rows(digest, status=FAILED)
        shown = _shown(store, digest, totals["seed"])
        details = store.details([row.digest for row in shown])
        timed = store.rows(digest, status=DONE, kind="latency")
        times = timings(timed, store.details([row.digest for row in timed]))
        curves = _sensitivity(store, store.rows(digest, status=DONE, kind="sensitivity"))
        job_count = store.job_count(digest)
    better = totals["higher_is_better"] != 0
    return Findings(
        found,
        digest,
        str(folder),
        reached,
        comparisons(reached, higher_is_better=better),
        failures,
        job_count,
        totals["count"],
        totals["metric_name"] or "accuracy",
        better,
        details,
        shown,
        totals["seconds"] or 0.0,
        times,
        curves,
    )


def _sensitivity(store: ResultStore, rows: Sequence[Row]) -> dict[tuple[str, str], SensitivityCurves]:
    details = store.details([row.digest for row in rows])
    return {
        (row.model, row.data): SensitivityCurves.from_json(json.dumps(details[row.digest]["sensitivity"]))
        for row in rows
        if "sensitivity" in details.get(row.digest, {})
    }


def _shown(store: ResultStore, experiment: str, seed: int | None) -> list[Row]:
    """The rows whose curves and widths are shown: of the first seed, and not more than a page can hold."""
    return [
        row
        for kinds in (("cut",), ("dense", "recover"))
        for row in store.rows(experiment, limit=MOST_CURVES, status=DONE, seed=seed, kind=kinds)
    ]


def rival_of(gap: Difference) -> str:
    """Return what a way is held against: one of `AGAINST`."""
    return gap.other.recovery if gap.other.recovery in (*SCRATCH, "dense") else "random"


def _verdict(findings: Findings) -> list[str]:
    said = []
    seeds = len(findings.experiment.seeds)
    own = [gap for gap in findings.differences if not gap.one.is_control]
    for recovery in dict.fromkeys(gap.one.recovery for gap in own):
        for against in AGAINST:
            gaps = [gap for gap in own if gap.one.recovery == recovery and rival_of(gap) == against]
            if gaps:
                said.append(_counted(recovery, against, gaps))
    if seeds == 1 and said:
        said.append("One seed says nothing of chance: no difference can be told from it.")
    if findings.failures or findings.done_count < findings.job_count:
        left = findings.job_count - findings.done_count - len(findings.failures)
        said.append(
            f"This is not all: {findings.done_count} of {findings.job_count} jobs are done, "
            f"{len(findings.failures)} failed and {left} are to do."
        )
    return said or ["Nothing can be compared yet: no network was cut and trained on."]


def _counted(recovery: str, against: str, gaps: Sequence[Difference]) -> str:
    rival = "channels or weights drawn at random, trained alike" if against == "random" else WORDS[against]
    head = f"Pruned and {WORDS[recovery]}, against {rival}"
    if len(gaps) == 1:
        return f"{head}: {_single(gaps[0])}."
    parts = [f"{words} in {count}" for word, words in VERDICTS.items() if (count := _count(gaps, word))]
    if single := [100 * gap.mean for gap in gaps if gap.verdict == "one seed"]:
        parts.append(f"{min(single):+.2f} to {max(single):+.2f} points of one seed in {len(single)}")
    return f"{head}: {', '.join(parts)} of {len(gaps)} cases."


def _count(gaps: Sequence[Difference], verdict: str) -> int:
    return sum(gap.verdict == verdict for gap in gaps)


def _single(gap: Difference) -> str:
    points = f"{100 * gap.mean:+.2f} points"
    if gap.verdict == "one seed":
        return f"{points} of one seed"
    return f"{VERDICTS[gap.verdict]} ({points}, 95% interval {100 * gap.low:+.2f} to {100 * gap.high:+.2f})"


def values_of(findings: Findings) -> dict[str, Any]:
    """Return everything as plain values that JSON has; what is not finite is None."""
    found: dict[str, Any] = _finite(
        {
            "format": 1,
            "experiment": findings.experiment.model_dump(mode="json"),
            "digest": findings.digest,
            "command": findings.command,
            "verdict": findings.verdict,
            "metric": findings.metric_name,
            "higher_is_better": findings.higher_is_better,
            "jobs": {
                "all": findings.job_count,
                "done": findings.done_count,
                "failed": [{"job": name_of(row), "error": row.error} for row in findings.failures],
            },
            "seconds": findings.seconds,
            "outcomes": [_outcome(one) for one in findings.outcomes],
            "differences": [
                asdict(gap) | {"against": rival_of(gap), "verdict": gap.verdict, "sentence": sentence(gap)}
                for gap in findings.differences
            ],
            "widths": [
                {"job": name_of(row), "widths": findings.details.get(row.digest, {}).get("widths", {})}
                for row in findings.shown
                if row.kind == "cut"
            ],
            "training": [
                {"job": name_of(row), "epochs": [dict(zip(EPOCH, epoch, strict=True)) for epoch in history]}
                for row, history in histories(findings)
            ],
            "latency": [
                asdict(cell) | asdict(timing) for cell, timed in findings.timings.items() for timing in timed.values()
            ],
            "sensitivity": [
                {"model": model, "data": data, "curves": json.loads(curves.to_json())}
                for (model, data), curves in findings.sensitivity.items()
            ],
            "machines": machines_of(findings),
            "facts": facts_of(findings),
        }
    )
    return found


def histories(findings: Findings) -> list[tuple[Row, Sequence[Sequence[float]]]]:
    """Return the training curves that are shown: of the first seed, for each epoch what `EPOCH` names."""
    return [
        (row, history) for row in findings.shown if (history := findings.details.get(row.digest, {}).get("history"))
    ]


def facts_of(findings: Findings) -> dict[str, str]:
    """Return how the results came about: command, experiment, seeds, machine, versions."""
    experiment = findings.experiment
    return {
        "command": findings.command,
        "experiment": f"{experiment.name}, digest {findings.digest}",
        "jobs": f"{findings.done_count} of {findings.job_count} done, {len(findings.failures)} failed",
        "seeds": ", ".join(str(seed) for seed in experiment.seeds),
        "held out": f"{experiment.hold_out:.0%} of the training images, for every choice",
        "computing": f"{findings.seconds:.0f} s, all jobs together; a network that several share counts for each",
        "machine": "; ".join(machines_of(findings)) or "not known",
        "written": f"{time.strftime('%Y-%m-%d %H:%M')}, by secateur {version('secateur')}",
    }


def _outcome(one: Outcome) -> dict[str, Any]:
    values = {str(seed): value for seed, value in one.values.items()}
    return asdict(one.cell) | asdict(one) | {"values": values, "mean": one.mean, "std": one.std, "cell": None}


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items() if not (key == "cell" and item is None)}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def name_of(row: Row) -> str:
    """Return what a job is called, as in `str(Job)`."""
    part = {"name": row.label, "label": row.label} if row.label else None
    budget = None if row.remove is None else {"remove": row.remove, "of": row.of_what}
    recovery = row.recovery if row.kind == "recover" else ""
    return str(Job(row.kind, {"name": row.model}, row.seed, 0.0, part, budget, recovery))


def machines_of(findings: Findings) -> list[str]:
    """Return where the shown jobs ran, each once."""
    told = [detail["machine"] for detail in findings.details.values() if "machine" in detail]
    return list(dict.fromkeys(", ".join(f"{key} {value}" for key, value in one.items()) for one in told))
