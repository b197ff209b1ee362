"""Prune as the options say, and gather what is worth telling; imported when a command runs."""

from __future__ import annotations

import contextlib
import json
import logging
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from torch import nn

from .. import store
from ..budget import Budget, Limits
from ..catalogue import find
from ..errors import DataError, MethodError, MissingExtra
from ..graph.costs import Costs
from ..methods import History
from ..methods._attached import TrainingMethod
from ..prune import REPAIRS, PruneResult
from ..prune import prune as prune_model
from ..recovery.finetune import finetune
from ..report.training import draw_training
from ..source import Source
from ..surgery.shrink import shrink
from ..train import Recipe, Tracking, evaluate
from ..train.attachment import Attachment
from ._folder import new_folder

log = logging.getLogger(__name__)
COSTS = ("channels", "macs", "params", "bytes")
COMMANDS = {"channels": "secateur prune", "weights": "secateur sparsify"}  # what a method removes -> who calls it


@dataclass(frozen=True)
class Request:
    """What the options ask for.

    Attributes:
        source: model and data.
        method: name of the method.
        settings: its settings that differ from the paper's.
        budget: how much goes.
        limits: what every plan respects.
        repair: what to mend; None = what `secateur.prune` does by itself.
        batch_size: images in a batch.
        tracking: where training is shown, that of the method and of fine-tuning.
    """

    source: Source
    method: str
    settings: Mapping[str, Any]
    budget: Budget
    limits: Limits
    repair: tuple[str, ...] | None = None
    batch_size: int = 128
    tracking: Tracking | None = None
    made: Any = field(init=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "made", made_method(self.method, self.settings, self.source, removes="channels"))

    @property
    def finetune_tracking(self) -> Tracking | None:
        """Where fine-tuning is shown: in a run of its own after a method that trains, whose epochs it has not."""
        if self.tracking is None or not self.trains:
            return self.tracking
        return replace(self.tracking, run=f"{self.tracking.run}-finetune")

    @property
    def trains(self) -> bool:
        """Whether the method takes part in training."""
        return isinstance(self.made, TrainingMethod)

    def prune(self, model: nn.Module) -> PruneResult:
        """Prune; see `secateur.prune` for the errors."""
        data, task = data_and_task(self.source, self.batch_size)
        return prune_model(
            model,
            self.source.example(model),
            budget=self.budget,
            method=self.made,
            data=data,
            task=task,
            limits=self.limits,
            repair=self.repair,
            seed=self.source.seed,
            tracking=self.tracking if self.trains else None,
        )


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


def repairs(names: list[str] | None) -> tuple[str, ...] | None:
    """Return what to mend; `none` for nothing, None where nothing was said.

    Raises:
        MethodError: `none` beside another.
    """
    if not names:
        return None
    if "none" in names:
        if len(names) > 1:
            raise MethodError(f"--repair none excludes --repair {', '.join(n for n in names if n != 'none')}.")
        return ()
    if unknown := [name for name in names if name not in REPAIRS]:
        raise MethodError(f"--repair {unknown[0]}: expected none or some of {', '.join(REPAIRS)}.")
    return tuple(names)


def facts_of(request: Request, result: PruneResult) -> dict[str, Any]:
    """Return what came of it as plain values."""
    check, plan = result.verification, result.plan
    return {
        "model": request.source.name,
        "method": request.method,
        "settings": dict(request.settings),
        "budget": {"remove": request.budget.remove, "of": request.budget.of, "removed": result.removed},
        "before": _costs(result.before),
        "after": _costs(result.after),
        "widths": {name: {"before": plan.widths[name], "after": len(plan.kept[name])} for name in plan},
        "verification": None
        if check is None
        else {
            "is_exact": check.is_exact,
            "max_relative_error": check.max_relative_error,
            "tolerance": check.tolerance,
        },
        "seed": request.source.seed,
        **history_of(result),
    }


def history_of(result: PruneResult) -> dict[str, Any]:
    """Return where channels stood after each epoch, if the method took part in training."""
    history = result.decision.history
    return {"history": history.to_dict()} if history is not None and history.epochs else {}


def _costs(costs: Costs) -> dict[str, int]:
    return {what: costs.of(what) for what in COSTS}


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


def stages(request: Request, model: nn.Module, result: PruneResult) -> dict[str, nn.Module]:
    """Return the model before, as cut and repaired, as far as there is data to tell them apart."""
    if request.source.data is None:
        return {}
    found = {"before": model, "as_cut": shrink(result.decision.model or model, result.graph, result.plan)}
    return found if request.repair == () else found | {"repaired": result.model}


def finish(
    source: Source,
    small: nn.Module,
    tuning: Recipe | None,
    *,
    before: Mapping[str, nn.Module],
    batch_size: int,
    folder: Path | None,
    progress: bool | None,
    attachments: Sequence[Attachment] = (),
    tracking: Tracking | None = None,
) -> tuple[nn.Module, Accuracies | None]:
    """Fine-tune if asked, and measure on the test part if there is data.

    Args:
        source: model and data.
        small: what pruning gave.
        tuning: how to fine-tune; None = not.
        before: the model's earlier stages, by their names in `Accuracies`.
        batch_size: images in a batch.
        folder: where checkpoints go; None = nowhere.
        progress: False = no bars.
        attachments: what takes part in the fine-tuning.
        tracking: where to show it; None = nowhere.
    """
    if source.data is None:
        return small, None
    loaders = source.loaders("fine-tuning", batch_size, augment=True)

    def metric(of: nn.Module) -> float:
        return evaluate(of, loaders.test, source.task, progress=progress)

    found = {name: metric(stage) for name, stage in before.items()}
    if tuning is not None:
        small, _ = finetune(
            small,
            loaders.train,
            source.task,
            tuning,
            attachments=attachments,
            checkpoint_dir=folder,
            progress=progress,
            tracking=tracking,
        )
        found["finetuned"] = metric(small)
    return small, Accuracies(source.task.name, **found)


def save(small: nn.Module, result: PruneResult, facts: dict[str, Any], target: Path) -> None:
    """Write the smaller model, its plan and the facts to a new folder, all or nothing.

    Raises:
        StoreError: it cannot be written.
    """
    with new_folder(target) as folder:
        store.save(small, folder, details=details_of(facts))
        result.plan.save(folder / "plan.json")
        (folder / "result.json").write_text(json.dumps(facts, indent=1, default=str), encoding="utf-8")
        if "history" in facts and result.decision.history is not None:
            draw(result.decision.history, folder / "training.html")


def details_of(facts: Mapping[str, Any]) -> dict[str, Any]:
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


def draw(history: History, path: Path) -> None:
    """Draw how training went, where the extra for reports is installed; its figures are in the result in any case."""
    try:
        draw_training(history, path_html=path)
    except MissingExtra as error:
        log.warning("%s is not written: %s", path.name, error)


@contextlib.contextmanager
def checkpoints_beside(target: Path | None) -> Any:
    """Give the folder for checkpoints of what will be `target`; it is removed if the block comes to its end."""
    folder = None if target is None else target.with_name(f"{target.name}.checkpoints")
    yield folder
    if folder is not None:
        shutil.rmtree(folder, ignore_errors=True)
