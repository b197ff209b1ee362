"""From what the demo found to sentences, tables, charts and plain values."""

from __future__ import annotations

import os
import platform
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.stats import t as student

from ..measure.latency import Latency
from ..report.curves import draw_sensitivity
from ..report.page import Chart, Page, Section, Table
from .experiment import BUDGET, METHODS, SCRATCH, STEPS, Outcome

NAMES = {"l1_filter": "L1 norm", "random": "random", SCRATCH: "same widths, from scratch"}
CONFIDENCE = 0.95
COMMAND = "python -m secateur.demo"


def page_of(found: Outcome, seconds: float) -> Page:
    """Return the report."""
    sections = [
        Section("Was it worth it?", _verdict(found), [accuracy_table(found)], [Chart(*_steps_chart(found))]),
        Section("What it costs", (), [cost_table(found), latency_table(found)]),
        Section("How each group takes being cut", _about_curves(found), (), [_curves_chart(found)]),
    ]
    return Page(
        "ResNet-8 on digits: half of the multiply-adds removed", _summary(found), sections, _facts(found, seconds)
    )


def _summary(found: Outcome) -> list[str]:
    first = found.results["l1_filter"][0]
    return [
        f"Asked to remove {BUDGET.remove:.0%} of the MACs, {first.removed:.1%} went. The smaller networks compute what "
        f"the masked ones compute: the largest relative error in float64 is {_worst_error(found):.1e}.",
        f"Test accuracy: {_spread(found.base)}% before, {_final(found, 'l1_filter')} with filters chosen by L1 norm, "
        f"{_final(found, 'random')} with filters chosen at random, both fine-tuned alike, and "
        f"{_final(found, SCRATCH)} for the same small network trained from scratch "
        f"(mean ± standard deviation of {len(found.base)} seeds).",
        f"Saved and loaded in a new process, the first of them gives {'the same' if found.is_same else 'OTHER'} "
        f"outputs{', bit for bit' if found.is_same else ''}, and {found.reloaded:.2%} accuracy.",
    ]


def _verdict(found: Outcome) -> list[str]:
    told = [_compared(found, "l1_filter", other) for other in ("random", SCRATCH)]
    return [*told, f"{len(found.data.test_labels)} test images: one is {100 / len(found.data.test_labels):.2f} points."]


def _compared(found: Outcome, one: str, other: str) -> str:
    gaps = np.subtract(found.accuracy[one, STEPS[-1]], found.accuracy[other, STEPS[-1]])
    low, high = interval(gaps)
    says = "they cannot be told apart" if low <= 0 <= high else "the difference is larger than chance explains"
    return (
        f"{NAMES[one]} against {NAMES[other]}: {100 * gaps.mean():+.2f} points (95% interval {100 * low:+.2f} to "
        f"{100 * high:+.2f}, paired over {len(gaps)} seeds): {says}."
    )


def interval(gaps: Sequence[float] | np.ndarray[Any, Any]) -> tuple[float, float]:
    """Return the 95 % interval of the mean of paired differences, by Student's t; of a single one, everything.

    >>> tuple(round(end, 3) for end in interval([0.01, 0.02, 0.03]))
    (-0.005, 0.045)
    """
    values = np.asarray(gaps, dtype=np.float64)
    if len(values) < 2:
        return -np.inf, np.inf
    reach = student.ppf(0.5 + CONFIDENCE / 2, len(values) - 1) * values.std(ddof=1) / np.sqrt(len(values))
    return float(values.mean() - reach), float(values.mean() + reach)


def accuracy_table(found: Outcome) -> Table:
    """Return accuracy before and after each step."""
    rows = [["before pruning", "", "", _spread(found.base)]]
    for way in (*METHODS, SCRATCH):
        cells = [_spread(found.accuracy[way, step]) if (way, step) in found.accuracy else "" for step in STEPS]
        rows.append([NAMES[way], *cells])
    epochs = found.settings.tuning_epochs
    return Table(
        f"Test accuracy in %, mean ± standard deviation of {len(found.base)} seeds",
        ("", *STEPS),
        rows,
        f"Trained: {epochs} epochs of fine-tuning with one recipe for both methods; from scratch "
        f"{found.settings.epochs + epochs} epochs, as many as training and fine-tuning together. Last epoch, never the "
        "best one. Test images were used for these figures only.",
    )


