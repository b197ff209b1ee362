"""What a sensitivity analysis found, as a value: curves, and the fractions that follow from them."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor, from_numpy

from ..budget import Budget, Limits, meet
from ..errors import MethodError, StoreError
from ..files import replacing
from ..graph.groups import ChannelGraph

Array = np.ndarray[Any, Any]
FORMAT = 1


@dataclass(frozen=True)
class GroupCurve:
    """The model with channels of one group gone and all others there. All sequences are equally long.

    Attributes:
        width: channels of the group.
        removes: fractions asked for, rising from 0. Fractions that the limits rule out are absent.
        removed: channels that went: floor(fraction * width).
        metric: the task's metric, on the validation data.
        loss: the task's loss there.
        macs_saved: multiply-adds that go with these channels, in the whole model.
        params_saved: parameters that go with them.
    """

    width: int
    removes: tuple[float, ...]
    removed: tuple[int, ...]
    metric: tuple[float, ...]
    loss: tuple[float, ...]
    macs_saved: tuple[int, ...]
    params_saved: tuple[int, ...]

    def __post_init__(self) -> None:
        lengths = {len(getattr(self, f.name)) for f in fields(self) if f.name != "width"}
        if len(lengths) != 1 or 0 in lengths or self.removed[0] != 0:
            raise MethodError(f"a curve needs as many values everywhere, the first for 0 channels; found {self}.")

    @property
    def fractions(self) -> tuple[float, ...]:
        """Fractions that really went: `removed` / `width`. Of 4 channels, remove=0.3 takes one, a quarter."""
        return tuple(count / self.width for count in self.removed)


@dataclass(frozen=True)
class SensitivityCurves:
    """How a model takes the loss of channels, one group at a time.

    Attributes:
        metric_name: the task's metric.
        higher_is_better: which direction of it is good.
        base_metric: the intact model's metric, after the same treatment.
        base_loss: its loss.
        base_macs: its multiply-adds for the example input.
        base_params: its parameters.
        groups: group -> curve, in the order of the forward pass.
        unremovable: group -> why nothing was removed there. Such a group is not robust: nothing is known of it.
        scores: which method chose the channels.
        treatment: what was done to the model between cut and evaluation, in words.
        sample_count: scores that the metric is a mean of; its noise falls with the root of this.

    Raises:
        MethodError: the base metric is not finite.
    """

    metric_name: str
    higher_is_better: bool
    base_metric: float
    base_loss: float
    base_macs: int
    base_params: int
    groups: Mapping[str, GroupCurve]
    unremovable: Mapping[str, str] = field(default_factory=dict)
    scores: str = ""
    treatment: str = ""
    sample_count: int = 0

    def __post_init__(self) -> None:
        if not math.isfinite(self.base_metric):
            raise MethodError(
                f"the intact model's {self.metric_name} is {self.base_metric}: nothing compares with it. Check its "
                "weights and the data."
            )
        object.__setattr__(self, "groups", dict(self.groups))
        object.__setattr__(self, "unremovable", dict(self.unremovable))

    def drops(self, name: str) -> tuple[float, ...]:
        """How much worse than the base each point of a group is, in units of the metric; negative = better."""
        sign = 1 if self.higher_is_better else -1
        return tuple(sign * (self.base_metric - value) for value in self.groups[name].metric)

    def envelope(self, name: str) -> tuple[float, ...]:
        """Largest drop up to each point of a group: raw curves are noisy, and this never falls."""
        return tuple(envelope(self.drops(name)).tolist())

    def fractions_within(self, tolerance: float) -> dict[str, float]:
        """Largest fraction of each group that can go, and every smaller one too, within a drop of the metric.

        Args:
            tolerance: allowed drop, >= 0, in units of the metric: 0.01 is one point of accuracy.

        Returns:
            Group -> fraction really removed, `removed` / `width`. Each holds for its group alone: what several
            groups lose together is more, and has to be measured.

        Raises:
            MethodError: the tolerance is below 0 or no number.
        """
        allowed = check_tolerance(tolerance) + 1e-12 * max(1.0, abs(self.base_metric))
        return {
            name: curve.fractions[int((np.asarray(self.envelope(name)) <= allowed).sum()) - 1]
            for name, curve in self.groups.items()
        }

    def order(self) -> dict[str, Tensor]:
        """Return group -> (width,) rank at which its next channel goes as the common tolerance grows; rank 0 first.

        The j-th channel to go has as key the drop at j channels on the envelope, interpolated linearly between
        measured points; infinite beyond the last one. Of equal drops the smaller fraction goes first. Taking channels
        in this order until a budget is met is a bisection on one tolerance for all groups.
        """
        drops = {name: interpolated_drops(curve.removed, self.drops(name)) for name, curve in self.groups.items()}
        keys = np.concatenate([_padded(drops[name], curve.width) for name, curve in self.groups.items()])
        shares = np.concatenate([(np.arange(c.width) + 0.5) / c.width for c in self.groups.values()])
        rank = np.empty(len(keys))
        rank[np.lexsort((shares, keys))] = np.arange(len(keys))
        ends = np.cumsum([curve.width for curve in self.groups.values()])[:-1]
        return dict(zip(self.groups, map(from_numpy, np.split(rank, ends)), strict=True))

    def allocation_for(self, budget: Budget, graph: ChannelGraph, limits: Limits | None = None) -> dict[str, float]:
        """Return the fraction of each group that goes at the smallest common tolerance that meets a budget.

        Beyond its last measured point a group goes on losing channels only after every measured one of all groups.

        Args:
            budget: what to meet; costs are `graph.costs`, in closed form.
            graph: the graph of the model that the curves are of.
            limits: protected groups stay whole; least widths and steps are kept to.

        Returns:
            Group -> fraction removed, for ``L1Filter(allocation=...)`` and its like.

        Raises:
            BudgetError: the budget is not reachable with these groups and limits.
            MethodError: the curves are of another model.
            UnknownName: a protected module does not exist.
        """
        limits = limits or Limits()
        protected = graph.touching(limits.protect)
        number = {name: k for k, name in enumerate(graph.groups)}
        ranks = {name: rank.numpy() for name, rank in self.order().items() if name not in protected}
        for name, rank in ranks.items():
            if name not in number or graph.groups[name].width != len(rank):
                raise MethodError(
                    f"the curves are of another model: this one has no group {name!r} of {len(rank)} channels. "
                    "Measure this model's own, with secateur.sensitivity."
                )
        owners = np.concatenate([np.full(len(rank), number[name]) for name, rank in ranks.items()] or [np.zeros(0)])
        ordered = owners[np.argsort(np.concatenate(list(ranks.values()) or [np.zeros(0)]), kind="stable")]
        widths = graph.costs.widths
        kept = meet(budget, ordered, widths, limits, lambda counts: graph.costs.value(budget.of, counts))
        return {name: float(1 - kept[number[name]] / widths[number[name]]) for name in ranks}

    def to_table(self) -> str:
        """Return the metric at each fraction as text, a line per group, and what could not be removed."""
        columns = sorted({r for curve in self.groups.values() for r in curve.removes})
        rows = [["group", "width", *(f"{r:.0%}" for r in columns)]]
        for name, curve in self.groups.items():
            at = dict(zip(curve.removes, curve.metric, strict=True))
            rows.append([name, str(curve.width), *(f"{at[r]:.4f}" if r in at else "–" for r in columns)])
        sizes = [max(len(row[k]) for row in rows) for k in range(len(rows[0]))]
        lines = ["  ".join(_cell(cell, sizes[k], k) for k, cell in enumerate(row)).rstrip() for row in rows]
        direction = "higher" if self.higher_is_better else "lower"
        head = f"{self.metric_name} ({direction} is better; base {self.base_metric:.4f}) by fraction removed"
        tail = [f"nothing can be removed: {name} ({why})" for name, why in self.unremovable.items()]
        return "\n".join([f"{head}, {self.treatment}" if self.treatment else head, *lines, *tail])

    def __str__(self) -> str:
        return self.to_table()

    def to_json(self) -> str:
        """Return the curves as JSON text, readable by `from_json`."""
        return json.dumps({"format": FORMAT, **_finite(asdict(self))}, indent=1, allow_nan=False)

    @classmethod
    def from_json(cls, text: str) -> SensitivityCurves:
        """Read the text that `to_json` wrote.

        Raises:
            StoreError: it is no JSON, or holds no curves of this format.
        """
        try:
            raw: dict[str, Any] = json.loads(text)
            if raw.pop("format") != FORMAT:
                raise ValueError(f"its format is not {FORMAT}")
            raw["groups"] = {name: _curve(values) for name, values in raw["groups"].items()}
            return cls(**raw | {"base_loss": _number(raw["base_loss"])})
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise StoreError(f"expected the JSON of sensitivity curves; found {text[:60]!r} ({error!r}).") from error

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the curves as JSON; an existing file is replaced in one step."""
        with replacing(path) as partial:
            partial.write_text(self.to_json(), encoding="utf-8")

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> SensitivityCurves:
        """Read the curves that `save` wrote.

        Raises:
            StoreError: there is no such file, or it holds no curves.
        """
        try:
            text = Path(path).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise StoreError(f"no sensitivity curves can be read from {os.fspath(path)!r}: {error}.") from error
        return cls.from_json(text)


