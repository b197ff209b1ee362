"""`secateur sparsify`: set single weights to zero, train on with the zeros held, save it."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ._options import (
    HOLD_OUT,
    BatchSize,
    Classes,
    Data,
    Device,
    DryRun,
    Finetune,
    HoldOut,
    InputShape,
    Json,
    Method,
    Model,
    OutOrNot,
    Pretrained,
    Quiet,
    RecipeChanges,
    RecipeName,
    Seed,
    Settings,
    Threads,
    Verbose,
    Weights,
    pairs,
    shape,
)
from ._session import NOTHING_REMOVED, Session, session

if TYPE_CHECKING:
    from pathlib import Path

    from torch import nn

    from ..sparsify import SparseResult
    from ..train import Recipe
    from ._sparsifying import Request

RemoveOrNot = Annotated[
    float | None,
    typer.Option("--remove", help="Fraction to set to zero, 0.9 = 90 %. [what --pattern says]", metavar="FRACTION"),
]
OfWeights = Annotated[
    str, typer.Option("--of", help="What the fraction counts: weights (those that can go) or params (all).")
]
PatternText = Annotated[
    str | None, typer.Option("--pattern", help="2:4 = of each 4 consecutive inputs 2 weights stay.", metavar="N:M")
]
Uneven = Annotated[
    str,
    typer.Option("--uneven", help="A layer whose inputs are no multiple of M: refuse, skip or pad it.", metavar="WHAT"),
]
ProtectWeights = Annotated[
    list[str] | None,
    typer.Option("--protect", help="Module or parameter that stays whole; may be repeated.", metavar="NAME"),
]
Include = Annotated[
    list[str] | None,
    typer.Option("--include", help="Parameter that can lose weights too; may be repeated.", metavar="PARAMETER"),
]


def sparsify(
    model: Model,
    remove: RemoveOrNot = None,
    of: OfWeights = "weights",
    pattern: PatternText = None,
    uneven: Uneven = "refuse",
    method: Method = "magnitude",
    settings: Settings = None,
    protect: ProtectWeights = None,
    include: Include = None,
    weights: Weights = None,
    pretrained: Pretrained = False,
    input_shape: InputShape = None,
    classes: Classes = None,
    data: Data = None,
    hold_out: HoldOut = HOLD_OUT,
    batch_size: BatchSize = None,
    finetune: Finetune = None,
    recipe: RecipeName = None,
    changes: RecipeChanges = None,
    out: OutOrNot = None,
    seed: Seed = 0,
    device: Device = "cpu",
    threads: Threads = None,
    dry_run: DryRun = False,
    as_json: Json = False,
    verbose: Verbose = False,
    quiet: Quiet = False,
) -> None:
    """Set single weights to zero, exactly as many as asked, train on with the zeros held, and save the model."""
    chosen, given, image = pairs(settings, "--set"), pairs(changes, "--with"), shape(input_shape)
    if given and finetune is None:
        raise typer.BadParameter("only has an effect with --finetune.", param_hint="--with")
    if remove is None and pattern is None:
        raise typer.BadParameter("give --remove FRACTION, --pattern N:M, or both.")
    with session(as_json=as_json, verbose=verbose, quiet=quiet, threads=threads) as run:
        from ..budget import Budget
        from ..methods import Pattern
        from ..source import Source, changed, recipe_for
        from ._folder import check_free
        from ._pruning import brief
        from ._sparsifying import Request

        source = Source(model, weights, pretrained, image, classes, data, hold_out, device, seed)
        budget = None if remove is None else Budget(remove, of)
        blocks = None if pattern is None else Pattern.parse(pattern, uneven)
        target = None if out is None else check_free(out)
        base = recipe_for(source, recipe, {})
        tuning = None if finetune is None else changed(base.finetuning(finetune), given)
        if tuning is not None:
            source.needed_data("--finetune")
        size = batch_size or base.batch_size or 128
        chosen = brief(method) | chosen if dry_run else chosen
        names = tuple(protect or ()), tuple(include or ())
        request = Request(source, method, chosen, budget, blocks, *names, batch_size=size)
        _run(run, request, tuning, target, dry_run=dry_run)


def _run(run: Session, request: Request, tuning: Recipe | None, target: Path | None, *, dry_run: bool) -> None:
    from ._sparsifying import facts_of

    model = request.source.model()
    result = request.sparsify(model)
    facts = facts_of(request, result) | {"dry_run": dry_run, "out": None if target is None else str(target)}
    if dry_run:
        epochs = 0 if tuning is None else tuning.epochs
        text = f"{result}\nwould fine-tune for {epochs} epochs and write {target or 'nothing'}"
        run.result(text, facts | {"finetune": tuning and asdict(tuning)})
    else:
        text, facts = _complete(run, request, model, result, tuning, target, facts)
        run.result(text, facts)
    if not result.plan.removed_count and result.budget.remove > 0:
        raise typer.Exit(NOTHING_REMOVED)


def _complete(
    run: Session,
    request: Request,
    model: nn.Module,
    result: SparseResult,
    tuning: Recipe | None,
    target: Path | None,
    facts: dict[str, Any],
) -> tuple[str, dict[str, Any]]:
    from ._pruning import checkpoints_beside, finish
    from ._sparsifying import save

    lines = [str(result)]
    with checkpoints_beside(target) as folder:
        sparse, found = finish(
            request.source,
            result.model,
            tuning,
            before={"before": model, "as_cut": result.model},
            batch_size=request.batch_size,
            folder=folder,
            progress=run.progress,
            attachments=[result.hold()],
        )
        facts = facts | {
            "data": request.source.data_name,
            "test": found and asdict(found),
            "finetune": tuning and asdict(tuning),
        }
        if found is not None:
            lines.append(str(found))
        if target is not None:
            save(sparse, result, facts, target)
            lines.append(f"saved {target}")
    if target is None:
        run.note("nothing was saved: give --out DIR to keep the sparse model")
    return "\n".join(lines), facts
