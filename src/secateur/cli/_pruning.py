"""Prune as the options say, and gather what is worth telling; imported when a command runs."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import nn

from ..budget import Budget, Limits
from ..errors import MethodError, MissingExtra
from ..graph.costs import Costs
from ..graph.groups import trace
from ..methods import History
from ..methods._attached import TrainingMethod
from ..prune import REPAIRS, PruneResult, prune
from ..report.training import draw_training
from ..surgery.shrink import shrink
from ..train import Tracking
from ._cutting import Request, data_and_task

log = logging.getLogger(__name__)
COSTS = ("channels", "macs", "params", "bytes")


@dataclass(frozen=True)
class PruneRequest(Request[PruneResult]):
    """What the options of `secateur prune` ask for.

    Attributes:
        budget: how much goes.
        limits: what every plan respects.
        repair: what to mend; None = what `secateur.prune` does by itself.
        tracking: where training is shown, that of the method and of fine-tuning.
        conv_groups: as in `trace`.
    """

    removes = "channels"

    budget: Budget
    limits: Limits
    repair: tuple[str, ...] | None = None
    tracking: Tracking | None = None
    conv_groups: str = "narrow"

    @property
    def trains(self) -> bool:
        """Whether the method takes part in training."""
        return isinstance(self.made, TrainingMethod)

    @property
    def finetune_tracking(self) -> Tracking | None:
        """Where fine-tuning is shown: in a run of its own after a method that trains, whose epochs it has not."""
        if self.tracking is None or not self.trains:
            return self.tracking
        return replace(self.tracking, run=f"{self.tracking.run}-finetune")

    def cut(self, model: nn.Module) -> PruneResult:
        """Prune; see `secateur.prune` for the errors."""
        data, task = data_and_task(self.source, self.batch_size)
        example = self.source.example(model)
        return prune(
            model,
            example,
            budget=self.budget,
            method=self.made,
            data=data,
            task=task,
            limits=self.limits,
            repair=self.repair,
            seed=self.source.seed,
            graph=trace(model, example, conv_groups=self.conv_groups),
            tracking=self.tracking if self.trains else None,
        )

    def is_whole(self, result: PruneResult) -> bool:
        """Whether nothing was removed, though something was asked."""
        return result.plan.is_empty and self.budget.remove > 0

    def found(self, result: PruneResult) -> dict[str, Any]:
        """Return what came of it as plain values."""
        check, plan, history = result.verification, result.plan, _history_of(result)
        told = (
            {name: getattr(check, name) for name in ("is_exact", "max_relative_error", "tolerance")} if check else None
        )
        return {
            "budget": {"remove": self.budget.remove, "of": self.budget.of, "removed": result.removed},
            "before": _costs(result.before),
            "after": _costs(result.after),
            "widths": {name: {"before": plan.widths[name], "after": len(plan.kept[name])} for name in plan},
            "verification": told,
            **({} if history is None else {"history": history.to_dict()}),
        }

    def stages(self, model: nn.Module, result: PruneResult) -> dict[str, nn.Module]:
        """Return the model before, as cut and, if something is mended, repaired."""
        found = {"before": model, "as_cut": shrink(result.decision.model or model, result.graph, result.plan)}
        return found if self.repair == () else found | {"repaired": result.model}

    def write(self, result: PruneResult, folder: Path) -> None:
        """Write the plan, and how training went where the method took part in it."""
        result.plan.save(folder / "plan.json")
        if (history := _history_of(result)) is not None:
            _draw(history, folder / "training.html")


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


def _history_of(result: PruneResult) -> History | None:
    """Return where channels stood after each epoch, if the method took part in training."""
    history = result.decision.history
    return history if history is not None and history.epochs else None


def _costs(costs: Costs) -> dict[str, int]:
    return {what: costs.of(what) for what in COSTS}


def _draw(history: History, path: Path) -> None:
    """Draw how training went, where the extra for reports is installed; its figures are in the result in any case."""
    try:
        draw_training(history, path_html=path)
    except MissingExtra as error:
        log.warning("%s is not written: %s", path.name, error)
