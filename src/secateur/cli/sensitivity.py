"""`secateur sensitivity`: how each group of channels takes being cut."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ._options import (
    HOLD_OUT,
    Classes,
    ConvGroups,
    Data,
    Device,
    DryRun,
    HoldOut,
    InputShape,
    Json,
    Method,
    Model,
    Out,
    Pretrained,
    Protect,
    Quiet,
    Seed,
    Settings,
    Threads,
    Verbose,
    Weights,
    pairs,
    shape,
)
from ._session import session

if TYPE_CHECKING:
    from pathlib import Path

    from ..graph import ChannelGraph
    from ..methods.sensitivity import SensitivityCurves
    from ..source import Source

Groups = Annotated[
    list[str] | None,
    typer.Option("--group", help="Only this group or layer; may be repeated. [all]", metavar="NAME"),
]
Steps = Annotated[
    str, typer.Option("--removes", help="Fractions to try of each group, with commas between.", metavar="LIST")
]
Tolerance = Annotated[
    float,
    typer.Option("--tolerance", min=0.0, help="Drop of the metric for which to say how much each group can lose."),
]
EIGHTHS = "0.125,0.25,0.375,0.5,0.625,0.75,0.875"


def sensitivity(
    model: Model,
    out: Out,
    data: Data = "digits",
    method: Method = "l1_filter",
    settings: Settings = None,
    group: Groups = None,
    removes: Steps = EIGHTHS,
    tolerance: Tolerance = 0.01,
    protect: Protect = None,
    conv_groups: ConvGroups = "narrow",
    hold_out: HoldOut = HOLD_OUT,
    weights: Weights = None,
    pretrained: Pretrained = False,
    input_shape: InputShape = None,
    classes: Classes = None,
    seed: Seed = 0,
    device: Device = "cpu",
    threads: Threads = None,
    dry_run: DryRun = False,
    as_json: Json = False,
    verbose: Verbose = False,
    quiet: Quiet = False,
) -> None:
    """Cut one group of channels at a time, see how much worse the model gets, and draw the curves.

    The held-out part of the training images decides, so the model must have been trained with the same --hold-out.
    Writes curves.json, curves.png and curves.html.
    """
    chosen, image, fractions = pairs(settings, "--set"), shape(input_shape), _fractions(removes)
    with session(as_json=as_json, verbose=verbose, quiet=quiet, threads=threads) as run:
        from ..budget import Limits
        from ..graph import trace
        from ..methods.sensitivity import sensitivity as analyse
        from ..source import Source
        from ._cutting import made_method
        from ._folder import check_free

        source = Source(model, weights, pretrained, image, classes, data, hold_out, device, seed)
        target, scorer = check_free(out), made_method(method, chosen, source, removes="channels")
        held_out, built = source.validation("a sensitivity analysis"), source.model()
        graph = trace(built, source.example(built), conv_groups=conv_groups)
        if dry_run:
            facts = _intended(source, graph, group, fractions) | {"out": str(target), "dry_run": True}
            run.result(_said(facts), facts)
            return
        curves = analyse(
            built,
            source.example(built),
            data=held_out,
            task=source.task,
            removes=fractions,
            scores=scorer,
            groups=group,
            limits=Limits(tuple(protect or ())),
            graph=graph,
            seed=seed,
            progress=run.progress,
        )
        _save(curves, target)
        within = curves.fractions_within(tolerance)
        run.result(_text(curves, within, tolerance, target), _facts(curves, within, tolerance, target))


def _fractions(text: str) -> tuple[float, ...]:
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise typer.BadParameter(f"{text!r} is no list of fractions, e.g. 0.25,0.5.", param_hint="--removes") from None


def _intended(
    source: Source, graph: ChannelGraph, groups: list[str] | None, fractions: tuple[float, ...]
) -> dict[str, Any]:
    return {
        "model": source.name,
        "data": source.data_name,
        "images": len(source.training("a sensitivity analysis").test_labels),
        "groups": groups or list(graph.groups),
        "removes": list(fractions),
    }


def _said(facts: dict[str, Any]) -> str:
    return (
        f"would evaluate {facts['model']} on {facts['images']} held-out images of {facts['data']}, without "
        f"{', '.join(f'{fraction:.0%}' for fraction in facts['removes'])} of each of {len(facts['groups'])} groups, "
        f"and write {facts['out']}"
    )


def _save(curves: SensitivityCurves, target: Path) -> None:
    from ..report.curves import draw_sensitivity
    from ._folder import new_folder

    with new_folder(target) as folder:
        curves.save(folder / "curves.json")
        draw_sensitivity(curves, path_png=folder / "curves.png", path_html=folder / "curves.html")


def _text(curves: SensitivityCurves, within: dict[str, float], tolerance: float, target: Path) -> str:
    widest = max(len(name) for name in within)
    lines = [f"  {name:<{widest}}  {fraction:.1%}" for name, fraction in within.items()]
    head = f"each group alone can lose so much with {curves.metric_name} at most {tolerance:g} worse:"
    return "\n".join([str(curves), "", head, *lines, f"saved {target}"])


def _facts(curves: SensitivityCurves, within: dict[str, float], tolerance: float, target: Path) -> dict[str, Any]:
    return {
        "curves": json.loads(curves.to_json()),
        "tolerance": tolerance,
        "fractions_within": within,
        "out": str(target),
    }
