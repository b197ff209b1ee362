"""`secateur sparsify`: set single weights to zero, train on with the zeros held, save it."""

from __future__ import annotations

from typing import Annotated

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
from ._session import session

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
        from ..source import Source
        from ._cutting import brief, carry_out, tuning_of
        from ._folder import check_free
        from ._sparsifying import SparsifyRequest

        source = Source(model, weights, pretrained, image, classes, data, hold_out, device, seed)
        budget = None if remove is None else Budget(remove, of)
        blocks = None if pattern is None else Pattern.parse(pattern, uneven)
        target = None if out is None else check_free(out)
        tuning, size = tuning_of(source, recipe, finetune, given, batch_size)
        chosen = brief(method) | chosen if dry_run else chosen
        names = tuple(protect or ()), tuple(include or ())
        request = SparsifyRequest(source, method, chosen, budget, blocks, *names, batch_size=size)
        carry_out(run, request, tuning, target, dry_run=dry_run)
