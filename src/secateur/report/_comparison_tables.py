"""The tables of a comparison."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence

from ..catalogue import CATALOGUE
from ..compare.analysis import SCRATCH, Cell, Difference, Outcome, deviation
from ..compare.spec import CONTROLS
from ..compare.store import Row
from ..compare.timings import Timing
from ._comparison_charts import NAMES, asked, samples
from .comparison import AGAINST, Findings, histories, name_of, rival_of
from .page import Table

MOST_COLUMNS, MOST_GROUPS = 12, 100
NOTHING = "–"
Case = tuple[str, str]


def cuts_of(found: Iterable[Outcome]) -> dict[Case, list[Cell]]:
    """Return (model, data) -> the different cuts, as the cells right after them."""
    cuts: dict[Case, dict[Cell, None]] = {}
    for one in found:
        own = cuts.setdefault((one.cell.model, one.cell.data), {})
        if one.cell.label is not None:
            own.setdefault(with_recovery(one.cell, "none"))
    return {case: list(own) for case, own in cuts.items()}


def with_recovery(cell: Cell, recovery: str) -> Cell:
    """Return the same cut, trained on in that way."""
    return Cell(cell.model, cell.data, cell.label, cell.method, cell.of, cell.remove, recovery)


def spread(one: Outcome | None, seeds: int) -> str:
    """Return mean and standard deviation in percent, and of how many seeds if it is not all."""
    if one is None:
        return NOTHING
    std = "" if math.isnan(one.std) else f" ± {100 * one.std:.2f}"
    return f"{100 * one.mean:.2f}{std}{'' if len(one.values) == seeds else f' ({len(one.values)})'}"


def named(cell: Cell) -> tuple[str, str]:
    """Return the method and the budget in words."""
    return cell.label or NAMES["dense"], "" if cell.remove is None or cell.of is None else asked(cell.remove, cell.of)


def reached_table(findings: Findings, case: Case, cuts: Sequence[Cell]) -> Table:
    """Return what each way reached: a row for each method and budget, the random control beside it."""
    seeds = len(findings.experiment.seeds)
    recoveries = [name for name in findings.experiment.every_recovery if name != "none"]
    control = next((name for name in recoveries if name not in SCRATCH), "none")
    dense = spread(findings.by_cell.get(Cell(*case)), seeds)
    rows = []
    for cut in cuts:
        own = findings.by_cell.get(cut)
        random = _control_of(cut)
        rows.append(
            (
                *named(cut),
                NOTHING if own is None else _percent(list(own.as_cut.values())),
                spread(own, seeds),
                *(spread(findings.by_cell.get(with_recovery(cut, name)), seeds) for name in recoveries),
                spread(findings.by_cell.get(with_recovery(random, control)), seeds),
                dense,
            )
        )
    return Table(
        f"{_called(case)}: test {findings.metric_name} in %, mean ± standard deviation of {_seeds(seeds)}",
        (
            "method",
            "removed",
            "as cut",
            "repaired",
            *(NAMES[n] for n in recoveries),
            f"random, {NAMES[control]}",
            "dense",
        ),
        rows,
        "After the last epoch, never the best one. The test images were used for these figures only. Scratch-E: fresh "
        "weights, as many epochs as the dense network and the fine-tuning have; scratch-B: as many multiply-adds.",
    )


def _control_of(cut: Cell) -> Cell:
    """The random control of a cut; experiments name it as the catalogue does."""
    name = CONTROLS[CATALOGUE[cut.method or "random"].removes]
    return Cell(cut.model, cut.data, name, name, cut.of, cut.remove, "none")


def _percent(values: Sequence[float]) -> str:
    if not values:
        return NOTHING
    std = f" ± {100 * deviation(values):.2f}" if len(values) > 1 else ""
    return f"{100 * statistics.fmean(values):.2f}{std}"


def differences_table(case: Case, gaps: Sequence[Difference]) -> Table:
    """Return the paired differences: a row for each way that pruning was followed by, a column for each rival."""
    rows: dict[Cell, dict[str, str]] = {}
    for gap in gaps:
        rows.setdefault(gap.one, {})[rival_of(gap)] = _gap(gap)
    against = [name for name in AGAINST if any(name in told for told in rows.values())]
    return Table(
        f"{_called(case)}: by how many points pruning is better than its rivals",
        ("method", "removed", "trained on", *(f"against {NAMES.get(name, name)}" for name in against)),
        [(*named(cell), NAMES[cell.recovery], *(told.get(n, NOTHING) for n in against)) for cell, told in rows.items()],
        "Differences are paired by seed: both have the same dense network, data order and split. In brackets the 95% "
        "interval of their mean (Student's t). Better and worse: the interval leaves 0 out. As good: all of it lies "
        "within 0.3 points. Open: neither. With so many intervals one in twenty misses by chance.",
    )


def _gap(gap: Difference) -> str:
    mean = f"{100 * gap.mean:+.2f}"
    if gap.verdict == "one seed":
        return f"{mean} (one seed)"
    return f"{mean} [{100 * gap.low:+.2f}, {100 * gap.high:+.2f}] {gap.verdict}"


def budget_table(findings: Findings, case: Case, cuts: Sequence[Cell]) -> Table:
    """Return what was asked of each cut, what it got, and whether it is exact."""
    rows = []
    for cut in cuts:
        one = findings.by_cell.get(cut)
        if one is not None:
            error = NOTHING if one.verification_error is None else f"{one.verification_error:.1e}"
            got = NOTHING if one.removed is None else f"{one.removed:.2%}"
            rows.append((*named(cut), got, f"{one.macs:,.0f}", f"{one.params:,.0f}", error))
    dense = findings.by_cell.get(Cell(*case))
    if dense is not None:
        rows.insert(0, (NAMES["dense"], "", NOTHING, f"{dense.macs:,.0f}", f"{dense.params:,.0f}", NOTHING))
    return Table(
        f"{_called(case)}: the budget asked and got, mean over seeds",
        ("method", "asked", "got", "MACs of one sample", "parameters", "largest error"),
        rows,
        "Largest error: of the cut network against the masked one, relative, in float64, over all seeds. Where single "
        "weights go, the network keeps its shape, nothing is to be verified, and MACs are those of weights that stay.",
    )


def latency_table(findings: Findings, case: Case, cuts: Sequence[Cell]) -> Table:
    """Return how long each cut network takes; without rows where nothing was timed."""
    batches = findings.timed_batches
    rows = [
        (*named(cell), *(text for batch in batches for text in _timed(findings.timings_of(cell).get(batch))))
        for cell in (Cell(*case), *cuts)
        if findings.timings_of(cell)
    ]
    places = sorted({t.place for timed in findings.timings.values() for t in timed.values()})
    return Table(
        f"{_called(case)}: measured latency, and how many times as fast as the dense network",
        (
            "method",
            "removed",
            *(text for batch in batches for text in (f"{samples(batch)}, ms", f"speed-up, {samples(batch)}")),
        ),
        rows,
        f"One forward pass on {' and '.join(places)}: the median of many rounds in which the cut and the dense network "
        "take turns. Mean over seeds ± one standard deviation; of a single seed half the distance of the quartiles.",
    )


def _timed(timing: Timing | None) -> tuple[str, str]:
    if timing is None:
        return NOTHING, NOTHING
    return f"{timing.ms:.3g} ± {timing.spread_ms:.2g}", f"{timing.speed_up:.2f}x"


def training_table(findings: Findings) -> Table:
    """Return where the training loss of each run that is shown began and ended."""
    found = histories(findings)
    rows = [
        (name_of(row), str(len(history)), f"{history[0][1]:.4f}", f"{history[-1][1]:.4f}", f"{history[-1][2]:.3g}")
        for row, history in found
    ]
    return Table(
        "Training of the first seed: mean loss of the first and the last epoch",
        ("job", "epochs", "first", "last", "last learning rate"),
        rows,
    )


def effort_table(findings: Findings, case: Case, cuts: Sequence[Cell]) -> Table:
    """Return how long each way trained, in epochs and multiply-adds relative to the dense network."""
    recoveries = [name for name in findings.experiment.every_recovery if name != "none"]
    dense = findings.by_cell.get(Cell(*case))
    whole = None if dense is None else dense.effort
    rows = []
    for cut in cuts:
        cells = [findings.by_cell.get(with_recovery(cut, name)) for name in recoveries]
        if any(cells):
            rows.append((*named(cut), *(_effort(one, whole) for one in cells)))
    return Table(
        f"{_called(case)}: epochs after the cut, and their multiply-adds as a share of the dense network's training",
        ("method", "removed", *(NAMES[name] for name in recoveries)),
        rows,
    )


def _effort(one: Outcome | None, whole: float | None) -> str:
    if one is None or one.epochs is None:
        return NOTHING
    share = f" ({one.effort / whole:.0%})" if one.effort and whole else ""
    return f"{one.epochs}{share}"


def width_tables(findings: Findings) -> list[Table]:
    """Return what is left of each group, for each network and kind of cut, of the first seed."""
    found: dict[tuple[str, str, str], list[Row]] = {}
    for row in findings.shown:
        if row.kind == "cut" and findings.details.get(row.digest, {}).get("widths"):
            found.setdefault((row.model, row.data, CATALOGUE[row.method].removes), []).append(row)
    return [_widths(findings, key, rows) for key, rows in found.items()]


def _widths(findings: Findings, key: tuple[str, str, str], rows: Sequence[Row]) -> Table:
    model, data, what = key
    told: list[Mapping[str, Sequence[int]]] = [findings.details[row.digest]["widths"] for row in rows[:MOST_COLUMNS]]
    groups = {name: widths[0] for one in told for name, widths in one.items()}
    left = [
        (name, f"{before:,}", *(f"{one[name][1]:,}" if name in one else f"{before:,}" for one in told))
        for name, before in list(groups.items())[:MOST_GROUPS]
    ]
    several = len({(row.remove, row.of_what) for row in rows}) > 1
    heads = [f"{row.label} {asked(row.remove, row.of_what)}" if several else str(row.label) for row in rows]
    hidden = max(len(rows) - MOST_COLUMNS, 0), max(len(groups) - MOST_GROUPS, 0)
    note = f"Not shown: {hidden[0]} cuts and {hidden[1]} groups; --json has all." if any(hidden) else ""
    thing = "channels of each group" if what == "channels" else "weights of each tensor"
    return Table(
        f"{model} on {data}: {thing} that are left, seed {rows[0].seed}",
        ("group" if what == "channels" else "tensor", "before", *heads[:MOST_COLUMNS]),
        left,
        note,
    )


def _called(case: Case) -> str:
    return f"{case[0]} on {case[1]}"


def _seeds(count: int) -> str:
    return "one seed" if count == 1 else f"{count} seeds"
