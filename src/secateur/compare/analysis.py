"""From results to an answer: what each way reached, which pairs differ, and by how much, with an interval.

Pairs share a seed, so they share the dense network, the data order and the split: their differences spread less than
their accuracies. The accuracy is that of the last epoch on the test images, which no choice has looked at.
"""

from __future__ import annotations

import math
import statistics
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, cached_property
from operator import itemgetter
from typing import Any

from scipy.stats import t as student

from ..catalogue import CATALOGUE
from .spec import CONTROLS
from .store import DONE, Row

CONFIDENCE = 0.95
CLOSE = 0.003  # points that do not matter, as a fraction: 0.3 of a percent
MEASURED = (
    *("model", "data", "label", "method", "of_what", "remove", "recovery"),  # what makes a cell
    *("seed", "metric", "metric_as_cut", "macs", "params", "removed", "epochs"),
    *("verification_error", "test_count"),
)
KEYS, METRIC = MEASURED.index("seed"), MEASURED.index("metric")
SCRATCH = ("scratch_e", "scratch_b")


@dataclass(frozen=True)
class Cell:
    """One way to come by a small network: model, method, budget and recovery.

    Attributes:
        model: its name.
        data: what it is trained on.
        label: the method's name in tables; None for the dense network.
        method: its name in the catalogue; None for the dense network.
        of: what the budget counts.
        remove: how much goes.
        recovery: what follows the cut; "dense" for the dense network.
    """

    model: str
    data: str
    label: str | None = None
    method: str | None = None
    of: str | None = None
    remove: float | None = None
    recovery: str = "dense"

    @property
    def is_control(self) -> bool:
        """Whether channels or weights were drawn at random."""
        return self.method in CONTROLS.values()


@dataclass(frozen=True)
class Outcome:
    """What a cell reached.

    Attributes:
        cell: the way.
        values: seed -> test metric.
        macs: mean over seeds, for one sample.
        params: mean over seeds.
        removed: mean fraction of what the budget counts.
        epochs: that were trained after the cut.
        effort: epochs times multiply-adds of one sample, mean over seeds; of two that train on the same images, their
            shares of all multiply-adds are as these.
        verification_error: the largest of all seeds; None where nothing was verified.
        test_count: samples that the metric is a mean of; None = not known.
        as_cut: seed -> test metric before any repair, where it is known.
    """

    cell: Cell
    values: dict[int, float]
    macs: float
    params: float
    removed: float | None
    epochs: int | None
    effort: float | None
    verification_error: float | None
    test_count: int | None = None
    as_cut: Mapping[int, float] = field(default_factory=dict)

    @cached_property
    def mean(self) -> float:
        """Mean over seeds."""
        return statistics.fmean(self.values.values())

    @cached_property
    def std(self) -> float:
        """Standard deviation over seeds; nan of a single one."""
        return deviation(list(self.values.values()))


@dataclass(frozen=True)
class Difference:
    """One way against another, over the seeds that both have; above 0 = the first is better.

    Attributes:
        one: the first.
        other: what it is compared with.
        mean: of the paired differences, in the metric's unit.
        low: lower end of the 95 % interval of that mean; -inf for a single pair.
        high: upper end.
        pairs: how many seeds.
    """

    one: Cell
    other: Cell
    mean: float
    low: float
    high: float
    pairs: int

    @property
    def verdict(self) -> str:
        """One of "better", "worse", "as good" (the whole interval lies within 0.3 points), "open" and "one seed"."""
        if self.pairs < 2:
            return "one seed"
        if self.low > 0:
            return "better"
        if self.high < 0:
            return "worse"
        return "as good" if max(-self.low, self.high) <= CLOSE else "open"


def outcomes(rows: Iterable[Row]) -> list[Outcome]:
    """Return what each cell reached, in the order in which the first of its rows came."""
    values = itemgetter(*MEASURED)
    return outcomes_of(values(row.values) for row in rows if row.values["status"] == DONE)


