"""MACs, parameters and bytes of any plan in closed form, without touching the model.

Every matrix product and convolution on the tape is a constant times the living sizes of a few axes, and every living
size is linear in how many channels of each group stay. So is every axis of every parameter. Counting is then two
small matrix products, and search loops never run the model.
"""

from __future__ import annotations

from collections.abc import Collection, Hashable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ..budget import MEASURES
from ..errors import BudgetError, PlanError
from ..plan import Plan
from .branches import names_inside, tensors_inside
from .labels import axes, compact
from .rules.contraction import factors_of
from .walk import buffers_of, parameters_of

if TYPE_CHECKING:
    from .groups import ChannelGraph

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Costs:
    """What a model costs.

    Attributes:
        channels: channels that are free to go (each counts 1).
        macs: multiply-adds of convolutions and matrix products for the example input (1 MAC = 2 FLOPs).
        params: elements of all parameters, tied ones once.
        bytes: bytes of all parameters and buffers, tied ones once.
    """

    channels: int
    macs: int
    params: int
    bytes: int

    def of(self, what: str) -> int:
        """Return one of the four by name; `BudgetError` for another name."""
        if what not in MEASURES:
            raise BudgetError(f"of={what!r}: expected one of {', '.join(MEASURES)}.")
        return int(getattr(self, what))


class _Products:
    """Sum over terms of constant * product of axis sizes; an axis size is linear in the kept counts."""

    def __init__(self) -> None:
        self.constants: list[float] = []
        self.terms: list[list[int]] = []
        self.owners: list[Hashable] = []

    def add(self, constant: float, factors: list[int], owner: Hashable) -> None:
        self.constants.append(constant)
        self.terms.append(factors)
        self.owners.append(owner)

    def ready(self) -> None:
        width = max((len(t) for t in self.terms), default=0)
        self.weights = np.array(self.constants, dtype=np.float64)
        self.index = np.array([t + [0] * (width - len(t)) for t in self.terms], dtype=np.int64).reshape(
            len(self.terms), width
        )

    def value(self, sizes: Array, gone: Array | None = None) -> float:
        if not len(self.weights):
            return 0.0
        weights = self.weights if gone is None else np.where(gone, 0.0, self.weights)
        return float(weights @ sizes[self.index].prod(axis=1))


