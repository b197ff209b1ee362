"""`secateur bench`: how long a model takes before and after pruning."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ._options import (
    Classes,
    Device,
    InputShape,
    Json,
    Method,
    MinKeep,
    Model,
    Of,
    Protect,
    RoundTo,
    Seed,
    Settings,
    Verbose,
    Weights,
    counts,
    pairs,
    shape,
)
from ._session import Session, session

if TYPE_CHECKING:
    from torch import nn

    from ..measure.latency import Comparison
    from ..source import Source
    from ._pruning import Request

Pruned = Annotated[
    str | None,
    typer.Option("--pruned", help="Folder that `secateur prune --out` wrote; else --remove.", metavar="DIR"),
]
RemoveNow = Annotated[
    float | None, typer.Option("--remove", help="Prune now, by this fraction of --of.", metavar="FRACTION")
]
Batches = Annotated[str, typer.Option("--batch", help="Batch sizes to time, e.g. 1,32.")]
TimingThreads = Annotated[int, typer.Option("--threads", min=1, help="CPU threads within an operation.")]
Seconds = Annotated[float, typer.Option("--seconds", min=0.001, help="Time each model at least so long.")]


def bench(
    model: Model,
    pruned: Pruned = None,
    remove: RemoveNow = None,
    of: Of = "channels",
    method: Method = "l1_filter",
    settings: Settings = None,
    protect: Protect = None,
    min_keep: MinKeep = 1,
    round_to: RoundTo = 1,
    batch: Batches = "1,32",
    threads: TimingThreads = 1,
    seconds: Seconds = 1.0,
    weights: Weights = None,
    input_shape: InputShape = None,
    classes: Classes = None,
    device: Device = "cpu",
    seed: Seed = 0,
    as_json: Json = False,
    verbose: Verbose = False,
) -> None:
    """Time a model before and after pruning, in turns: of a saved pruned model, or pruned here and now."""
    if (pruned is None) == (remove is None):
        raise typer.BadParameter("give one of --pruned DIR and --remove FRACTION.")
    sizes, chosen, image = counts(batch, "--batch"), pairs(settings, "--set"), shape(input_shape)
    with session(as_json=as_json, verbose=verbose, quiet=False) as run:
        from ..budget import Budget, Limits
        from ..source import Source
        from ._pruning import Request

        source = Source(model, weights, shape=image, class_count=classes, device=device, seed=seed)
        before = source.model()
        if pruned is not None:
            after = _load(pruned, before)
        else:
            budget, limits = Budget(remove or 0.0, of), Limits(tuple(protect or ()), min_keep, round_to)
            after = _prune(Request(source, method, chosen, budget, limits), before)
        found = [_compare(source, before, after, size, threads, seconds) for size in sizes]
        _report(run, source, pruned, found)


def _load(folder: str, before: nn.Module) -> nn.Module:
    from .. import store

    return store.load(folder, model=before)


def _prune(request: Request, before: nn.Module) -> nn.Module:
    return request.prune(before).model


def _compare(
    source: Source, before: nn.Module, after: nn.Module, batch: int, threads: int, seconds: float
) -> Comparison:
    from ..measure.latency import compare

    return compare(before, after, source.example(before, batch), threads=threads, min_run_time_s=seconds)


def _report(run: Session, source: Source, pruned: str | None, found: list[Comparison]) -> None:
    facts: dict[str, Any] = {"model": source.name, "pruned": pruned, "comparisons": [asdict(one) for one in found]}
    run.result("\n".join(str(one) for one in found), facts)