def outcomes_of(rows: Iterable[tuple[Any, ...]]) -> list[Outcome]:
    """Return the same from the columns `MEASURED` of results that are done; quick for a hundred thousand."""
    cells: dict[tuple[Any, ...], list[tuple[Any, ...]]] = defaultdict(list)
    for row in rows:
        if row[METRIC] is not None:
            cells[row[:KEYS]].append(row[KEYS:])
    return [_outcome(Cell(*key), own) for key, own in cells.items()]


def _outcome(cell: Cell, rows: Sequence[tuple[Any, ...]]) -> Outcome:
    seeds, metrics, as_cut, macs, params, removed, epochs, errors, test_counts = zip(*rows, strict=True)
    efforts = [own * cost for own, cost in zip(epochs, macs, strict=True) if own is not None]
    return Outcome(
        cell,
        dict(zip(seeds, metrics, strict=True)),
        _mean(macs) or 0.0,
        _mean(params) or 0.0,
        _mean(removed),
        max(_known(epochs), default=None),
        statistics.fmean(efforts) if efforts else None,
        max(_known(errors), default=None),
        next(iter(_known(test_counts)), None),
        {seed: value for seed, value in zip(seeds, as_cut, strict=True) if value is not None},
    )


def _known(values: Sequence[Any]) -> Sequence[Any]:
    return [value for value in values if value is not None] if None in values else values


def _mean(values: Sequence[Any]) -> float | None:
    found = _known(values)
    return math.fsum(found) / len(found) if found else None


def deviation(values: Sequence[float]) -> float:
    """Return the standard deviation of a sample; nan of a single value.

    `statistics.stdev` is exact to the last digit and takes a hundred times as long.

    >>> deviation([1.0, 3.0]) ** 2
    2.0000000000000004
    """
    if len(values) < 2:
        return math.nan
    middle = statistics.fmean(values)
    return math.sqrt(math.fsum((value - middle) ** 2 for value in values) / (len(values) - 1))


def difference(one: Outcome, other: Outcome, *, higher_is_better: bool = True) -> Difference | None:
    """Return how two ways differ over the seeds that both have; None if there is none."""
    seeds = sorted(one.values.keys() & other.values.keys())
    if not seeds:
        return None
    sign = 1.0 if higher_is_better else -1.0
    gaps = [sign * (one.values[seed] - other.values[seed]) for seed in seeds]
    low, high = interval(gaps, finest=1 / one.test_count if one.test_count else 0.0)
    return Difference(one.cell, other.cell, statistics.fmean(gaps), low, high, len(gaps))


def interval(gaps: Sequence[float], *, finest: float = 0.0) -> tuple[float, float]:
    """Return the 95 % interval of the mean of paired differences, by Student's t; of a single one, everything.

    Args:
        gaps: the differences.
        finest: what one test sample changes. Two differences that happen to be equal do not spread less than that.

    >>> tuple(round(end, 3) for end in interval([0.01, 0.02, 0.03]))
    (-0.005, 0.045)
    """
    if len(gaps) < 2:
        return -math.inf, math.inf
    middle = statistics.fmean(gaps)
    reach = _quantile(len(gaps) - 1) * max(deviation(gaps), finest) / math.sqrt(len(gaps))
    return middle - reach, middle + reach


@cache
def _quantile(freedom: int) -> float:
    return float(student.ppf(0.5 + CONFIDENCE / 2, freedom))


def comparisons(found: Sequence[Outcome], *, higher_is_better: bool = True) -> list[Difference]:
    """Return the differences that answer the question, for each model, method and budget.

    The pruned and fine-tuned network is held against the small network from scratch (both ways), against the random
    control that was trained on in the same way, and against the dense network.
    """
    by_cell = {outcome.cell: outcome for outcome in found}
    near: dict[tuple[object, ...], list[Cell]] = defaultdict(list)
    for cell in by_cell:
        for key in _neighbourhoods(cell):
            near[key].append(cell)
    told = []
    for outcome in found:
        cell = outcome.cell
        if cell.recovery in ("dense", "none", *SCRATCH) or cell.method is None:
            continue
        for other in _rivals(cell, near):
            gap = difference(outcome, by_cell[other], higher_is_better=higher_is_better)
            if gap is not None:
                told.append(gap)
    return told