class CostModel:
    """Closed-form costs of one graph."""

    def __init__(self, names: list[str], widths: Array) -> None:
        self.names, self.widths = names, widths
        self.forms: list[tuple[float, dict[int, int]]] = [
            (1.0, {})
        ]  # axis size = constant + sum count * kept; 0 is "1"
        self.macs, self.params, self.bytes = _Products(), _Products(), _Products()
        self._graph: ChannelGraph | None = None
        self._gone: dict[tuple[str, ...], dict[str, Array]] = {}

    @classmethod
    def of(cls, graph: ChannelGraph) -> CostModel:
        """Build the cost model of a channel graph."""
        model = cls(list(graph.groups), np.array([g.width for g in graph.groups.values()], dtype=np.int64))
        group_of = np.full(int(graph.component.max(initial=0)) + 1, -1)
        for k, group in enumerate(graph.groups.values()):
            group_of[group.channels] = k
        model._graph = graph
        seen: dict[tuple[int, tuple[int, ...], tuple[int, ...]], int] = {}

        def form(layer: Any) -> int:
            key = (layer.data_ptr(), tuple(layer.shape), tuple(layer.stride()))
            if key not in seen:
                seen[key] = model._form(group_of[graph.component[layer.numpy().ravel()]])
            return seen[key]

        for contraction in graph.labels.contractions:
            model.macs.add(contraction.constant, [form(f) for f in contraction.factors], contraction.op)
        model._state(graph, form)
        model._ready()
        return model

    def _state(self, graph: ChannelGraph, form: Any) -> None:
        sizes = graph.sizes_of_elements
        for name, (is_parameter, item_bytes) in sizes.items():
            shape = graph.shapes[name]
            known = graph.labels.params.get(name)
            constant, factors = 1, []
            if known is None:
                for size in shape:
                    constant *= size
            else:
                free = [layer for layer in known[1] if self._is_free(graph, layer)]
                layers, constant = factors_of(_coarse(free, graph.component), shape)
                factors = [form(layer) for layer in layers]
            if is_parameter:
                self.params.add(constant, factors, name)
            self.bytes.add(constant * item_bytes, factors, name)

    @staticmethod
    def _is_free(graph: ChannelGraph, layer: Any) -> bool:
        return bool((graph.component[compact(layer).numpy()] != graph.component[0]).any())

    def _form(self, groups: Array) -> int:
        counts = (
            np.bincount(groups[groups >= 0], minlength=len(self.widths)) if len(self.widths) else np.zeros(0, dtype=int)
        )
        linear: dict[int, int] = {}
        for k in np.flatnonzero(counts):
            linear[int(k)] = int(counts[k]) // int(self.widths[k])
        self.forms.append((float((groups < 0).sum()), linear))
        return len(self.forms) - 1

    def _ready(self) -> None:
        self.constant = np.array([c for c, _ in self.forms])
        self.matrix = np.zeros((len(self.forms), len(self.widths)))
        for i, (_, linear) in enumerate(self.forms):
            for k, count in linear.items():
                self.matrix[i, k] = count
        for products in (self.macs, self.params, self.bytes):
            products.ready()

    def counts(self, plan: Plan | None = None) -> Array:
        """Return (groups,) how many channels of each group a plan keeps."""
        counts = self.widths.copy()
        if plan is None:
            return counts
        for name, kept in plan.kept.items():
            k = self.names.index(name) if name in self.names else -1
            if k < 0 or plan.widths[name] != self.widths[k]:
                raise PlanError(
                    f"the plan is of another model: this one has no group {name!r} of {plan.widths[name]} channels. "
                    "Give the plan of this model, or the graph of that one."
                )
            counts[k] = len(kept)
        return counts

    def value(self, what: str, counts: Array, removed_branches: Iterable[str] = ()) -> float:
        """Return one cost ("channels", "macs", "params", "bytes") for (groups,) kept counts, without some branches."""
        gone = self._without(tuple(removed_branches))
        if what == "channels":
            return float(counts.sum() if gone is None else counts[~gone[what]].sum())
        sizes = self.constant + self.matrix @ counts
        products: _Products = getattr(self, what)
        return products.value(sizes, None if gone is None else gone[what])

    def _without(self, branches: tuple[str, ...]) -> dict[str, Array] | None:
        """Return which groups and which terms of each sum go with these branches; None = none."""
        if not branches or self._graph is None:
            return None
        if branches not in self._gone:
            self._gone[branches] = self._terms_of(self._graph, branches)
        return self._gone[branches]

    def _terms_of(self, graph: ChannelGraph, branches: tuple[str, ...]) -> dict[str, Array]:
        known = [graph.branches[name] for name in branches]
        modules = {path for branch in known for path in branch.modules}
        ops = {index for branch in known for index in branch.ops}
        tensors = tensors_inside(graph, modules)
        groups = [all(names_inside([m.module], modules) for m in group.members) for group in graph.groups.values()]
        gone: dict[str, Array] = {"channels": np.array(groups, dtype=bool)}
        kinds: list[tuple[str, Collection[Any]]] = [("macs", ops), ("params", tensors), ("bytes", tensors)]
        for what, owners in kinds:
            products: _Products = getattr(self, what)
            gone[what] = np.array([owner in owners for owner in products.owners], dtype=bool)
        return gone

    def __call__(self, plan: Plan | None = None) -> Costs:
        """Return the costs of a plan; without one, of the whole model."""
        counts = self.counts(plan)
        branches = plan.removed_branches if plan is not None else ()
        return Costs(*(round(self.value(what, counts, branches)) for what in MEASURES))


def _coarse(layers: list[Any], component: Array) -> list[Any]:
    """Of a grouped convolution's in-channel grid keep one group's row: every group has as many, or goes whole."""
    result = []
    for layer in layers:
        if {0, 1} <= axes(layer):
            layer = layer.narrow(0, 0, 1).expand(layer.shape)
            numbers = component[compact(layer).numpy()]
            if (numbers == numbers.flat[0]).all():
                continue
        result.append(layer)
    return result


def element_sizes(model: torch.nn.Module) -> dict[str, tuple[bool, int]]:
    """For each parameter and buffer, tied ones once: whether it is a parameter, and bytes per element."""
    result = {name: (True, p.element_size()) for name, p in parameters_of(model).items()}
    result.update({name: (False, b.element_size()) for name, b in buffers_of(model).items()})
    return result
