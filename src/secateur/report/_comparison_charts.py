"""The charts of a comparison: what each way reached, against what it costs, and how the loss went down.

One chart holds all networks and budgets; a list above it says which are drawn, so that a page stays small.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ..compare.analysis import Cell, Outcome
from ..compare.store import Row
from ..compare.timings import Timing
from .comparison import Findings, histories
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
ACROSS = ("layer", 0, "encoding", "x")  # of the chart of costs
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


def point(one: Outcome, findings: Findings) -> dict[str, Any]:
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
        **{key: value for timing in findings.timings_of(one.cell).values() for key, value in _timed(timing).items()},
    }


def _timed(timing: Timing) -> dict[str, Any]:
    key = _latency(timing.batch)
    said = f"{timing}, {timing.speed_up:.2f}x ({timing.place})"
    return {key: timing.ms, f"{key}_low": timing.low_ms, f"{key}_high": timing.high_ms, f"{key}_said": said}


def _latency(batch: int) -> str:
    return f"latency_{batch}"


def costs_of(findings: Findings) -> dict[str, str]:
    """Return field of a point -> what it is: all that a way costs, latencies where they were measured."""
    return COSTS | {_latency(batch): f"latency of {samples(batch)}, ms" for batch in findings.timed_batches}


def samples(count: int) -> str:
    """Return a batch in words."""
    return "one sample" if count == 1 else f"{count} samples"


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


def _cut(cell: Cell) -> tuple[Any, ...]:
    return cell.model, cell.data, cell.label, cell.of, cell.remove


def _tooltip(findings: Findings) -> list[dict[str, Any]]:
    timed = [
        {"field": f"{_latency(batch)}_said", "title": f"latency of {samples(batch)}"}
        for batch in findings.timed_batches
    ]
    return [*TOOLTIP, *timed]


def ways_chart(findings: Findings) -> Chart | None:
    """Return a row for each method and budget, a mark for each way; None where they are too many to tell apart."""
    own = [one for one in findings.outcomes if one.cell.label is not None and one.cell.recovery != "none"]
    cuts = Counter((model, data) for model, data, *_ in {_cut(one.cell) for one in own})
    if not own or max(cuts.values()) > MOST_ROWS:
        return None
    rows = [point(one, findings) for one in own]
    cases = list(dict.fromkeys(row["case"] for row in rows))
    ways = list(dict.fromkeys(row["way"] for row in rows))
    dense = [point(one, findings) for one in findings.outcomes if one.cell.label is None]
    y = {"field": "title", "type": "nominal", "title": None, "sort": None, "axis": {"labelLimit": 240}}
    offset = {"field": "way", "sort": ways}
    tooltip = _tooltip(findings)
    marks = {
        "data": {"values": rows},
        "transform": [CASE, ticked("way")],
        "encoding": {
            "y": y,
            "yOffset": offset,
            "color": colour("way", colours_of(ways), "way"),
            "tooltip": tooltip,
        },
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
        "encoding": {"x": _accuracy(), "tooltip": tooltip},
    }
    spec = base(cases, [marks, rule], {"step": WAY_HEIGHT * (len(ways) + 1), "for": "position"})
    best = [f"{row['title']}, {row['way']}: {row['mean']:.2%}" for row in rows][:40]
    return Chart(
        spec,
        "Test accuracy of each method by way of training it on. " + "; ".join(best),
        "Marks are means over seeds, lines one standard deviation to each side; dashed: the dense network.",
        cases_control(cases),
        Boxes("Shown", colours_of(ways)),
        still(spec, cases),
    )


def cost_chart(findings: Findings) -> Chart | None:
    """Return accuracy against cost; None where nothing was reached."""
    rows = [point(one, findings) for one in findings.outcomes]
    if not any(row["method"] != DENSE for row in rows):
        return None
    cases = list(dict.fromkeys(row["case"] for row in rows))
    trained = [way for way in dict.fromkeys(row["way"] for row in rows) if way not in (DENSE, NAMES["none"])]
    ways = [*trained, *(way for way in (NAMES["none"],) if any(row["way"] == way for row in rows))]
    colours = colours_of(row["method"] for row in rows)
    points = {
        "data": {"values": rows},
        "transform": [
            CASE,
            ticked("method"),
            {"filter": _way_filter(ways[0])},
            {"filter": {"field": "macs", "valid": True}},
        ],
        "encoding": {"x": _cost("macs"), "color": colour("method", colours, "method"), "tooltip": _tooltip(findings)},
        "layer": [
            {"mark": {"type": "rule", "strokeWidth": 1.5}, "encoding": _span("y")},
            {"mark": {"type": "line", "strokeWidth": 1, "opacity": 0.5}, "encoding": {"y": _accuracy()}},
            {
                "mark": {"type": "point", "filled": True, "size": 80},
                "encoding": {"y": _accuracy(), "shape": {"field": "method", "legend": None}},
            },
            {
                "mark": {"type": "rule", "strokeWidth": 1.5},
                "encoding": {"x": {"field": "macs"}, "x2": {"field": "macs"}, "y": _accuracy()},
            },
        ],
    }
    controls = [
        *cases_control(cases),
        Control("Way", {way: [Edit(("layer", 0, "transform", 2, "filter"), _way_filter(way))] for way in ways}),
        Control("Across", {name: _across(key, name) for key, name in costs_of(findings).items()}),
        Control(
            "Scale",
            {"linear": [], "logarithmic": [Edit((*ACROSS, "scale"), {"type": "log", "nice": False, "padding": 20})]},
        ),
    ]
    said = "; ".join(f"{r['title']}, {r['way']}: {r['mean']:.2%} at {r['macs']:,.0f} MACs" for r in rows[:40])
    spec = base(cases, [points], HEIGHT)
    return Chart(
        spec,
        f"Test accuracy against cost. {said}",
        "Means over seeds, with one standard deviation to each side."
        + (" Latency of a single seed: median, with half the distance of its quartiles." if findings.timings else ""),
        controls,
        Boxes("Methods", colours),
        still(spec, cases),
    )


def _across(key: str, name: str) -> list[Edit]:
    """What has to change for another cost to be drawn along x, with its spread if it has one."""
    is_timed = key not in COSTS
    low, high = (f"{key}_low", f"{key}_high") if is_timed else (key, key)
    return [
        Edit((*ACROSS, "field"), key),
        Edit((*ACROSS, "title"), name),
        Edit((*ACROSS, "axis", "format"), ".4~r" if is_timed else "~s"),
        Edit(("layer", 0, "transform", 3, "filter", "field"), key),
        Edit(("layer", 0, "layer", 3, "encoding", "x", "field"), low),
        Edit(("layer", 0, "layer", 3, "encoding", "x2", "field"), high),
    ]


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
        for row, history in histories(findings)
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
        "transform": [CASE, ticked("method"), {"filter": {"field": "way", "equal": ways[0]}}],
        "mark": {"type": "line", "point": {"size": 25}, "strokeWidth": 1.5},
        "encoding": {
            "x": {"field": "epoch", "type": "quantitative", "axis": {"tickMinStep": 1, "format": "d"}},
            "y": y,
            "detail": {"field": "title"},
            "color": colour("method", colours, "method"),
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
        *cases_control(cases),
        Control("Way", {w: [Edit(("layer", 0, "transform", 2, "filter", "equal"), w)] for w in ways}),
        *([Control("Scale", {"linear": [], "logarithmic": log})] if positive else []),
    ]
    runs = histories(findings)
    last = [f"{_called(row)}: {history[-1][1]:.4f}" for row, history in runs[:40]]
    spec = base(cases, [lines], HEIGHT)
    return Chart(
        spec,
        f"Training loss over epochs of {len(runs)} runs of the first seed. In the last epoch: {'; '.join(last)}",
        "Training loss of the first seed.",
        controls,
        Boxes("Methods", colours),
        still(spec, cases),
    )


def _called(row: Row) -> str:
    title = DENSE if row.label is None else f"{row.label}, {asked(row.remove, row.of_what)}"
    return f"{row.model}, {title}, {NAMES[row.recovery]}"


def base(cases: Sequence[str], layers: Sequence[Mapping[str, Any]], height: Any) -> dict[str, Any]:
    """Return a specification whose parameters say what is ticked and which network is shown, first the first."""
    return {
        "$schema": SCHEMA,
        "width": WIDTH,
        "height": height,
        "params": [{"name": "shown", "value": None}, {"name": "network", "value": cases[0]}],
        "layer": list(layers),
    }


def still(spec: Mapping[str, Any], cases: Sequence[str]) -> dict[str, Any]:
    """Return the same with the data of the first network only, which is what a still picture shows."""
    layers = [
        {**layer, "data": {"values": [row for row in layer["data"]["values"] if row["case"] == cases[0]]}}
        for layer in spec["layer"]
    ]
    return {**spec, "layer": layers}


def ticked(field: str) -> dict[str, Any]:
    """Return what keeps that which is ticked; null = everything."""
    return {"filter": f"shown === null || indexof(shown, datum.{field}) >= 0"}


def _way_filter(way: str) -> dict[str, Any]:
    return {"field": "way", "oneOf": [way, DENSE]}


def cases_control(cases: Sequence[str]) -> list[Control]:
    """Return a list of the networks, where there are several."""
    if len(cases) < 2:
        return []
    return [Control("Network", {case: [Edit(("params", 1, "value"), case)] for case in cases})]


def colour(field: str, colours: Mapping[str, str], title: str) -> dict[str, Any]:
    """Return the encoding of a field by these colours."""
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
