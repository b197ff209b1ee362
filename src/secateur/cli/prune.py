"""`secateur prune`: make a model smaller, check it, mend it, save it."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import typer

from ._options import (
    HOLD_OUT,
    TRACK_DIR,
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
    MinKeep,
    Model,
    Of,
    OutOrNot,
    Pretrained,
    Protect,
    Quiet,
    RecipeChanges,
    RecipeName,
    Remove,
    Repair,
    RoundTo,
    Seed,
    Settings,
    Threads,
    Track,
    TrackDir,
    Verbose,
    Weights,
    pairs,
    shape,
)
from ._session import NOTHING_REMOVED, Session, session

if TYPE_CHECKING:
    from pathlib import Path

    from torch import nn

    from ..prune import PruneResult
    from ..train import Recipe
    from ._pruning import Request


def prune(
    model: Model,
    remove: Remove,
    of: Of = "channels",
    method: Method = "l1_filter",
    settings: Settings = None,
    protect: Protect = None,
    min_keep: MinKeep = 1,
    round_to: RoundTo = 1,
    weights: Weights = None,
    pretrained: Pretrained = False,
    input_shape: InputShape = None,
    classes: Classes = None,
    data: Data = None,
    hold_out: HoldOut = HOLD_OUT,
    batch_size: BatchSize = None,
    repair: Repair = None,
    finetune: Finetune = None,
    recipe: RecipeName = None,
    changes: RecipeChanges = None,
    out: OutOrNot = None,
    seed: Seed = 0,
    device: Device = "cpu",
    threads: Threads = None,
    track: Track = None,
    track_dir: TrackDir = TRACK_DIR,
    dry_run: DryRun = False,
    as_json: Json = False,
    verbose: Verbose = False,
    quiet: Quiet = False,
) -> None:
    """Prune a model, verify that the result is exact, repair and fine-tune it, and save it."""
    chosen, given, image = pairs(settings, "--set"), pairs(changes, "--with"), shape(input_shape)
    if given and finetune is None:
        raise typer.BadParameter("only has an effect with --finetune.", param_hint="--with")
    with session(as_json=as_json, verbose=verbose, quiet=quiet, threads=threads) as run:
        from ..budget import Budget, Limits
        from ..errors import MethodError
        from ..source import Source, changed, recipe_for, tracking_of
        from ._folder import check_free
        from ._pruning import Request, brief, repairs

        source = Source(model, weights, pretrained, image, classes, data, hold_out, device, seed)
        budget, limits = Budget(remove, of), Limits(tuple(protect or ()), min_keep, round_to)
        target = None if out is None else check_free(out)
        base = recipe_for(source, recipe, {})
        tuning = None if finetune is None else changed(base.finetuning(finetune), given)
        if tuning is not None:
            source.needed_data("--finetune")
        size = batch_size or base.batch_size or 128
        chosen = brief(method) | chosen if dry_run else chosen
        name = f"{method}-{remove:g}" if target is None else target.name
        tracking = tracking_of(track, track_dir, name)
        shown = None if dry_run else tracking
        request = Request(source, method, chosen, budget, limits, repairs(repair), size, shown)
        if track and tuning is None and not request.trains:
            raise MethodError(f"--track: {method} takes no part in training, so there is nothing to show; --finetune?")
        _run(run, request, tuning, target, dry_run=dry_run)


def _run(run: Session, request: Request, tuning: Recipe | None, target: Path | None, *, dry_run: bool) -> None:
    from ._pruning import facts_of

    model = request.source.model()
    result = request.prune(model)
    facts = facts_of(request, result) | {"dry_run": dry_run, "out": None if target is None else str(target)}
    if dry_run:
        epochs = 0 if tuning is None else tuning.epochs
        text = f"{result}\nwould fine-tune for {epochs} epochs and write {target or 'nothing'}"
        run.result(text, facts | {"finetune": tuning and asdict(tuning)})
    else:
        text, facts = _complete(run, request, model, result, tuning, target, facts)
        run.result(text, facts)
    if result.plan.is_empty and request.budget.remove > 0:
        raise typer.Exit(NOTHING_REMOVED)


def _complete(
    run: Session,
    request: Request,
    model: nn.Module,
    result: PruneResult,
    tuning: Recipe | None,
    target: Path | None,
    facts: dict[str, Any],
) -> tuple[str, dict[str, Any]]:
    from ._pruning import checkpoints_beside, finish, save, stages

    lines = [str(result)]
    with checkpoints_beside(target) as folder:
        small, found = finish(
            request.source,
            result.model,
            tuning,
            before=stages(request, model, result),
            batch_size=request.batch_size,
            folder=folder,
            progress=run.progress,
            tracking=request.finetune_tracking,
        )
        facts = facts | {
            "data": request.source.data_name,
            "test": found and asdict(found),
            "finetune": tuning and asdict(tuning),
        }
        if found is not None:
            lines.append(str(found))
        if target is not None:
            save(small, result, facts, target)
            lines.append(f"saved {target}")
    if target is None:
        run.note("nothing was saved: give --out DIR to keep the smaller model")
    return "\n".join(lines), facts
