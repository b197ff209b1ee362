"""Prune as the options say, and gather what is worth telling; imported when a command runs."""

from __future__ import annotations

import contextlib
import json
import logging
import shutil
from collections.abc import Mapping
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
from ._folder import new_folder

log = logging.getLogger(__name__)
COSTS = ("channels", "macs", "params", "bytes")


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
        entry = find(self.method)
        if {"data", "labels", "training"} & set(entry.needs) and self.source.data_name is None:
            raise DataError(f"the method {self.method} reads {' and '.join(entry.needs)}: give --data.")
        object.__setattr__(self, "made", _made(entry, self.settings))

    @property
    def trains(self) -> bool:
        """Whether the method takes part in training."""
        return isinstance(self.made, TrainingMethod)

    def prune(self, model: nn.Module) -> PruneResult:
        """Prune; see `secateur.prune` for the errors."""
        has_data = self.source.data is not None
        data = self.source.loaders("pruning", self.batch_size, augment=False).train if has_data else None
        return prune_model(
            model,
            self.source.example(model),
            budget=self.budget,
            method=self.made,
            data=data,
            task=self.source.task if has_data else None,
            limits=self.limits,
            repair=self.repair,
            seed=self.source.seed,
            tracking=self.tracking if self.trains else None,
        )


def brief(method: str) -> dict[str, Any]:
    """Return settings with which a method that trains is soon through, as a dry run needs it."""
    return dict(find(method).brief)


def _made(entry: Any, settings: Mapping[str, Any]) -> Any:
    try:
        return entry.make(**settings)
    except TypeError as error:
        raise MethodError(f"--set {dict(settings)} does not suit {entry.name}: {error}.") from error


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


def finish(
    request: Request,
    model: nn.Module,
    result: PruneResult,
    tuning: Recipe | None,
    *,
    folder: Path | None,
    progress: bool | None,
) -> tuple[nn.Module, Accuracies | None]:
    """Fine-tune if asked, and measure on the test part if there is data.

    Args:
        request: what was asked.
        model: the model before.
        result: what pruning gave.
        tuning: how to fine-tune; None = not.
        folder: where checkpoints go; None = nowhere.
        progress: False = no bars.
    """
    if request.source.data is None:
        return result.model, None
    loaders = request.source.loaders("fine-tuning", request.batch_size, augment=True)

    def metric(of: nn.Module) -> float:
        return evaluate(of, loaders.test, request.source.task, progress=progress)

    cut = shrink(result.decision.model or model, result.graph, result.plan)
    found = {"before": metric(model), "as_cut": metric(cut)}
    if request.repair != ():
        found["repaired"] = metric(result.model)
    small = result.model
    if tuning is not None:
        tracking = request.tracking
        if tracking is not None and request.trains:
            tracking = replace(tracking, run=f"{tracking.run}-finetune")  # the other run has epochs of its own
        small, _ = finetune(
            small,
            loaders.train,
            request.source.task,
            tuning,
            checkpoint_dir=folder,
            progress=progress,
            tracking=tracking,
        )
        found["finetuned"] = metric(small)
    return small, Accuracies(request.source.task.name, **found)


def save(small: nn.Module, result: PruneResult, facts: dict[str, Any], target: Path) -> None:
    """Write the smaller model, its plan and the facts to a new folder, all or nothing.

    Raises:
        StoreError: it cannot be written.
    """
    check = facts["verification"]
    details = {
        "source": facts["model"],
        "method": facts["method"],
        "settings": facts["settings"],
        "budget": facts["budget"],
        "verification_error": check["max_relative_error"] if check else None,
        "notes": {"result": "result.json"},
    }
    with new_folder(target) as folder:
        store.save(small, folder, details=details)
        result.plan.save(folder / "plan.json")
        (folder / "result.json").write_text(json.dumps(facts, indent=1, default=str), encoding="utf-8")
        if "history" in facts and result.decision.history is not None:
            draw(result.decision.history, folder / "training.html")


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
