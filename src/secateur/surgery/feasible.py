"""Which groups a model's own code lets go.

Some forward passes derive one width from another (``C // num_heads`` of a stream that may be cut on its own) or hold
a number that no attribute holds. A rehearsal on tensors without data finds the groups whose cut the code cannot
express, so that a plan can leave them whole instead of failing.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Collection
from dataclasses import replace

import numpy as np
from torch import Tensor, nn

from ..errors import SurgeryError
from ..graph.groups import ChannelGraph
from ..graph.labels import compact
from ..graph.tape import Ref, to_meta
from ..graph.walk import modules_of
from ..plan import Plan
from .shrink import copy_with, shrink
from .steps import is_inside

log = logging.getLogger(__name__)
REHEARSALS = 60  # cuts to try in search of the groups behind a failure, before all that are left are blamed


def feasible(model: nn.Module, graph: ChannelGraph, *, seed: int = 0) -> ChannelGraph:
    """Return the graph without the groups that the model's code cannot narrow; ``graph.rigid`` says which and why.

    Args:
        model: the traced model; not changed.
        graph: its graph.
        seed: draws the rehearsed plans.
    """
    bare = model if graph.tape.carrier == "real" else copy_with(model, lambda _, tensor: to_meta(tensor))
    while graph.groups:
        error = _failure(bare, graph, list(graph.groups), seed)
        if error is None:
            break
        rigid = dict.fromkeys(sorted(blamed(model, graph, error)), str(error)) or _failing(bare, graph, error, seed)
        log.info("%s cannot be narrowed: %s", ", ".join(rigid), error)
        groups = {n: g for n, g in graph.groups.items() if n not in rigid}
        graph = replace(graph, groups=groups, rigid={**graph.rigid, **rigid})
    return graph


def feasible_branches(model: nn.Module, graph: ChannelGraph, names: Collection[str]) -> dict[str, str]:
    """Return which of these residual branches the model's code cannot run without, and why.

    Args:
        model: the traced model; not changed.
        graph: its graph.
        names: branches without an obstacle.
    """
    bare = model if graph.tape.carrier == "real" else copy_with(model, lambda _, tensor: to_meta(tensor))

    def failure(chosen: Collection[str]) -> str:
        try:
            shrink(bare, graph, Plan(removed_branches=tuple(chosen)))
        except SurgeryError as error:
            return str(error)
        return ""

    if not names or not failure(names):
        return {}
    return {name: why for name in names if (why := failure([name]))}


def _failure(bare: nn.Module, graph: ChannelGraph, names: Collection[str], seed: int) -> SurgeryError | None:
    """Cut these groups by about 40 %, to numbers that divide nothing by chance; return what stood against it."""
    draw = random.Random(seed)
    removed = {
        n: draw.sample(range(g.width), max(1, min(g.width - 1, round(g.width * 0.4)))) for n, g in graph.groups.items()
    }
    try:
        shrink(bare, graph, Plan.from_removed({n: removed[n] for n in names}, graph.widths))
    except SurgeryError as error:
        return error
    return None


def _failing(bare: nn.Module, graph: ChannelGraph, error: SurgeryError, seed: int) -> dict[str, str]:
    """Return groups to leave whole, and why, after a failure that no module and no channel at the operation explains.

    Halves are cut on their own, then halves of those that fail: the root of a width says nothing of whose width it is.
    """
    reasons: dict[str, str] = {}
    left, tries = [(list(graph.groups), error)], 0
    while left:
        names, why = left.pop()
        halves = [names[: len(names) // 2], names[len(names) // 2 :]] if len(names) > 1 and tries < REHEARSALS else []
        found = [(half, failure) for half in halves if (failure := _failure(bare, graph, half, seed)) is not None]
        tries += len(halves)
        left += found
        if not found:
            reasons.update(dict.fromkeys(names, str(why)))
    return reasons


def blamed(model: nn.Module, graph: ChannelGraph, error: SurgeryError) -> set[str]:
    """Groups to leave whole after a failed cut: those at the operation that failed, else those of its module.

    None if it failed in the model's own code, at an operation that touches no channel. What one block's code cannot
    narrow its siblings' cannot either: the same operation of every module of the class is blamed at once.
    """
    index, path = getattr(error, "op_index", None), getattr(error, "module_path", "")
    found = _at_ops(graph, _siblings(model, graph, index)) if index is not None else set()
    modules = modules_of(model)
    while path and not found:
        kind = type(modules.get(path, model))
        alike = [p for p, m in modules.items() if type(m) is kind]
        found = {n for n, g in graph.groups.items() if any(is_inside(m.module, alike) for m in g.members)}
        path = path.rpartition(".")[0]
    return found


def _siblings(model: nn.Module, graph: ChannelGraph, index: int) -> list[int]:
    """Positions of an operation in its module, and of the same one in every other module of that class."""
    op = graph.tape.ops[index]
    kinds = {path: type(module) for path, module in modules_of(model).items()}
    kind = kinds.get(op.module)
    by_module: dict[str, list[int]] = {}
    for other in graph.tape.ops:
        if kinds.get(other.module) is kind and other.name == op.name:
            by_module.setdefault(other.module, []).append(other.index)
    position = by_module[op.module].index(index)
    return [found[position] for found in by_module.values() if position < len(found)]


def _at_ops(graph: ChannelGraph, indices: list[int]) -> set[str]:
    """Groups whose channels any of these operations reads or returns."""
    makers: dict[int, dict[int, int]] = {}  # tensor -> position of each operation that made it -> which result it is
    for op in graph.tape.ops[: max(indices) + 1]:
        for k, ref in enumerate(op.outs()):
            makers.setdefault(ref.number, {}).setdefault(op.index, k)
    touched = np.zeros(int(graph.component.max(initial=0)) + 1, dtype=bool)
    for index in indices:
        layers = [layer for own in graph.op_layers[index] for layer in own]
        for ref in graph.tape.ops[index].refs():
            layers += _layers_of(graph, ref, makers, before=index)
        for layer in layers:
            touched[graph.component[compact(layer).numpy().ravel()]] = True
    return {name for name, group in graph.groups.items() if touched[group.channels].any()}


def _layers_of(graph: ChannelGraph, ref: Ref, makers: dict[int, dict[int, int]], *, before: int) -> list[Tensor]:
    made = max((index for index in makers.get(ref.number, ()) if index < before), default=None)
    if made is None:
        return graph.labels.layers.get(ref.number, [])
    return graph.op_layers[made][makers[ref.number][made]]