def envelope(drops: Sequence[float]) -> Array:
    """Return the largest drop so far at each point, at least 0; a drop that is no number counts as infinite.

    >>> envelope([0.0, 0.03, 0.01, -0.02, 0.1]).tolist()
    [0.0, 0.03, 0.03, 0.03, 0.1]
    """
    values = np.nan_to_num(np.asarray(drops, dtype=np.float64), nan=np.inf, posinf=np.inf, neginf=-np.inf)
    return np.maximum(np.maximum.accumulate(values), 0.0)


def interpolated_drops(removed: Sequence[int], drops: Sequence[float]) -> Array:
    """Return the drop on the envelope at 1, 2, ... channels up to the last measured count, linear in between.

    >>> interpolated_drops([0, 2, 4], [0.0, 0.2, 0.1]).tolist()
    [0.1, 0.2, 0.2, 0.2]
    """
    levels = envelope(drops)
    ends, first = np.unique(np.asarray(removed), return_index=True)
    ends, levels = ends[np.isfinite(levels[first])], levels[first][np.isfinite(levels[first])]
    counts = np.arange(1, removed[-1] + 1)
    return np.asarray(np.where(counts <= ends[-1], np.interp(counts, ends, levels), np.inf))


def check_tolerance(tolerance: float) -> float:
    """Return the tolerance, or raise `MethodError` if it is no number >= 0."""
    if isinstance(tolerance, bool) or not isinstance(tolerance, (int, float)) or not 0 <= tolerance < math.inf:
        raise MethodError(f"tolerance={tolerance!r}: expected an allowed drop of the metric, a number >= 0.")
    return float(tolerance)


def _padded(values: Array, width: int) -> Array:
    return np.concatenate([values, np.full(width - len(values), np.inf)])


def _cell(text: str, size: int, column: int) -> str:
    return text.ljust(size) if column == 0 else text.rjust(size)


def _finite(value: Any) -> Any:
    """Replace what JSON has no word for (NaN, infinities) by its name."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    return [_finite(item) for item in value] if isinstance(value, (list, tuple)) else value


def _number(value: Any) -> Any:
    return float(value) if isinstance(value, str) else value


def _curve(values: dict[str, Any]) -> GroupCurve:
    lists: dict[str, Any] = {
        key: tuple(map(_number, each)) if isinstance(each, list) else each for key, each in values.items()
    }
    return GroupCurve(**lists)
