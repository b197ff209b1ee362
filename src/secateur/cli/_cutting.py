"""What `secateur prune` and `secateur sparsify` have in common; imported when a command runs."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Generic, TypeVar

import typer
from torch import nn

from .. import store
from ..catalogue import find
from ..errors import DataError, MethodError
from ..recovery.finetune import finetune
from ..source import Source, changed, recipe_for
from ..train import Recipe, Tracking, evaluate
from ..train.attachment import Attachment
from ._folder import checkpoints_beside, new_folder
from ._session import NOTHING_REMOVED, Session

COMMANDS = {"channels": "secateur prune", "weights": "secateur sparsify"}  # what a method removes -> who calls it
Result = TypeVar("Result")


@dataclass(frozen=True)
class Request(ABC, Generic[Result]):
    """What the options ask for.

    Attributes:
        source: model and data.
        method: name of the method.
        settings: its settings that differ from the paper's.
        batch_size: images in a batch.
    """

    removes: ClassVar[str]  # as in the catalogue

    source: Source
    method: str
    settings: Mapping[str, Any]
    batch_size: int = field(default=128, kw_only=True)
    made: Any = field(init=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "made", made_method(self.method, self.settings, self.source, removes=self.removes))

    @abstractmethod
    def cut(self, model: nn.Module) -> Result:
        """Return what the one call of the library gives; see there for the errors."""

    @abstractmethod
    def is_whole(self, result: Result) -> bool:
        """Whether nothing was removed, though something was asked."""

    @abstractmethod
    def found(self, result: Result) -> dict[str, Any]:
        """Return what came of it as plain values."""

    @abstractmethod
    def stages(self, model: nn.Module, result: Result) -> dict[str, nn.Module]:
        """Return the model up to now, by the names in `Accuracies`."""

    @abstractmethod
    def write(self, result: Result, folder: Path) -> None:
        """Write what goes beside the model: the plan, and charts."""

    def attachments(self, result: Result) -> Sequence[Attachment]:
        """Return what takes part in fine-tuning."""
        return ()

    @property
    def finetune_tracking(self) -> Tracking | None:
        """Where fine-tuning is shown."""
        return None


def brief(method: str) -> dict[str, Any]:
    """Return settings with which a method that trains is soon through, as a dry run needs it."""
    return dict(find(method).brief)


def made_method(name: str, settings: Mapping[str, Any], source: Source, *, removes: str) -> Any:
    """Return the method with its settings.

    Raises:
        DataError: it reads data, and none was named.
        MethodError: it removes something else, or a setting does not suit it.
        UnknownName: no method of that name.
    """
    entry = find(name)
    if entry.removes != removes:
        raise MethodError(f"--method {name} removes {entry.removes}, not {removes}: call {COMMANDS[entry.removes]}.")
    if {"data", "labels", "training"} & set(entry.needs) and source.data_name is None:
        raise DataError(f"the method {name} reads {' and '.join(entry.needs)}: give --data.")
    try:
        return entry.make(**settings)
    except TypeError as error:
        raise MethodError(f"--set {dict(settings)} does not suit {entry.name}: {error}.") from error


def data_and_task(source: Source, batch_size: int) -> tuple[Any, Any]:
    """Return batches for a method and how to read them; None twice where no data was named."""
    if source.data is None:
        return None, None
    return source.loaders("pruning", batch_size, augment=False).train, source.task


def tuning_of(
    source: Source, recipe: str | None, epochs: int | None, changes: dict[str, Any], batch_size: int | None
) -> tuple[Recipe | None, int]:
    """Return how to fine-tune, None = not, and how many images a batch has.

    Raises:
        DataError: there is nothing to fine-tune on.
        TrainingError: a change makes no sense.
        UnknownName: there is no such recipe, or a recipe has no such value.
    """
    base = recipe_for(source, recipe, {})
    size = batch_size or base.batch_size or 128
    if epochs is None:
        return None, size
    source.needed_data("--finetune")
    return changed(base.finetuning(epochs), changes), size


def carry_out(
    run: Session, request: Request[Any], tuning: Recipe | None, target: Path | None, *, dry_run: bool
) -> None:
    """Cut, fine-tune, measure and save, or with `dry_run` only cut; say what came of it.

    Raises:
        typer.Exit: nothing was removed, though something was asked.
    """
    model = request.source.model()
    result = request.cut(model)
    facts: dict[str, Any] = {"model": request.source.name, "method": request.method, "settings": dict(request.settings)}
    facts |= request.found(result) | {"seed": request.source.seed, "finetune": tuning and asdict(tuning)}
    facts |= {"dry_run": dry_run, "out": None if target is None else str(target)}
    if dry_run:
        epochs = 0 if tuning is None else tuning.epochs
        run.result(f"{result}\nwould fine-tune for {epochs} epochs and write {target or 'nothing'}", facts)
    else:
        with checkpoints_beside(target) as folder:
            final, accuracies = _finish(request, model, result, tuning, folder=folder, progress=run.progress)
            facts |= {"data": request.source.data_name, "test": accuracies and asdict(accuracies)}
            if target is not None:
                _save(final, request, result, facts, target)
        said = (str(result), accuracies and str(accuracies), target and f"saved {target}")
        if target is None:
            run.note("nothing was saved: give --out DIR to keep the model")
        run.result("\n".join(line for line in said if line), facts)
    if request.is_whole(result):
        raise typer.Exit(NOTHING_REMOVED)


@dataclass(frozen=True)
class Accuracies:
    """The test metric of one model through pruning; None = not measured.

    Attributes:
        metric_name: what it is.
        before: of the model that was given.
        as_cut: right after the cut, nothing mended.
        repaired: after the repairs.
        finetuned: after the last epoch of fine-tuning.
    """

    metric_name: str
    before: float
    as_cut: float
    repaired: float | None = None
    finetuned: float | None = None

    def __str__(self) -> str:
        steps = [("before", self.before), ("as cut", self.as_cut), ("repaired", self.repaired)]
        said = [f"{name} {value:.4f}" for name, value in [*steps, ("fine-tuned", self.finetuned)] if value is not None]
        return f"test {self.metric_name}: {', '.join(said)}"


def _finish(
    request: Request[Any],
    model: nn.Module,
    result: Any,
    tuning: Recipe | None,
    *,
    folder: Path | None,
    progress: bool | None,
) -> tuple[nn.Module, Accuracies | None]:
    """Fine-tune if asked, with checkpoints in the folder, and measure on the test part if there is data."""
    source, final = request.source, result.model
    if source.data is None:
        return final, None
    loaders = source.loaders("fine-tuning", request.batch_size, augment=True)

    def metric(of: nn.Module) -> float:
        return evaluate(of, loaders.test, source.task, progress=progress)

    found = {name: metric(stage) for name, stage in request.stages(model, result).items()}
    if tuning is not None:
        final, _ = finetune(
            final,
            loaders.train,
            source.task,
            tuning,
            attachments=request.attachments(result),
            checkpoint_dir=folder,
            progress=progress,
            tracking=request.finetune_tracking,
        )
        found["finetuned"] = metric(final)
    return final, Accuracies(source.task.name, **found)


def _save(final: nn.Module, request: Request[Any], result: Any, facts: dict[str, Any], target: Path) -> None:
    """Write the model, its plan and the facts to a new folder, all or nothing.

    Raises:
        StoreError: it cannot be written.
    """
    with new_folder(target) as folder:
        store.save(final, folder, details=_details(facts))
        (folder / "result.json").write_text(json.dumps(facts, indent=1, default=str), encoding="utf-8")
        request.write(result, folder)


def _details(facts: Mapping[str, Any]) -> dict[str, Any]:
    """Return what goes into the record of a saved model."""
    check = facts.get("verification")
    return {
        "source": facts["model"],
        "method": facts["method"],
        "settings": facts["settings"],
        "budget": facts["budget"],
        "verification_error": check["max_relative_error"] if check else None,
        "notes": {"result": "result.json"},
    }
