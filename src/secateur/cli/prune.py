"""`secateur prune`: make a model smaller, check it, mend it, save it."""

from __future__ import annotations

import typer

from ._options import (
    HOLD_OUT,
    TRACK_DIR,
    BatchSize,
    Classes,
    ConvGroups,
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
from ._session import session


def prune(
    model: Model,
    remove: Remove,
    of: Of = "channels",
    method: Method = "l1_filter",
    settings: Settings = None,
    protect: Protect = None,
    min_keep: MinKeep = 1,
    round_to: RoundTo = 1,
    conv_groups: ConvGroups = "narrow",
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
        from ..source import Source, tracking_of
        from ._cutting import brief, carry_out, tuning_of
        from ._folder import check_free
        from ._pruning import PruneRequest, repairs

        source = Source(model, weights, pretrained, image, classes, data, hold_out, device, seed)
        budget, limits = Budget(remove, of), Limits(tuple(protect or ()), min_keep, round_to)
        target = None if out is None else check_free(out)
        tuning, size = tuning_of(source, recipe, finetune, given, batch_size)
        chosen = brief(method) | chosen if dry_run else chosen
        tracking = tracking_of(track, track_dir, f"{method}-{remove:g}" if target is None else target.name)
        shown = None if dry_run else tracking
        request = PruneRequest(
            source, method, chosen, budget, limits, repairs(repair), shown, conv_groups, batch_size=size
        )
        if track and tuning is None and not request.trains:
            raise MethodError(f"--track: {method} takes no part in training, so there is nothing to show; --finetune?")
        carry_out(run, request, tuning, target, dry_run=dry_run)
