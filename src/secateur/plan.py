"""A plan: which channels of each group stay, and which residual branches go. It prints, compares and saves as JSON.

A plan knows nothing of the model but the names of its groups and branches and the widths of the groups;
``ChannelGraph`` checks that they fit.
"""

from __future__ import annotations

import json
import operator
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .errors import PlanError
from .files import replacing

FORMAT = 1
FORMAT_WITH_BRANCHES = 2  # only where there are any, so that earlier versions refuse what they would half ignore


@dataclass(frozen=True)
class Plan:
    """Which channels of each group stay, and which residual branches go.

    Attributes:
        kept: group name -> sorted indices of the channels that stay. Groups that are absent stay whole.
        widths: group name -> number of channels before pruning, for every group in `kept`.
        removed_branches: sorted names of the residual branches that go as a whole.

    Raises:
        PlanError: an index is no whole number, out of range or given twice, a group would be emptied, or a width is
            missing.

    >>> plan = Plan(kept={"conv1": (0, 2)}, widths={"conv1": 4})
    >>> plan.removed("conv1")
    (1, 3)
    >>> Plan.from_json(plan.to_json()) == plan
    True
    """

    kept: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    widths: Mapping[str, int] = field(default_factory=dict)
    removed_branches: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        kept = {name: tuple(sorted(_numbers(name, indices))) for name, indices in self.kept.items()}
        widths = {name: int(width) for name, width in self.widths.items() if name in kept}
        for name, indices in kept.items():
            _check_group(name, indices, widths)
        object.__setattr__(self, "kept", kept)
        object.__setattr__(self, "widths", widths)
        object.__setattr__(self, "removed_branches", _names(self.removed_branches))

    @classmethod
    def from_removed(
        cls, removed: Mapping[str, Iterable[int]], widths: Mapping[str, int], branches: Iterable[str] = ()
    ) -> Plan:
        """Return the plan that removes these channels, and these residual branches, and keeps all others.

        >>> Plan.from_removed({"conv1": [1]}, {"conv1": 3}).kept["conv1"]
        (0, 2)
        """
        kept = {}
        for name, indices in removed.items():
            if name not in widths:
                raise PlanError(f"group {name!r} has channels to remove but no width: give widths[{name!r}].")
            gone = set(_numbers(name, indices))
            if outside := sorted(i for i in gone if not 0 <= i < widths[name]):
                raise PlanError(f"group {name!r} has channels 0 to {widths[name] - 1}; asked to remove {outside}.")
            kept[name] = tuple(i for i in range(widths[name]) if i not in gone)
        return cls(kept, {name: widths[name] for name in kept}, tuple(branches))

    def removed(self, name: str) -> tuple[int, ...]:
        """Return the indices of the channels of one group that go (none for a group not in the plan)."""
        if name not in self.kept:
            return ()
        stay = set(self.kept[name])
        return tuple(i for i in range(self.widths[name]) if i not in stay)

    @property
    def removed_count(self) -> int:
        """Number of channels that go, over all groups."""
        return sum(self.widths[name] - len(kept) for name, kept in self.kept.items())

    @property
    def is_empty(self) -> bool:
        """Whether nothing goes."""
        return not self.removed_count and not self.removed_branches

    def __iter__(self) -> Iterator[str]:
        return iter(self.kept)

    def __eq__(self, other: object) -> bool:
        """Plans are equal when they remove the same; a group listed whole equals a group not listed."""
        if not isinstance(other, Plan):
            return NotImplemented
        return self._essence() == other._essence() and self.removed_branches == other.removed_branches

    def __hash__(self) -> int:
        return hash((frozenset(self._essence().items()), self.removed_branches))

    def _essence(self) -> dict[str, tuple[int, tuple[int, ...]]]:
        return {n: (self.widths[n], kept) for n, kept in self.kept.items() if len(kept) < self.widths[n]}

    def __str__(self) -> str:
        if self.is_empty:
            return "Plan: nothing is removed"
        count = len(self.removed_branches)
        branches = f", and {count} residual {'branch' if count == 1 else 'branches'}" if count else ""
        lines = [f"Plan: {self.removed_count} channels removed{branches}"]
        lines += [f"  {name}: {width} -> {len(kept)}" for name, (width, kept) in self._essence().items()]
        lines += [f"  {name}: branch removed" for name in self.removed_branches]
        return "\n".join(lines)

    def to_json(self) -> str:
        """Return the plan as JSON text, one line for each group, readable by `from_json`.

        >>> print(Plan({"conv1": [0, 2]}, {"conv1": 3}).to_json())
        {"format": 1, "groups": {
        "conv1": {"width": 3, "kept": [0, 2]}
        }}
        """
        groups = {name: {"width": self.widths[name], "kept": list(kept)} for name, kept in self.kept.items()}
        lines = ",\n".join(f"{json.dumps(name)}: {json.dumps(group)}" for name, group in groups.items())
        if not self.removed_branches:
            return f'{{"format": {FORMAT}, "groups": {{\n{lines}\n}}}}'
        branches = json.dumps(self.removed_branches)
        return f'{{"format": {FORMAT_WITH_BRANCHES}, "removed_branches": {branches}, "groups": {{\n{lines}\n}}}}'

    @classmethod
    def from_json(cls, text: str) -> Plan:
        """Read a plan from the text that `to_json` wrote.

        Raises:
            PlanError: the text is no JSON, or no plan of this format.
        """
        try:
            raw: Any = json.loads(text)
        except json.JSONDecodeError as error:
            raise PlanError(f"expected the JSON of a plan; it cannot be parsed ({error}).") from error
        formats = FORMAT, FORMAT_WITH_BRANCHES
        if not isinstance(raw, dict) or raw.get("format") not in formats or not isinstance(raw.get("groups"), dict):
            raise PlanError(f'expected {{"format": {FORMAT}, "groups": {{…}}}}; found {text[:60]!r}.')
        try:
            kept = {name: tuple(group["kept"]) for name, group in raw["groups"].items()}
            widths = {name: int(group["width"]) for name, group in raw["groups"].items()}
        except (KeyError, TypeError, ValueError) as error:
            raise PlanError(f"every group of a plan needs a width and a list of kept indices ({error!r}).") from error
        branches = raw.get("removed_branches", [])
        if not isinstance(branches, list) or not all(isinstance(name, str) for name in branches):
            raise PlanError(f"removed_branches of a plan is a list of names; found {branches!r}.")
        return cls(kept, widths, tuple(branches))

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the plan as JSON; an existing file is replaced in one step, so a kill leaves the old or the new one."""
        with replacing(path) as partial:
            partial.write_text(self.to_json(), encoding="utf-8")

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Plan:
        """Read a plan that `save` wrote.

        Raises:
            PlanError: there is no such file, or it holds no plan.
        """
        try:
            text = Path(path).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise PlanError(f"no plan can be read from {os.fspath(path)!r}: {error}.") from error
        return cls.from_json(text)


def _names(given: Any) -> tuple[str, ...]:
    names = (given,) if isinstance(given, str) else tuple(given)
    if odd := [name for name in names if not isinstance(name, str)]:
        raise PlanError(f"removed_branches has {odd[0]!r}: expected names of residual branches, as in graph.branches.")
    return tuple(sorted(set(names)))


def _numbers(name: str, indices: Iterable[Any]) -> list[int]:
    """Return indices as numbers of Python; those of a tensor or an array are taken, the entries of a mask are not."""
    found = []
    for index in indices:
        is_mask = isinstance(index, bool) or "bool" in str(getattr(index, "dtype", ""))
        try:
            if is_mask:
                raise TypeError
            found.append(operator.index(index))
        except TypeError:
            hint = " Of a mask give mask.nonzero().flatten()." if is_mask else ""
            raise PlanError(f"group {name!r}: expected indices of channels; found {index!r}.{hint}") from None
    return found


def _check_group(name: str, indices: tuple[int, ...], widths: Mapping[str, int]) -> None:
    if name not in widths:
        raise PlanError(f"group {name!r} has kept channels but no width: give widths[{name!r}].")
    if not indices:
        raise PlanError(f"group {name!r} would be emptied: at least one of its {widths[name]} channels has to stay.")
    if indices[0] < 0 or indices[-1] >= widths[name]:
        raise PlanError(f"group {name!r} has channels 0 to {widths[name] - 1}; the plan keeps {list(indices)}.")
    if len(set(indices)) < len(indices):
        raise PlanError(f"group {name!r}: a channel is kept twice in {list(indices)}.")
