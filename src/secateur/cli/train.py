"""`secateur train`: one of our models, or yours, on one of our data sets."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ._options import (
    HOLD_OUT,
    TRACK_DIR,
    BatchSize,
    Classes,
    Data,
    Device,
    DryRun,
    HoldOut,
    InputShape,
    Json,
    Model,
    Out,
    Pretrained,
    Quiet,
    RecipeChanges,
    RecipeName,
    Seed,
    Threads,
    Track,
    TrackDir,
    Verbose,
    Weights,
    pairs,
    shape,
)
from ._session import Session, session

if TYPE_CHECKING:
    from torch import nn

    from ..source import Source
    from ..train import Recipe, Tracking, TrainResult

Epochs = Annotated[int | None, typer.Option("--epochs", help="Length of the schedule. [the recipe's]")]


def train(
    model: Model,
    out: Out,
    data: Data = "digits",
    recipe: RecipeName = None,
    epochs: Epochs = None,
    changes: RecipeChanges = None,
    batch_size: BatchSize = None,
    hold_out: HoldOut = HOLD_OUT,
    weights: Weights = None,
    pretrained: Pretrained = False,
    input_shape: InputShape = None,
    classes: Classes = None,
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
    """Train a model and save its weights (safetensors) with a record of the run (JSON), both at once or not at all.

    Checkpoints lie beside the folder until it is written: the same command goes on where a killed one stopped.
    """
    given = pairs(changes, "--with") | ({} if epochs is None else {"epochs": epochs})
    with session(as_json=as_json, verbose=verbose, quiet=quiet, threads=threads) as run:
        from ..source import Source, recipe_for, tracking_of
        from ._folder import check_free

        source = Source(model, weights, pretrained, shape(input_shape), classes, data, hold_out, device, seed)
        chosen = recipe_for(source, recipe, given)
        chosen = chosen if batch_size is None else chosen.replace(batch_size=batch_size)
        target = check_free(out)
        built = source.model()
        tracking = tracking_of(track, track_dir, target.name)
        facts = _plan(source, chosen, built) | {"out": str(target), "dry_run": dry_run}
        if dry_run:
            run.result(f"would train {model}: {_sentence(facts)}; would write {target}", facts)
            return
        facts |= _train_and_save(run, source, chosen, built, target, tracking=tracking)
        run.result(f"trained {model}: {_sentence(facts)}; test {_metric(facts)}\nsaved {target}", facts)


def _plan(source: Source, recipe: Recipe, model: nn.Module) -> dict[str, Any]:
    from ..measure.params import parameter_count

    data = source.training("training")
    return {
        "model": source.name,
        "data": source.data_name,
        "classes": data.class_count,
        "input_shape": list(data.image_shape),
        "hold_out": source.hold_out,
        "train_images": len(data.train_labels),
        "params": parameter_count(model),
        "recipe": dataclasses.asdict(recipe),
    }


def _train_and_save(
    run: Session, source: Source, recipe: Recipe, model: nn.Module, target: Path, *, tracking: Tracking | None
) -> dict[str, Any]:
    from ..train import evaluate, fit
    from ._folder import checkpoints_beside

    loaders = source.loaders("training", recipe.batch_size or 128, augment=True)
    with checkpoints_beside(target) as checkpoints:
        result = fit(
            model,
            loaders.train,
            source.task,
            recipe,
            checkpoint_dir=checkpoints,
            run_id=f"{source.name} on {source.data_name}, hold-out {source.hold_out}, from {source.weights}",
            progress=run.progress,
            tracking=tracking,
        )
        metric = evaluate(model, loaders.test, source.task, progress=run.progress)
        facts = _outcome(result, metric)
        _save(model, target, _plan(source, recipe, model) | facts)
    return facts


def _outcome(result: TrainResult, metric: float) -> dict[str, Any]:
    return {
        "metric_name": result.metric_name,
        "test_metric": metric,
        "train_loss": [record.loss for record in result.history],
        "seconds": round(result.seconds, 2),
        "resumed_from_step": result.resumed_from,
    }


def _save(model: nn.Module, target: Path, facts: dict[str, Any]) -> None:
    import torch
    from safetensors.torch import save_model

    from ..source import WEIGHTS_FILE
    from ._folder import new_folder

    with new_folder(target) as folder:
        save_model(model, str(folder / WEIGHTS_FILE), metadata={"secateur": "state dict"})
        record = {"format": 1, **facts, "torch": torch.__version__}
        (folder / "train.json").write_text(json.dumps(record, indent=1), encoding="utf-8")


def _sentence(facts: dict[str, Any]) -> str:
    recipe = facts["recipe"]
    return (
        f"{facts['params']:,} parameters, {facts['train_images']:,} images of {facts['data']}, "
        f"{recipe['epochs']} epochs of {recipe['optimizer']} from lr {recipe['lr']:g}, seed {recipe['seed']}"
    )


def _metric(facts: dict[str, Any]) -> str:
    return f"{facts['metric_name']} {facts['test_metric']:.4f} after the last epoch ({facts['seconds']:.0f} s)"