def cost_table(found: Outcome) -> Table:
    """Return costs before and after."""
    result = found.results["l1_filter"][0]
    names = {"macs": "MACs (one image)", "params": "parameters", "bytes": "size of the weights"}
    rows = []
    for what, name in names.items():
        before, after = result.before.of(what), result.after.of(what)
        rows.append((name, _amount(what, before), _amount(what, after), f"{1 - after / before:.1%}"))
    same = all(len(set(_widths(found, seed))) == 1 for seed in range(len(found.base)))
    return Table(
        f"Asked: {BUDGET}. Got: {result.removed:.1%}",
        ("", "before", "after", "removed"),
        rows,
        "Both methods leave the same widths, so the same costs." if same else "Of the L1 norm, first seed.",
    )


def latency_table(found: Outcome) -> Table:
    """Return latencies before and after."""
    first = found.comparisons[0].before
    rows = [
        (f"batch {one.before.batch}", _ms(one.before), _ms(one.after), f"{one.speed_up:.2f}x ({one.speed_up_iqr:.2f})")
        for one in found.comparisons
    ]
    return Table(
        f"Latency, median (distance of the quartiles); {_threads(first)}, {first.device}",
        ("", "before", "after", "speed-up"),
        rows,
        "Both networks are timed in turns. A smaller network is not faster by as much as it is smaller: at these sizes "
        "much of the time goes into starting operations.",
    )


