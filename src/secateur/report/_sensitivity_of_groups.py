"""How the groups of each dense network take being cut alone: the chart and the tables of a comparison."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..methods.sensitivity import SensitivityCurves
from ._comparison_charts import CASE, HEIGHT, base, cases_control, colour, colours_of, still, ticked
from .comparison import Findings
from .curves import rows as points_of
from .page import Boxes, Chart, Table

TOLERANCE = 0.01
MOST_GROUPS = 100


def sensitivity_chart(findings: Findings) -> Chart | None:
    """Return a line for each group of each network: the metric against the fraction that is gone; None without any."""
    curves = {called(case): own for case, own in findings.sensitivity.items()}
    if not curves:
        return None
    cases = list(curves)
    rows = [{"case": case, **row} for case, own in curves.items() for row in points_of(own)]
    whole = [{"case": case, "metric": own.base_metric} for case, own in curves.items()]
    colours = colours_of(row["group"] for row in rows)
    y = {
        "field": "metric",
        "type": "quantitative",
        "title": f"{findings.metric_name} on held-out images",
        "scale": {"zero": False},
    }
    lines = {
        "data": {"values": rows},
        "transform": [CASE, ticked("group")],
        "mark": {"type": "line", "point": {"size": 30}, "strokeWidth": 1.5},
        "encoding": {
            "x": {
                "field": "removed",
                "type": "quantitative",
                "title": "fraction of the group's channels removed",
                "axis": {"format": "%"},
            },
            "y": y,
            "color": colour("group", colours, "group"),
            "tooltip": _tooltip(findings.metric_name),
        },
    }
    rule = {
        "data": {"values": whole},
        "transform": [CASE],
        "mark": {"type": "rule", "strokeDash": [6, 4]},
        "encoding": {"y": y, "tooltip": [{"field": "metric", "title": "intact", "format": ".4f"}]},
    }
    spec = base(cases, [lines, rule], HEIGHT)
    return Chart(
        spec,
        f"{findings.metric_name} on held-out images of networks of which one group of channels is cut at a time. "
        "The tables below have how much of each group can go.",
        "One group cut at a time, lowest scores first, nothing repaired; dashed: the intact network.",
        cases_control(cases),
        Boxes("Groups", colours),
        still(spec, cases),
    )


def _tooltip(metric: str) -> list[dict[str, Any]]:
    return [
        {"field": "group"},
        {"field": "channels", "title": "channels removed"},
        {"field": "metric", "title": metric, "format": ".4f"},
        {"field": "drop", "title": "worse than intact by", "format": ".4f"},
        {"field": "macs saved", "title": "MACs saved, of the model", "format": ".1%"},
        {"field": "parameters saved", "title": "parameters saved, of the model", "format": ".1%"},
    ]


def sensitivity_tables(findings: Findings) -> list[Table]:
    """Return how much of each group can go alone, for each network."""
    return [_table(findings.metric_name, called(case), own) for case, own in findings.sensitivity.items()]


def _table(metric: str, case: str, curves: SensitivityCurves) -> Table:
    within: Mapping[str, float] = curves.fractions_within(TOLERANCE)
    rows = [
        (name, f"{curves.groups[name].width:,}", f"{fraction:.1%}", f"{100 * max(curves.drops(name)):.2f}")
        for name, fraction in list(within.items())[:MOST_GROUPS]
    ]
    notes = [
        f"Channels of the lowest scores ({curves.scores.partition('(')[0]}) go first, measured on "
        f"{curves.sample_count:,} held-out images, of the first seed. Groups lose more together than each alone."
    ]
    if curves.unremovable:
        notes.append("Nothing can be removed of " + "; ".join(f"{n} ({why})" for n, why in curves.unremovable.items()))
    if len(within) > MOST_GROUPS:
        notes.append(f"{len(within) - MOST_GROUPS} more groups: --json has all")
    return Table(
        f"{case}: how much of each group can go alone with {metric} at most {100 * TOLERANCE:g} point worse",
        ("group", "channels", "can go", "largest drop tried, points"),
        rows,
        ". ".join(note.rstrip(".") for note in notes) + ".",
    )


def called(case: tuple[str, str]) -> str:
    """Return a network as the charts and tables call it."""
    return f"{case[0]} on {case[1]}"
