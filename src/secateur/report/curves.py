"""Draw sensitivity curves: one chart, a line per group, as a picture and as a page that opens offline."""

from __future__ import annotations

import math
import os
import textwrap
from typing import Any

from ..extras import require
from ..methods.sensitivity import SensitivityCurves
from ._drawing import write_chart

WIDTH, MIN_HEIGHT, LEGEND_LINE = 760, 360, 15  # pixels
LEGEND_ROWS, SUBTITLE_LETTERS = 28, 130
PURPOSE = "drawing sensitivity curves"


def draw_sensitivity(
    curves: SensitivityCurves,
    path_png: str | os.PathLike[str] | None = None,
    path_html: str | os.PathLike[str] | None = None,
) -> dict[str, Any]:
    """Draw the metric of each group against the fraction of it that is removed.

    The base is a dashed line. Colours run from the first group of the forward pass to the last. On the page, a click on
    the legend (with Shift for more) or a pointer near a line brings groups out, and a tooltip says what was measured.
    Groups of which nothing can be removed are named below the title, not drawn.

    Args:
        curves: what `secateur.sensitivity` returned.
        path_png: where to write a picture, at twice the size on the page; None = nowhere.
        path_html: where to write the page; all scripts are in it, so it opens without a network. None = nowhere.

    Returns:
        The chart as a Vega-Lite specification.

    Raises:
        MissingExtra: altair or vl-convert-python is not installed: ``pip install "secateur[report]"``.
    """
    altair = require("altair", extra="report", purpose=PURPOSE)
    with altair.data_transformers.enable("default", max_rows=None):
        specification: dict[str, Any] = _chart(altair, curves).to_dict()
    write_chart(specification, path_png, path_html, purpose=PURPOSE)
    return specification


def rows(curves: SensitivityCurves) -> list[dict[str, Any]]:
    """Return one row per measured point, a repeated one once; a metric that is not finite is left out."""
    found = []
    for name, curve in curves.groups.items():
        drops, saved = curves.drops(name), curve.macs_saved
        for k, count in enumerate(curve.removed):
            if (k and count == curve.removed[k - 1]) or not math.isfinite(curve.metric[k]):
                continue
            found.append(
                {
                    "group": name,
                    "removed": curve.fractions[k],
                    "metric": curve.metric[k],
                    "drop": drops[k],
                    "loss": curve.loss[k] if math.isfinite(curve.loss[k]) else None,
                    "channels": f"{count} of {curve.width}",
                    "macs saved": saved[k] / curves.base_macs if curves.base_macs else 0.0,
                    "parameters saved": curve.params_saved[k] / curves.base_params if curves.base_params else 0.0,
                }
            )
    return found


def _chart(alt: Any, curves: SensitivityCurves) -> Any:
    clicked = alt.selection_point(name="clicked", fields=["group"], bind="legend", toggle="event.shiftKey")
    near = alt.selection_point(
        name="near", fields=["group"], on="pointerover", clear="pointerout", nearest=True, empty=False
    )
    lines = alt.Chart(alt.Data(values=rows(curves))).encode(
        x=alt.X("removed:Q", title="fraction of the group's channels removed", axis=alt.Axis(format="%")),
        y=alt.Y("metric:Q", title=_y_title(curves), scale=alt.Scale(zero=False)),
        color=_colour(alt, list(curves.groups)),
        opacity=alt.condition(clicked, alt.value(0.9), alt.value(0.08)),
    )
    tooltip = [
        alt.Tooltip("group:N"),
        alt.Tooltip("channels:N", title="channels removed"),
        alt.Tooltip("metric:Q", title=curves.metric_name, format=".4f"),
        alt.Tooltip("drop:Q", title="worse than base by", format=".4f"),
        alt.Tooltip("loss:Q", format=".4f"),
        alt.Tooltip("macs saved:Q", title="MACs saved, of the model", format=".1%"),
        alt.Tooltip("parameters saved:Q", title="parameters saved, of the model", format=".1%"),
    ]
    strokes = lines.mark_line().encode(strokeWidth=alt.condition(near, alt.value(4), alt.value(1.5)))
    points = lines.mark_point(filled=True, size=30).encode(tooltip=tooltip).add_params(clicked, near)
    height = max(MIN_HEIGHT, min(len(curves.groups), LEGEND_ROWS) * LEGEND_LINE + 40)
    title = alt.TitleParams(f"Sensitivity: {curves.metric_name}", subtitle=_subtitle(curves), anchor="start")
    return alt.layer(strokes, points, *_base(alt, curves)).properties(width=WIDTH, height=height, title=title)


def _base(alt: Any, curves: SensitivityCurves) -> tuple[Any, Any]:
    """Return a dashed line at the base, and its label."""
    base = alt.Chart(alt.Data(values=[{"base": curves.base_metric, "label": f"base {curves.base_metric:.4f}"}]))
    rule = base.mark_rule(strokeDash=[6, 4]).encode(y="base:Q")
    label = base.mark_text(align="left", baseline="bottom", dx=4, dy=-3)
    return rule, label.encode(y="base:Q", x=alt.value(0), text="label:N")


def _colour(alt: Any, names: list[str]) -> Any:
    """Few groups get colours that are easy to tell apart, many a scale in the order of the forward pass."""
    scheme = "tableau10" if len(names) <= 10 else "turbo"
    legend = alt.Legend(
        title="group (click)",
        columns=math.ceil(len(names) / LEGEND_ROWS),
        symbolLimit=0,
        labelLimit=220,
        symbolType="stroke",
    )
    return alt.Color("group:O", sort=names, scale=alt.Scale(domain=names, scheme=scheme), legend=legend)


def _y_title(curves: SensitivityCurves) -> str:
    return f"{curves.metric_name} ({'higher' if curves.higher_is_better else 'lower'} is better)"


def _subtitle(curves: SensitivityCurves) -> list[str]:
    chosen = f"one group cut at a time, lowest scores first: {curves.scores}; {curves.treatment}"
    said = [f"{chosen}; {curves.sample_count:,} samples"]
    if curves.unremovable:
        reasons: dict[str, list[str]] = {}
        for name, why in curves.unremovable.items():
            reasons.setdefault(why, []).append(name)
        said += [f"nothing can be removed ({why}): {', '.join(names)}" for why, names in reasons.items()]
    return [line for text in said for line in textwrap.wrap(text, SUBTITLE_LETTERS)]