def short_table(found: Outcome) -> str:
    """Return the accuracies as text for a terminal."""
    table = accuracy_table(found)
    rows = [table.columns, *table.rows]
    widths = [max(len(row[k]) for row in rows) for k in range(len(table.columns))]
    lines = [
        "  ".join(
            cell.ljust(w) if k == 0 else cell.rjust(w) for k, (cell, w) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    ]
    result = found.results["l1_filter"][0]
    return "\n".join(
        [
            table.caption,
            *(line.rstrip() for line in lines),
            f"asked: {BUDGET}; got {result.removed:.1%}",
            f"parameters: {result.before.params:,} -> {result.after.params:,}",
            f"verified: largest relative error {_worst_error(found):.1e} in float64; "
            f"reloaded in a new process: {'the same outputs, bit for bit' if found.is_same else 'OTHER OUTPUTS'}",
            *(f"latency: {one}" for one in found.comparisons),
        ]
    )


def values_of(found: Outcome, seconds: float) -> dict[str, Any]:
    """Return everything as plain values, for a program to read."""
    return {
        "budget": {"remove": BUDGET.remove, "of": BUDGET.of, "removed": found.results["l1_filter"][0].removed},
        "seeds": list(found.settings.seeds),
        "base": found.base,
        "accuracy": {way: {step: found.accuracy[w, step] for w, step in found.accuracy if w == way} for way in NAMES},
        "verification_error": _worst_error(found),
        "before": vars(found.results["l1_filter"][0].before),
        "after": vars(found.results["l1_filter"][0].after),
        "latency": [
            {"before": vars(one.before), "after": vars(one.after), "speed_up": one.speed_up}
            for one in found.comparisons
        ],
        "reloaded": {"accuracy": found.reloaded, "is_same": found.is_same},
        "facts": _facts(found, seconds),
    }


def _about_curves(found: Outcome) -> list[str]:
    within, graph = found.curves.fractions_within(0.01), found.results["l1_filter"][0].graph
    streams = [name for name in found.curves.groups if graph.groups[name].is_residual]
    stout = [name for name, fraction in within.items() if fraction >= 0.25]
    return [
        f"One group of channels is cut at a time, without repair, and the network is evaluated on "
        f"{found.curves.sample_count} images held out from training. "
        f"Within one point of accuracy {', '.join(stout) or 'no group'} can lose a quarter or more. "
        f"{', '.join(streams)} are residual streams, which both methods leave whole, as the paper does."
    ]


def _curves_chart(found: Outcome) -> Chart:
    curves = found.curves
    said = "; ".join(
        f"{name}: {curve.metric[0]:.2f} whole, {curve.metric[-1]:.2f} with {curve.fractions[-1]:.0%} removed"
        for name, curve in curves.groups.items()
    )
    return Chart(
        draw_sensitivity(curves),
        f"Accuracy against the fraction of each group that is removed. {said}.",
        "Click a name in the legend to bring a group out; point at a line for its figures.",
    )


def _steps_chart(found: Outcome) -> tuple[dict[str, Any], str, str]:
    order = ["before", *STEPS]
    rows = []
    for way in (*METHODS, SCRATCH):
        steps = {"before": found.base} if way in METHODS else {}
        steps |= {step: found.accuracy[way, step] for step in STEPS if (way, step) in found.accuracy}
        rows += [
            {"way": NAMES[way], "step": step, "accuracy": value, "seed": seed}
            for step, values in steps.items()
            for seed, value in zip(found.settings.seeds, values, strict=True)
        ]
    x = {"field": "step", "type": "ordinal", "sort": order, "title": None, "axis": {"labelAngle": 0}}
    y = {"type": "quantitative", "title": "test accuracy", "axis": {"format": ".0%"}, "scale": {"zero": False}}
    color = {"field": "way", "type": "nominal", "title": "filters", "scale": {"domain": list(NAMES.values())}}
    points = {
        "mark": {"type": "point", "filled": True, "size": 60, "opacity": 0.7},
        "encoding": {
            "x": x,
            "xOffset": {"field": "way", "sort": list(NAMES.values())},
            "y": {"field": "accuracy"} | y,
            "color": color,
            "shape": color,
            "tooltip": [{"field": key} for key in ("way", "step", "seed")] + [{"field": "accuracy", "format": ".2%"}],
        },
    }
    chart = {
        "$schema": "https://vega.github.io/schema/vega-lite/v6.json",
        "data": {"values": rows},
        "width": 600,
        "height": 280,
        **points,
    }
    means = {way: float(np.mean(found.accuracy[way, STEPS[-1]])) for way in (*METHODS, SCRATCH)}
    said = ", ".join(f"{NAMES[way]} {mean:.2%}" for way, mean in means.items())
    return chart, f"Test accuracy of each seed after each step. At the end, on average: {said}.", "One mark per seed."


def _facts(found: Outcome, seconds: float) -> dict[str, str]:
    return {
        "command": COMMAND,
        "data": f"{found.data!r}; a tenth of the training images held out",
        "seeds": ", ".join(str(seed) for seed in found.settings.seeds),
        "versions": f"secateur {_version()}, torch {torch.__version__}, Python {platform.python_version()}",
        "machine": f"{_processor()}, {os.cpu_count()} cores, {_threads(found.comparisons[0].before)} used",
        "duration": f"{seconds:.0f} s",
    }


def _spread(values: Sequence[float]) -> str:
    spread = f" ± {100 * np.std(values, ddof=1):.2f}" if len(values) > 1 else ""
    return f"{100 * np.mean(values):.2f}{spread}"


def _final(found: Outcome, way: str) -> str:
    return f"{_spread(found.accuracy[way, STEPS[-1]])}%"


def _worst_error(found: Outcome) -> float:
    checks = [result.verification for results in found.results.values() for result in results]
    return max(check.max_relative_error for check in checks if check is not None)


def _widths(found: Outcome, index: int) -> list[tuple[int, ...]]:
    return [tuple(len(kept) for kept in found.results[m][index].plan.kept.values()) for m in METHODS]


def _amount(what: str, value: int) -> str:
    return f"{value / 1024:.1f} KiB" if what == "bytes" else f"{value:,}"


def _ms(latency: Latency) -> str:
    return f"{latency.median_ms:.3g} ms ({latency.iqr_ms:.2g})"


def _threads(latency: Latency) -> str:
    return f"{latency.threads} thread{'s' if latency.threads > 1 else ''}"


def _version() -> str:
    from importlib.metadata import version

    return version("secateur")


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.processor() or platform.machine())
