"""Draw how a method that takes part in training got on: costs, widths and scores over epochs."""

from __future__ import annotations

import math
import os
from typing import Any

import numpy as np

from ..extras import require
from ..methods import History
from ._drawing import write_chart
from .page import Chart

WIDTH, HEIGHT = 620, 220  # pixels of each chart
BIN_COUNT = 30
DECADES = 6  # that a logarithmic axis of scores goes down at most
PURPOSE = "drawing how training went"
SO_FAR, IF_CUT = "without what training has taken out", "after a cut to the budget"
Array = np.ndarray[Any, Any]


def draw_training(
    history: History,
    path_png: str | os.PathLike[str] | None = None,
    path_html: str | os.PathLike[str] | None = None,
) -> dict[str, Any]:
    """Draw costs, widths and scores over epochs, one below the other.

    Args:
        history: `prune(...).decision.history`, or that of a `Watch`.
        path_png: where to write a picture; None = nowhere.
        path_html: where to write a page that opens without a network; None = nowhere.

    Returns:
        The chart as a Vega-Lite specification.

    Raises:
        MissingExtra: altair or vl-convert-python is not installed: ``pip install "secateur[report]"``.
        ValueError: the history is empty.
    """
    altair = require("altair", extra="report", purpose=PURPOSE)
    if not history.epochs:
        raise ValueError("the history has no epoch: the method takes no part in training, or trained for none.")
    with altair.data_transformers.enable("default", max_rows=None):
        parts = (_costs(altair, history), _widths(altair, history), _scores(altair, history))
        specification: dict[str, Any] = altair.vconcat(*parts).resolve_scale(color="independent").to_dict()
    write_chart(specification, path_png, path_html, purpose=PURPOSE)
    return specification


def training_chart(history: History) -> Chart:
    """Return the same for a page.

    Raises:
        MissingExtra: altair or vl-convert-python is not installed.
        ValueError: the history is empty.
    """
    specification, last, of = draw_training(history), history.epochs[-1], history.budget.of
    whole = history.before.of(of) or 1
    said = f"After {last.epoch} epochs {last.so_far.of(of) / whole:.1%} of the {_named(of)} are left {SO_FAR}"
    said += f", and {last.if_cut.of(of) / whole:.1%} {IF_CUT}." if last.if_cut else "."
    return Chart(specification, f"Costs, widths and scores over {len(history.epochs)} epochs. {said}", said)


def cost_rows(history: History) -> list[dict[str, Any]]:
    """Return one row per epoch, measure and way of counting: which fraction is left."""
    found = []
    for view in history.epochs:
        for what in dict.fromkeys(("macs", history.budget.of)):
            for way, costs in ((SO_FAR, view.so_far), (IF_CUT, view.if_cut)):
                if costs is not None:
                    left, whole = costs.of(what), history.before.of(what)
                    row = {"epoch": view.epoch, "what": _named(what), "way": way, "count": left}
                    found.append(row | {"left": left / whole if whole else 1.0})
    return found


def width_rows(history: History) -> list[dict[str, Any]]:
    """Return one row per epoch and group: channels after a cut to the budget, else those not yet taken out."""
    return [
        {"epoch": view.epoch, "group": name, "width": count, "of": history.widths[name], "live": view.live[name]}
        for view in history.epochs
        for name, count in (view.kept or view.live).items()
        if name in history.widths
    ]


def score_rows(history: History) -> tuple[list[dict[str, Any]], bool]:
    """Return one row per epoch and range of scores, with its share of all channels; and whether ranges are decades.

    Scores are counted over all groups, as a global ranking sees them. Ranges are equal, or equal in decades where
    scores of one sign spread over more than two; what is smaller than the lowest then counts to it.
    """
    flat = [np.concatenate([np.zeros(0), *(own.double().numpy() for own in v.scores.values())]) for v in history.epochs]
    by_epoch = [values[np.isfinite(values)] for values in flat]
    every = np.concatenate(by_epoch)
    if not len(every):
        return [], False
    edges, is_log = _edges(every)
    found = []
    for view, values in zip(history.epochs, by_epoch, strict=True):
        counts, _ = np.histogram(values.clip(edges[0], edges[-1]), edges)
        for k in np.flatnonzero(counts):
            span = {"from": float(edges[k]), "to": float(edges[k + 1])}
            found.append({"epoch": view.epoch, **span, "channels": int(counts[k]), "share": counts[k] / len(values)})
    return found, is_log


