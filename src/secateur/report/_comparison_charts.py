"""The charts of a comparison: what each way reached, against what it costs, and how the loss went down.

One chart holds all networks and budgets; a list above it says which are drawn, so that a page stays small.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ..compare.analysis import Outcome
from ..compare.store import Row
from .comparison import Findings
from .page import Boxes, Chart, Control, Edit

SCHEMA = "https://vega.github.io/schema/vega-lite/v6.json"
COLOURS = (
    "#4c78a8",
    "#f58518",
    "#54a24b",
    "#e45756",
    "#b279a2",
    "#439894",
    "#9d755d",
    "#d67195",
    "#b79a20",
    "#7f7f7f",
)
WIDTH, HEIGHT, WAY_HEIGHT = 760, 340, 12
MOST_ROWS = 30  # of the chart of ways
DENSE = "dense network"
NAMES = {
    "none": "as cut and repaired",
    "finetune": "fine-tuned",
    "lr_rewind": "rate rewound",
    "weight_rewind": "weights rewound",
    "distill": "distilled",
    "scratch_e": "scratch-E",
    "scratch_b": "scratch-B",
    "dense": DENSE,
}
COSTS = {"macs": "MACs of one sample", "params": "parameters"}
PERCENT = {"axis": {"format": ".1%"}, "scale": {"zero": False}}


def charts_of(findings: Findings) -> list[Chart]:
    """Return the charts for which there are results."""
    found = [ways_chart(findings), cost_chart(findings), curves_chart(findings)]
    return [chart for chart in found if chart is not None]


def colours_of(names: Iterable[str]) -> dict[str, str]:
    """Return a colour for each name; after ten they come again."""
    return {name: COLOURS[k % len(COLOURS)] for k, name in enumerate(dict.fromkeys(names))}


def case_of(one: Outcome) -> str:
    """Return the network and budget of a way, as the charts and tables call them."""
    return f"{one.cell.model} on {one.cell.data}"


def title_of(one: Outcome) -> str:
    """Return method and budget of a way."""
    if one.cell.label is None:
        return DENSE
    return f"{one.cell.label}, {asked(one.cell.remove or 0.0, one.cell.of or '')}"


def asked(remove: float, of: str) -> str:
    """Return a budget in words.

    >>> asked(0.5, "macs")
    '50% of MACs'
    """
    return f"{100 * remove:g}% of {dict(macs='MACs', params='parameters').get(of, of)}"


def point(one: Outcome) -> dict[str, Any]:
    """Return what a chart says of a way."""
    spread = 0.0 if math.isnan(one.std) else one.std
    return {
        "case": case_of(one),
        "method": one.cell.label or DENSE,
        "title": title_of(one),
        "way": NAMES[one.cell.recovery],
        "mean": one.mean,
        "low": one.mean - spread,
        "high": one.mean + spread,
        "spread": "one seed" if math.isnan(one.std) else f"± {100 * one.std:.2f} points ({len(one.values)} seeds)",
        "macs": one.macs,
        "params": one.params,
        "removed": one.removed or 0.0,
    }


CASE = {"filter": "datum.case === network"}
TOOLTIP = [
    {"field": "title", "title": "method"},
    {"field": "way", "title": "way"},
    {"field": "mean", "title": "test accuracy", "format": ".2%"},
    {"field": "spread", "title": "standard deviation"},
    {"field": "macs", "title": "MACs", "format": ","},
    {"field": "params", "title": "parameters", "format": ","},
    {"field": "removed", "title": "removed of the budget's count", "format": ".1%"},
]


def ways_chart(findings: Findings) -> Chart | None:
    """Return a row for each method and budget, a mark for each way; None where they are too many to tell apart."""
    rows = [point(one) for one in findings.outcomes if one.cell.label is not None and one.cell.recovery != "none"]
    cases = list(dict.fromkeys(row["case"] for row in rows))
    most = max((len({row["title"] for row in rows if row["case"] == case}) for case in cases), default=0)
    if not rows or most > MOST_ROWS:
        return None
    ways = list(dict.fromkeys(row["way"] for row in rows))
    dense = [point(one) for one in findings.outcomes if one.cell.label is None]
    y = {"field": "title", "type": "nominal", "title": None, "sort": None, "axis": {"labelLimit": 240}}
    offset = {"field": "way", "sort": ways}
    colour = _colour("way", colours_of(ways), "way")
    marks = {
        "data": {"values": rows},
        "transform": [CASE, _ticked("way")],
        "encoding": {"y": y, "yOffset": offset, "color": colour, "tooltip": TOOLTIP},
        "layer": [
            {"mark": {"type": "rule", "strokeWidth": 2}, "encoding": _span("x")},
            {
                "mark": {"type": "point", "filled": True, "size": 70, "opacity": 1},
                "encoding": {"x": _accuracy(), "shape": {"field": "way", "sort": ways, "legend": None}},
            },
        ],
    }
    rule = {
        "data": {"values": dense},
        "transform": [CASE],
        "mark": {"type": "rule", "strokeDash": [6, 4]},
        "encoding": {"x": _accuracy(), "tooltip": TOOLTIP},
    }
    spec = _base(cases, [marks, rule], {"step": WAY_HEIGHT * (len(ways) + 1), "for": "position"})
    best = [f"{row['title']}, {row['way']}: {row['mean']:.2%}" for row in rows][:40]
    return Chart(
        spec,
        "Test accuracy of each method by way of training it on. " + "; ".join(best),
        "Marks are means over seeds, lines one standard deviation to each side; dashed: the dense network.",
        _cases_control(cases),
        Boxes("Shown", colours_of(ways)),
        _still(spec, cases),
    )


def cost_chart(findings: Findings) -> Chart | None:
    """Return accuracy against cost; None where nothing was reached."""
    rows = [point(one) for one in findings.outcomes]
    if not any(row["method"] != DENSE for row in rows):
        return None
    cases = list(dict.fromkeys(row["case"] for row in rows))
    trained = [way for way in dict.fromkeys(row["way"] for row in rows) if way not in (DENSE, NAMES["none"])]
    ways = [*trained, *(way for way in (NAMES["none"],) if any(row["way"] == way for row in rows))]
    colours = colours_of(row["method"] for row in rows)
    points = {
        "data": {"values": rows},
        "transform": [CASE, _ticked("method"), {"filter": _way_filter(ways[0])}],
        "encoding": {"x": _cost("macs"), "color": _colour("method", colours, "method"), "tooltip": TOOLTIP},
        "layer": [
            {"mark": {"type": "rule", "strokeWidth": 1.5}, "encoding": _span("y")},
            {"mark": {"type": "line", "strokeWidth": 1, "opacity": 0.5}, "encoding": {"y": _accuracy()}},
            {
                "mark": {"type": "point", "filled": True, "size": 80},
                "encoding": {"y": _accuracy(), "shape": {"field": "method", "legend": None}},
            },
        ],
    }
    x = ("layer", 0, "encoding", "x")
    controls = [
        *_cases_control(cases),
        Control("Way", {way: [Edit(("layer", 0, "transform", 2, "filter"), _way_filter(way))] for way in ways}),
        Control("Across", {name: [Edit((*x, "field"), key), Edit((*x, "title"), name)] for key, name in COSTS.items()}),
        Control(
            "Scale",
            {"linear": [], "logarithmic": [Edit((*x, "scale"), {"type": "log", "nice": False, "padding": 20})]},
        ),
    ]
    said = "; ".join(f"{r['title']}, {r['way']}: {r['mean']:.2%} at {r['macs']:,.0f} MACs" for r in rows[:40])
    spec = _base(cases, [points], HEIGHT)
    return Chart(
        spec,
        f"Test accuracy against cost. {said}",
        "Means over seeds, with one standard deviation to each side.",
        controls,
        Boxes("Methods", colours),
        _still(spec, cases),
    )


def curves_chart(findings: Findings) -> Chart | None:
    """Return the training loss over epochs, of the first seed; None where nothing was trained."""
    rows: list[dict[str, Any]] = [
        {
            "case": f"{row.model} on {row.data}",
            "title": DENSE if row.label is None else f"{row.label}, {asked(row.remove, row.of_what)}",
            "method": row.label or DENSE,
            "way": NAMES[row.recovery],
            "epoch": epoch,
            "loss": loss,
        }
        for row, history in _histories(findings)
        for epoch, loss, *_ in history
        if math.isfinite(loss)
    ]
    if not rows:
        return None
    cases = list(dict.fromkeys(row["case"] for row in rows))
    ways = sorted(dict.fromkeys(row["way"] for row in rows), key=lambda way: way == DENSE)
    colours = colours_of(row["method"] for row in rows)
    positive = all(row["loss"] > 0 for row in rows)
    y = {"field": "loss", "type": "quantitative", "title": "training loss, mean of the epoch"}
    lines = {
        "data": {"values": rows},
        "transform": [CASE, _ticked("method"), {"filter": {"field": "way", "equal": ways[0]}}],
        "mark": {"type": "line", "point": {"size": 25}, "strokeWidth": 1.5},
        "encoding": {
            "x": {"field": "epoch", "type": "quantitative", "axis": {"tickMinStep": 1, "format": "d"}},
            "y": y,
            "detail": {"field": "title"},
            "color": _colour("method", colours, "method"),
            "tooltip": [
                {"field": "title", "title": "method"},
                {"field": "way"},
                {"field": "epoch"},
                {"field": "loss", "format": ".4f"},
            ],
        },
    }
    log = [Edit(("layer", 0, "encoding", "y", "scale"), {"type": "log", "nice": False})]
    controls = [
        *_cases_control(cases),
        Control("Way", {w: [Edit(("layer", 0, "transform", 2, "filter", "equal"), w)] for w in ways}),
        *([Control("Scale", {"linear": [], "logarithmic": log})] if positive else []),
    ]
    runs = len(_histories(findings))
    spec = _base(cases, [lines], HEIGHT)
    return Chart(
        spec,
        f"Training loss over epochs of {runs} runs of the first seed.",
        "Training loss of the first seed.",
        controls,
        Boxes("Methods", colours),
        _still(spec, cases),
    )


def _histories(findings: Findings) -> list[tuple[Row, Sequence[Sequence[float]]]]:
    return [
        (row, findings.details[row.digest]["history"])
        for row in findings.shown
        if findings.details.get(row.digest, {}).get("history")
    ]


def _base(cases: Sequence[str], layers: Sequence[Mapping[str, Any]], height: Any) -> dict[str, Any]:
    return {
        "$schema": SCHEMA,
        "width": WIDTH,
        "height": height,
        "params": [{"name": "shown", "value": None}, {"name": "network", "value": cases[0]}],
        "layer": list(layers),
    }


def _still(spec: Mapping[str, Any], cases: Sequence[str]) -> dict[str, Any]:
    """The same with the data of the first network only, which is what a still picture shows."""
    layers = [
        {**layer, "data": {"values": [row for row in layer["data"]["values"] if row["case"] == cases[0]]}}
        for layer in spec["layer"]
    ]
    return {**spec, "layer": layers}


def _ticked(field: str) -> dict[str, Any]:
    """Keep what is ticked; null = everything."""
    return {"filter": f"shown === null || indexof(shown, datum.{field}) >= 0"}


def _way_filter(way: str) -> dict[str, Any]:
    return {"field": "way", "oneOf": [way, DENSE]}


def _cases_control(cases: Sequence[str]) -> list[Control]:
    if len(cases) < 2:
        return []
    return [Control("Network", {case: [Edit(("params", 1, "value"), case)] for case in cases})]


def _colour(field: str, colours: Mapping[str, str], title: str) -> dict[str, Any]:
    return {
        "field": field,
        "type": "nominal",
        "title": title,
        "scale": {"domain": list(colours), "range": list(colours.values())},
        "legend": {"orient": "bottom", "columns": 5, "symbolLimit": 0, "labelLimit": 220, "symbolOpacity": 1},
    }


def _accuracy() -> dict[str, Any]:
    return {"field": "mean", "type": "quantitative", "title": "test accuracy", **PERCENT}


def _span(axis: str) -> dict[str, Any]:
    low = {"field": "low", "type": "quantitative", "title": "test accuracy", **PERCENT}
    return {axis: low, f"{axis}2": {"field": "high"}}


def _cost(what: str) -> dict[str, Any]:
    return {
        "field": what,
        "type": "quantitative",
        "title": COSTS[what],
        "axis": {"format": "~s"},
        "scale": {"zero": False, "padding": 20},
    }
