"""Remove single weights as the options say, and gather what is worth telling; imported when a command runs."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from .. import store
from ..budget import Budget
from ..errors import ModelError
from ..methods import Pattern
from ..source import Source
from ..sparsify import SparseResult
from ..sparsify import sparsify as sparsify_model
from ._folder import new_folder
from ._pruning import data_and_task, details_of, made_method


@dataclass(frozen=True)
class Request:
    """What the options ask for.

    Attributes:
        source: model and data.
        method: name of the method.
        settings: its settings that differ from the paper's.
        budget: how much goes; None = what the pattern says.
        pattern: N:M, or None.
        protect: modules and parameters that stay whole.
        include: further parameters that can lose weights.
        batch_size: images in a batch.
    """

    source: Source
    method: str
    settings: Mapping[str, Any]
    budget: Budget | None
    pattern: Pattern | None
    protect: tuple[str, ...] = ()
    include: tuple[str, ...] = ()
    batch_size: int = 128
    made: Any = field(init=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "made", made_method(self.method, self.settings, self.source, removes="weights"))

    def sparsify(self, model: nn.Module) -> SparseResult:
        """Set weights to zero; see `secateur.sparsify` for the errors."""
        data, task = data_and_task(self.source, self.batch_size)
        return sparsify_model(
            model,
            self._example(model),
            budget=self.budget,
            method=self.made,
            pattern=self.pattern,
            protect=self.protect,
            include=self.include,
            data=data,
            task=task,
            seed=self.source.seed,
        )

    def _example(self, model: nn.Module) -> Any:
        try:
            return self.source.example(model)
        except ModelError:  # few methods ask for one; those say so
            return ()


def facts_of(request: Request, result: SparseResult) -> dict[str, Any]:
    """Return what came of it as plain values."""
    budget, kept = result.budget, result.plan.kept
    return {
        "model": request.source.name,
        "method": request.method,
        "settings": dict(request.settings),
        "budget": {"remove": budget.remove, "of": budget.of, "removed": result.removed},
        "pattern": None if request.pattern is None else str(request.pattern),
        "params": result.param_count,
        "zeros": result.plan.removed_count,
        "weights": {name: {"before": mask.numel(), "after": int(mask.count_nonzero())} for name, mask in kept.items()},
        "seed": request.source.seed,
    }


def save(sparse: nn.Module, result: SparseResult, facts: dict[str, Any], target: Path) -> None:
    """Write the sparse model, its plan and the facts to a new folder, all or nothing.

    Raises:
        StoreError: it cannot be written.
    """
    with new_folder(target) as folder:
        store.save(sparse, folder, details=details_of(facts))
        result.plan.save(folder / "plan.safetensors")
        (folder / "result.json").write_text(json.dumps(facts, indent=1, default=str), encoding="utf-8")