def _edges(values: Array) -> tuple[Array, bool]:
    low, high = float(values.min()), float(values.max())
    positive = values[values > 0]
    if low >= 0 and len(positive) and np.quantile(values, 0.1) < high / 100:
        start = max(float(positive.min()), high * 10.0**-DECADES)
        if start < high:
            return np.geomspace(start, high, BIN_COUNT + 1), True
    if low == high:
        low, high = low - 0.5, high + 0.5
    return np.linspace(low, high, BIN_COUNT + 1), False


def _named(what: str) -> str:
    return {"macs": "MACs", "params": "parameters"}.get(what, what)


def _costs(alt: Any, history: History) -> Any:
    rows, is_mixed = alt.Data(values=cost_rows(history)), history.budget.of != "macs"
    lines = (
        alt.Chart(rows)
        .mark_line(point=True)
        .encode(
            x=_epochs(alt),
            y=alt.Y("left:Q", title="left", axis=alt.Axis(format="%"), scale=alt.Scale(zero=False)),
            color=alt.Color("way:N", title=None, legend=alt.Legend(orient="top", labelLimit=320)),
            strokeDash=alt.StrokeDash("what:N", title=None, legend=alt.Legend(orient="top") if is_mixed else None),
            tooltip=[
                "epoch:Q",
                "what:N",
                "way:N",
                alt.Tooltip("left:Q", format=".1%"),
                alt.Tooltip("count:Q", format=","),
            ],
        )
    )
    asked = alt.Chart(alt.Data(values=[{"left": 1 - history.budget.remove, "label": f"asked: {history.budget}"}]))
    rule = asked.mark_rule(strokeDash=[6, 4]).encode(y="left:Q")
    label = asked.mark_text(align="left", baseline="top", dx=4, dy=3).encode(y="left:Q", x=alt.value(0), text="label:N")
    return alt.layer(lines, rule, label).properties(width=WIDTH, height=HEIGHT, title="Budget")


def _widths(alt: Any, history: History) -> Any:
    rows, is_known = width_rows(history), bool(history.epochs[-1].kept)
    names = list(history.widths)
    clicked = alt.selection_point(name="clicked", fields=["group"], bind="legend", toggle="event.shiftKey")
    color = alt.Color(
        "group:N",
        sort=names,
        scale=alt.Scale(domain=names, scheme="tableau10" if len(names) <= 10 else "turbo"),
        legend=alt.Legend(title="group (click)", columns=math.ceil(len(names) / 14), symbolLimit=0, labelLimit=200),
    )
    tooltip = ["epoch:Q", "group:N", "width:Q", alt.Tooltip("of:Q", title="of"), alt.Tooltip("live:Q", title="not out")]
    chart = (
        alt.Chart(alt.Data(values=rows))
        .mark_line(point=True)
        .encode(
            x=_epochs(alt),
            y=alt.Y("width:Q", title="channels"),
            color=color,
            opacity=alt.condition(clicked, alt.value(0.9), alt.value(0.1)),
            tooltip=tooltip,
        )
    )
    title = f"Widths {IF_CUT if is_known else SO_FAR}"
    return chart.add_params(clicked).properties(width=WIDTH, height=HEIGHT, title=title)


def _scores(alt: Any, history: History) -> Any:
    rows, is_log = score_rows(history)
    scale = alt.Scale(type="log", nice=False) if is_log else alt.Scale(zero=False, nice=False)
    chart = alt.Chart(alt.Data(values=[row | {"x1": row["epoch"] - 0.5, "x2": row["epoch"] + 0.5} for row in rows]))
    span = alt.Scale(domain=[history.epochs[0].epoch - 0.5, history.epochs[-1].epoch + 0.5], nice=False)
    return (
        chart.mark_rect()
        .encode(
            x=alt.X("x1:Q", title="epoch", scale=span, axis=alt.Axis(tickMinStep=1, format="d")),
            x2="x2:Q",
            y=alt.Y("from:Q", title="score", scale=scale),
            y2="to:Q",
            color=alt.Color(
                "share:Q", title="share of channels", scale=alt.Scale(scheme="blues"), legend=alt.Legend(format="%")
            ),
            tooltip=["epoch:Q", alt.Tooltip("from:Q", format=".3g"), alt.Tooltip("to:Q", format=".3g"), "channels:Q"],
        )
        .properties(width=WIDTH, height=HEIGHT, title="What the method goes by, over all channels")
    )


def _epochs(alt: Any) -> Any:
    return alt.X("epoch:Q", axis=alt.Axis(tickMinStep=1, format="d"))
