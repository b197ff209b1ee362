"""What surgery did to a model, so that it can be done again to a fresh one without tracing it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from torch import nn

RECORD = "secateur_record"  # attribute of a shrunk model


@dataclass(frozen=True)
class AttributeChange:
    """One attribute that had to follow the narrower tensors.

    Attributes:
        module: path of the module.
        name: attribute; dots reach into an object (``"config.hidden_size"``), ``"sizes[1]"`` into a list or tuple.
        before: value in the original model.
        after: value in the shrunk model.
    """

    module: str
    name: str
    before: Any
    after: Any


@dataclass(frozen=True)
class SurgeryRecord:
    """Everything needed to turn a fresh instance of the original class into the shrunk architecture.

    Attributes:
        kept: tensor name -> for each of its axes that was cut, (axis, kept indices).
        attributes: changed attributes, in the order they were set.
        swapped: module path -> settings of the drop-in that replaced it.
        plan: JSON of the plan.
    """

    kept: dict[str, list[tuple[int, list[int]]]] = field(default_factory=dict)
    attributes: list[AttributeChange] = field(default_factory=list)
    swapped: dict[str, dict[str, Any]] = field(default_factory=dict)
    plan: str = ""


def record_of(model: nn.Module) -> SurgeryRecord | None:
    """Return the record that `shrink` left on a model, or None."""
    found = model.__dict__.get(RECORD)
    return found if isinstance(found, SurgeryRecord) else None
