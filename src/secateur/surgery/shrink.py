"""Cut a plan out of a model: a smaller copy that computes what the masked model computes.

``shrink`` never touches its input. The copy shares no tensor with it; tied parameters stay tied, and dtype, device,
memory format, ``requires_grad``, hooks and flags are kept.
"""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..errors import PlanError, SurgeryError, first_line
from ..graph.branches import tensors_inside
from ..graph.groups import ChannelGraph
from ..graph.select import SELECT
from ..graph.untouched import ATOMS
from ..graph.walk import modules_of, state_of
from ..plan import Plan
from .attributes import repair_
from .layout import axis_order, in_order
from .record import RECORD, SurgeryRecord, composed, record_of
from .selecting import insert_, remove_
from .widths import recompute_weights_

Array = np.ndarray[Any, Any]
NEW_OBJECT = object().__reduce_ex__(4)[0]  # how copy makes an object of a plain class


@torch.inference_mode(False)  # tensors made in that mode never train
def shrink(model: nn.Module, graph: ChannelGraph, plan: Plan, *, round_to: int = 1) -> nn.Module:
    """Return a smaller copy of a model in which only the plan's channels are left.

    Args:
        model: the model that `graph` was traced from, or one of the same class and widths.
        graph: its channel graph.
        plan: which channels stay.
        round_to: round each kept width that the plan changes down to a multiple of this (never below it; the
            last of the kept channels go). 1 changes nothing. 8 suits tensor cores, 16 AVX-512.

    Returns:
        The smaller model, in the input's training mode, with a `SurgeryRecord` for `secateur.save`. Where residual
        branches go, `secateur.surgery.branches.NoBranch` stands in place of their modules.

    Raises:
        PlanError: the plan or the graph is of another model, or a residual branch cannot be removed.
        SurgeryError: the model's code holds a width that cannot be found among its attributes, or an attribute that
            cannot be copied.
    """
    plan = rounded(plan, round_to)
    model = fitted(model, graph)
    alive = graph.alive(plan)
    gone = _tensors_gone(graph, plan)
    cuts = {name: cut for name in graph.shapes if name not in gone and (cut := _cut_of(graph, name, alive))}
    small = cut_copy(model, cuts)
    changes, swapped = repair_(small, model, graph, plan, cuts)
    kept = {name: [(axis, index.tolist()) for axis, index in cut] for name, cut in cuts.items()}
    shapes = {name: graph.shapes[name] for name in cuts}
    record = SurgeryRecord(kept, changes, swapped, plan.to_json(), shapes, _without_idle_(small, graph, cuts))
    before = record_of(model)
    small.__dict__[RECORD] = record if before is None else composed(before, record)
    return small


def _without_idle_(small: nn.Module, graph: ChannelGraph, cuts: Mapping[str, Cut]) -> list[str]:
    """Take away those of the graph's own selections that pass all channels on; return the paths of the others."""
    used = [path for path in graph.selections or () if f"{path}.{SELECT}.index" in cuts]
    for path in graph.selections or ():
        if path not in used:
            remove_(small, path)
    return used


def fitted(model: nn.Module, graph: ChannelGraph) -> nn.Module:
    """Return the model, or a copy on the same memory with the channel selections that the graph has beside it.

    Raises:
        PlanError: the graph is of another model.
    """
    state = state_of(model, shared=True)
    absent = [path for path in graph.selections or () if f"{path}.{SELECT}.index" not in state]
    if absent:
        model = copy_with(model, lambda _, tensor: tensor.detach())
        for path in absent:
            insert_(model, path)
    check_model(model, graph)
    return model


def rounded(plan: Plan, round_to: int) -> Plan:
    """Return the plan with every changed width rounded down to a multiple of `round_to`; narrower ones stay.

    >>> rounded(Plan({"a": range(13)}, {"a": 32}), 8).kept["a"]
    (0, 1, 2, 3, 4, 5, 6, 7)
    """
    if round_to < 1:
        raise PlanError(f"round_to={round_to}: expected a whole number of channels, 1 or more.")
    if round_to == 1:
        return plan
    kept = {}
    for name, indices in plan.kept.items():
        width = len(indices)
        is_cut = width < plan.widths[name] and width >= round_to
        kept[name] = indices[: width - width % round_to] if is_cut else indices
    return Plan(kept, plan.widths, plan.removed_branches)


def check_model(model: nn.Module, graph: ChannelGraph) -> None:
    """Raise `PlanError` if the model's tensors are not those the graph was traced from."""
    found = {name: tuple(t.shape) for name, t in state_of(model, shared=True).items()}
    if found != graph.shapes:
        odd = sorted(name for name in found.keys() | graph.shapes.keys() if found.get(name) != graph.shapes.get(name))
        name = odd[0]
        raise PlanError(
            f"the graph is of another model: {name!r} has shape {found.get(name)} in the model and "
            f"{graph.shapes.get(name)} in the graph ({len(odd)} tensors differ). Trace this model."
        )


Cut = list[tuple[int, Tensor]]


def _tensors_gone(graph: ChannelGraph, plan: Plan) -> set[str]:
    modules = {path for name in plan.removed_branches for path in graph.branches[name].modules}
    return tensors_inside(graph, modules)


