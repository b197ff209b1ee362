"""What surgery did to a model, so that it can be done again to a fresh one without tracing it."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from torch import nn

from ..graph.select import SELECT

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
        swapped: module path -> settings of the drop-in that replaced it: an attention that lost something, or what
            stands where a module of a removed residual branch was.
        plan: JSON of the plan; after several cuts in a row, of the last one, in the channels that it found.
        shapes: tensor name -> shape before the cut, for every name in `kept`.
        selections: paths of the norms and layers that a channel selection was put at; its index is in `kept`.

    Indices, shapes and values before are those of the original class, also after several cuts in a row.
    """

    kept: dict[str, list[tuple[int, list[int]]]] = field(default_factory=dict)
    attributes: list[AttributeChange] = field(default_factory=list)
    swapped: dict[str, dict[str, Any]] = field(default_factory=dict)
    plan: str = ""
    shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)
    selections: list[str] = field(default_factory=list)


def record_of(model: nn.Module) -> SurgeryRecord | None:
    """Return the record that `shrink` left on a model, or None."""
    found = model.__dict__.get(RECORD)
    return found if isinstance(found, SurgeryRecord) else None


def index_tensors(record: SurgeryRecord) -> set[str]:
    """Return the names of the indices of selections, which the original class lacks."""
    return {f"{path}.{SELECT}.index" for path in record.selections}


def composed(first: SurgeryRecord, second: SurgeryRecord) -> SurgeryRecord:
    """Return one record for two operations in a row, in indices, shapes and values of the model before the first.

    >>> once = SurgeryRecord({"weight": [(0, [1, 2, 4])]}, [AttributeChange("", "width", 5, 3)])
    >>> both = composed(once, SurgeryRecord({"weight": [(0, [0, 2])]}, [AttributeChange("", "width", 3, 2)]))
    >>> both.kept, both.attributes
    ({'weight': [(0, [1, 4])]}, [AttributeChange(module='', name='width', before=5, after=2)])
    """
    kept = dict(first.kept)
    for name, cuts in second.kept.items():
        axes = {axis: list(index) for axis, index in first.kept.get(name, [])}
        for axis, index in cuts:
            axes[axis] = [axes[axis][i] for i in index] if axis in axes else list(index)
        kept[name] = sorted(axes.items())
    swapped = {path: dict(settings) for path, settings in first.swapped.items()}
    changes: dict[tuple[str, str], AttributeChange] = {}
    for change in [*first.attributes, *second.attributes]:
        if change.name in swapped.get(change.module, {}):  # a setting of a drop-in, which is made after the attributes
            swapped[change.module][change.name] = change.after
            continue
        known = changes.get((change.module, change.name), change)
        changes[change.module, change.name] = replace(change, before=known.before)
    return SurgeryRecord(
        kept,
        [change for change in changes.values() if change.before != change.after],
        {**swapped, **second.swapped},
        second.plan,
        {**second.shapes, **first.shapes},
        [*first.selections, *second.selections],
    )