def _neighbourhoods(cell: Cell) -> list[tuple[object, ...]]:
    """Under what a cell is looked up, so that not every pair has to be looked at."""
    place = (cell.model, cell.data)
    found: list[tuple[object, ...]] = []
    if cell.recovery == "dense":
        found.append((*place, "dense"))
    if cell.recovery in SCRATCH:
        found.append((*place, cell.label, cell.of, cell.remove))
    if cell.is_control:
        found.append((*place, "control", cell.of, cell.remove, cell.recovery))
    return found


def _rivals(cell: Cell, near: Mapping[tuple[object, ...], Sequence[Cell]]) -> list[Cell]:
    """The cells that a trained one is held against: from scratch, the random control, the dense network."""
    place = (cell.model, cell.data)
    controls = near.get((*place, "control", cell.of, cell.remove, cell.recovery), ())
    return [
        *near.get((*place, cell.label, cell.of, cell.remove), ()),
        *(other for other in controls if _is_control_of(other, cell)),
        *near.get((*place, "dense"), ()),
    ]


def _is_control_of(other: Cell, cell: Cell) -> bool:
    if not other.is_control or cell.is_control or cell.method is None or other.method is None:
        return False
    kind, same = CATALOGUE[cell.method].removes, CATALOGUE[other.method].removes
    return kind == same and (other.of, other.remove, other.recovery) == (cell.of, cell.remove, cell.recovery)


WORDS = {
    "scratch_e": "the same network from scratch, as many epochs",
    "scratch_b": "the same network from scratch, as much compute",
    "dense": "the dense network",
    "finetune": "fine-tuned",
    "lr_rewind": "with the learning rate rewound",
    "weight_rewind": "with weights rewound",
    "distill": "distilled",
    "none": "as cut and repaired",
}


def sentence(gap: Difference) -> str:
    """Return a difference in words.

    >>> one = Cell("resnet20", "cifar10", "l1_filter", "l1_filter", "macs", 0.5, "finetune")
    >>> other = Cell("resnet20", "cifar10", "l1_filter", "l1_filter", "macs", 0.5, "scratch_b")
    >>> print(sentence(Difference(one, other, 0.011, 0.008, 0.014, 3)))
    resnet20, l1_filter, 50% of macs, fine-tuned: better than the same network from scratch, as much compute, \
by 1.10 ± 0.30 points (3 seeds).
    """
    cell, other = gap.one, gap.other
    against = f"{other.label}, {WORDS[other.recovery]}" if _is_control_of(other, cell) else WORDS[other.recovery]
    head = f"{cell.model}, {cell.label}, {cell.remove:.0%} of {cell.of}, {WORDS[cell.recovery]}: "
    points, reach = 100 * abs(gap.mean), 100 * (gap.high - gap.mean)
    if gap.verdict == "one seed":
        return f"{head}{100 * gap.mean:+.2f} points against {against}; one seed says nothing of chance."
    seeds = f"({gap.pairs} seeds)"
    if gap.verdict in ("better", "worse"):
        return f"{head}{gap.verdict} than {against}, by {points:.2f} ± {reach:.2f} points {seeds}."
    if gap.verdict == "as good":
        return (
            f"{head}as good as {against} within {100 * CLOSE:.1f} points ({100 * gap.mean:+.2f} ± {reach:.2f}) {seeds}."
        )
    return f"{head}cannot be told from {against} ({100 * gap.mean:+.2f} ± {reach:.2f} points) {seeds}."