def _cut_of(graph: ChannelGraph, name: str, alive: Array) -> Cut:
    """Return (axis, kept indices) for every axis of a tensor that loses something."""
    cut: Cut = []
    for varying, places in graph.alive_along(name, alive):
        if places.all():
            continue
        if len(varying) == 1:
            cut += [(axis, torch.from_numpy(np.flatnonzero(places))) for axis in varying]
            continue
        per_axis = []
        for axis in sorted(varying):
            others = tuple(d for d in range(places.ndim) if d != axis)
            per_axis.append((axis, places.any(axis=others)))
        product = np.ones(1, dtype=bool).reshape((1,) * places.ndim)
        for axis, keep in per_axis:
            product = product & keep.reshape([-1 if d == axis else 1 for d in range(places.ndim)])
        if not (product == places).all():
            raise SurgeryError(
                f"{name}: the plan does not keep the same number of channels in every block: let each lose as many."
            )
        cut += [(axis, torch.from_numpy(np.flatnonzero(keep))) for axis, keep in per_axis if not keep.all()]
    return _merged(cut)


def _merged(cut: Cut) -> Cut:
    by_axis: dict[int, Tensor] = {}
    for axis, index in cut:
        known = by_axis.get(axis)
        by_axis[axis] = index if known is None else index[torch.isin(index, known)]
    return sorted(by_axis.items())


def cut_copy(model: nn.Module, cuts: Mapping[str, Cut], instead: Mapping[str, Tensor] | None = None) -> nn.Module:
    """Deep-copy a model with its tensors cut: name -> (axis, kept indices); those named in `instead` are replaced."""
    known = instead or {}
    small = copy_with(model, lambda name, t: known[name] if name in known else cut_tensor(t, cuts.get(name, [])))
    recompute_weights_(small)
    return small


def cut_tensor(tensor: Tensor, cuts: Cut) -> Tensor:
    """Return the kept places of a tensor as a new one, laid out in memory as the tensor is.

    >>> cut_tensor(torch.arange(6).reshape(2, 3), [(1, torch.tensor([0, 2]))]).tolist()
    [[0, 2], [3, 5]]
    """
    result = tensor.detach()
    if not cuts:
        return result.clone(memory_format=torch.preserve_format)
    for axis, index in cuts:
        result = result.index_select(axis, index.to(result.device))
    order = axis_order(tensor)
    return result if order is None else in_order(result, order)


def clone(model: nn.Module) -> nn.Module:
    """Return a copy that shares no tensor with the model.

    Raises:
        SurgeryError: as `copy_with`.
    """
    return copy_with(model, lambda _, tensor: tensor.detach().clone(memory_format=torch.preserve_format))


def copy_with(model: nn.Module, make: Callable[[str, Tensor], Tensor]) -> nn.Module:
    """Deep-copy a model, with ``make(name, tensor)`` in place of every parameter and buffer; tied ones stay tied.

    Raises:
        SurgeryError: something that a module holds cannot be copied, such as a lock or an open file; names it.
    """
    memo: dict[int, Any] = {}
    for name, tensor in state_of(model).items():
        new = make(name, tensor)
        if isinstance(tensor, nn.Parameter):
            new = nn.Parameter(new, requires_grad=tensor.requires_grad)
        memo[id(tensor)] = new
    modules = list(modules_of(model).values())
    for module in modules:  # results of old-style weight_norm hooks, tables: deepcopy refuses non-leaf tensors
        for held in module.__dict__.values():
            for value in held.values() if type(held) is dict else (held,):
                if isinstance(value, Tensor) and not value.is_leaf:
                    memo[id(value)] = value.detach().clone()
    known = dict(memo)
    try:
        _copy_modules(modules, memo)
        copied = copy.deepcopy(model, memo)
    except (TypeError, RuntimeError, copy.Error) as error:
        raise SurgeryError(
            f"{_uncopied(model, known)} cannot be copied ({first_line(error)}): take it off the model, or give its "
            "class a __deepcopy__."
        ) from error
    for module in modules_of(copied).values():
        _forget_cached_(module)
    return copied


def _uncopied(model: nn.Module, known: dict[int, Any]) -> str:
    """Return which attribute of a model deepcopy refuses."""
    for path, module in modules_of(model).items():
        for name, value in module.__dict__.items():
            try:
                if name not in ("_modules", "_parameters", "_buffers"):
                    copy.deepcopy(value, dict(known))
            except (TypeError, RuntimeError, copy.Error):
                return f"attribute {name!r} of {f'module {path!r}' if path else 'the model'}, a {type(value).__name__},"
    return f"the {type(model).__name__}"


def _copy_modules(modules: list[nn.Module], memo: dict[int, Any]) -> None:
    """Do for plain modules what deepcopy does, one attribute after another, and enter them in its memo.

    A module has two dozen attributes, nearly all numbers and empty tables of hooks, on which deepcopy spends most time.
    """
    states = []
    for module in modules:
        kind = type(module)
        recipe = "" if hasattr(module, "__deepcopy__") else module.__reduce_ex__(4)
        if recipe[:2] == (NEW_OBJECT, (kind,)) and type(recipe[2]) is dict and not any(recipe[3:]):
            memo[id(module)] = made = kind.__new__(kind)
            states.append((made, recipe[2]))
    for made, state in reversed(states):  # from the leaves up, as deepcopy ends them
        made.__setstate__({name: _copy(value, memo) for name, value in state.items()})


def _copy(value: Any, memo: dict[int, Any]) -> Any:
    if type(value) in ATOMS:
        return value
    if id(value) in memo or type(value) not in (dict, OrderedDict):
        return copy.deepcopy(value, memo)
    twin = memo[id(value)] = type(value)()
    for key, item in value.items():
        twin[_copy(key, memo)] = _copy(item, memo)
    return twin


def _forget_cached_(module: nn.Module) -> None:
    """Empty what a module keeps of earlier passes, in place: tables derived from weights (timm's attention biases)."""
    for name, held in module.__dict__.items():
        if (
            "cache" in name
            and type(held) is dict
            and held
            and all(isinstance(value, Tensor) for value in held.values())
        ):
            held.clear()
