"""Remove single weights as the options say, and gather what is worth telling; imported when a command runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from ..budget import Budget
from ..errors import ModelError
from ..methods import Pattern
from ..sparsify import SparseResult, sparsify
from ..train.attachment import Attachment
from ._cutting import Request, data_and_task


@dataclass(frozen=True)
class SparsifyRequest(Request[SparseResult]):
    """What the options of `secateur sparsify` ask for.

    Attributes:
        budget: how much goes; None = what the pattern says.
        pattern: N:M, or None.
        protect: modules and parameters that stay whole.
        include: further parameters that can lose weights.
    """

    removes = "weights"

    budget: Budget | None
    pattern: Pattern | None
    protect: tuple[str, ...] = ()
    include: tuple[str, ...] = ()

    def cut(self, model: nn.Module) -> SparseResult:
        """Set weights to zero; see `secateur.sparsify` for the errors."""
        data, task = data_and_task(self.source, self.batch_size)
        return sparsify(
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

    def is_whole(self, result: SparseResult) -> bool:
        """Whether nothing was removed, though something was asked."""
        return not result.plan.removed_count and result.budget.remove > 0

    def found(self, result: SparseResult) -> dict[str, Any]:
        """Return what came of it as plain values."""
        budget, kept = result.budget, result.plan.kept
        return {
            "budget": {"remove": budget.remove, "of": budget.of, "removed": result.removed},
            "pattern": None if self.pattern is None else str(self.pattern),
            "params": result.param_count,
            "zeros": result.plan.removed_count,
            "weights": {name: {"before": m.numel(), "after": int(m.count_nonzero())} for name, m in kept.items()},
        }

    def stages(self, model: nn.Module, result: SparseResult) -> dict[str, nn.Module]:
        """Return the model before, and with its zeros."""
        return {"before": model, "as_cut": result.model}

    def attachments(self, result: SparseResult) -> Sequence[Attachment]:
        """Return what keeps the zeros at zero."""
        return [result.hold()]

    def write(self, result: SparseResult, folder: Path) -> None:
        """Write the plan."""
        result.plan.save(folder / "plan.safetensors")
