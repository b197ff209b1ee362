"""`secateur bench`: how long a model takes before and after pruning."""

from __future__ import annotations

from collections.abc import Callable, Sequence
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

    from ..measure.execution import Executions
    from ..measure.latency import Comparison
    from ..source import Source

Pruned = Annotated[
    str | None,
    typer.Option("--pruned", help="Folder that prune or sparsify wrote with --out.", metavar="DIR"),
]
RemoveNow = Annotated[
    float | None, typer.Option("--remove", help="Prune now, by this fraction of --of.", metavar="FRACTION")
]
Zeros = Annotated[
    float | None,
    typer.Option("--zeros", help="Set this fraction of the weights to zero now.", metavar="FRACTION"),
]
Pattern = Annotated[
    str | None, typer.Option("--pattern", help="Zeros in a pattern, e.g. 2:4; in place of --zeros.", metavar="N:M")
]
Batches = Annotated[str, typer.Option("--batch", help="Batch sizes to time, e.g. 1,32.")]
TimingThreads = Annotated[int, typer.Option("--threads", min=1, help="CPU threads within an operation.")]
Seconds = Annotated[float, typer.Option("--seconds", min=0.001, help="Time each model at least so long.")]


def bench(
    model: Model,
    pruned: Pruned = None,
    remove: RemoveNow = None,
    zeros: Zeros = None,
    pattern: Pattern = None,
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
    """Time a model before and after pruning, in turns: of a saved pruned model, or pruned here and now.

    A model that lost single weights is timed in every form of execution that runs here: as it is, and in the sparse
    formats that torch has kernels for.
    """
    if sum(given is not None for given in (pruned, remove, zeros, pattern)) != 1:
        raise typer.BadParameter("give one of --pruned DIR, --remove FRACTION, --zeros FRACTION and --pattern N:M.")
    sizes, chosen, image = counts(batch, "--batch"), pairs(settings, "--set"), shape(input_shape)
    with session(as_json=as_json, verbose=verbose, quiet=False) as run:
        from ..budget import Budget, Limits
        from ..source import Source
        from ._pruning import PruneRequest

        source = Source(model, weights, shape=image, class_count=classes, device=device, seed=seed)
        before = source.model()
        if pruned is not None:
            after = _load(pruned, before)
        elif remove is not None:
            budget, limits = Budget(remove, of), Limits(tuple(protect or ()), min_keep, round_to)
            after = PruneRequest(source, method, chosen, budget, limits).cut(before).model
        else:
            after = _sparsify(before, zeros, pattern, protect)
        compare: Callable[..., Comparison | Executions] = _executions if _is_sparse(before, after) else _compare
        found = [compare(source, before, after, size, threads, seconds) for size in sizes]
        _report(run, source, pruned, found)


def _load(folder: str, before: nn.Module) -> nn.Module:
    from .. import store

    return store.load(folder, model=before)


def _sparsify(before: nn.Module, zeros: float | None, pattern: str | None, protect: list[str] | None) -> nn.Module:
    from ..budget import Budget
    from ..sparsify import sparsify

    budget = None if zeros is None else Budget(zeros, "weights")
    return sparsify(before, budget=budget, pattern=pattern, protect=tuple(protect or ())).model


def _is_sparse(before: nn.Module, after: nn.Module) -> bool:
    """Whether it lost single weights and no channels, so that only its form of execution can make it faster."""
    from ..measure.params import parameter_count
    from ..weight_plan import masked_in

    return bool(masked_in(after)) and parameter_count(before) == parameter_count(after)


def _executions(
    source: Source, before: nn.Module, after: nn.Module, batch: int, threads: int, seconds: float
) -> Executions:
    from ..measure.execution import executions

    return executions(before, after, source.example(before, batch), threads=threads, min_run_time_s=seconds)


def _compare(
    source: Source, before: nn.Module, after: nn.Module, batch: int, threads: int, seconds: float
) -> Comparison:
    from ..measure.latency import compare

    return compare(before, after, source.example(before, batch), threads=threads, min_run_time_s=seconds)


def _report(run: Session, source: Source, pruned: str | None, found: Sequence[Comparison | Executions]) -> None:
    facts: dict[str, Any] = {"model": source.name, "pruned": pruned, "comparisons": [asdict(one) for one in found]}
    run.result("\n".join(str(one) for one in found), facts)
