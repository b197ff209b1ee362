"""From ties to groups: connected components say which slots are one channel, equal footprints make a group."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, TypedDict

import numpy as np
import torch
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components
from torch import Tensor, nn

from ..errors import PlanError, UnknownName, UnsupportedOp, did_you_mean
from ..plan import Plan
from .branches import Branch, branches_of
from .costs import CostModel, element_sizes
from .labels import FROZEN, Labels, axes, compact
from .rules import RULES
from .rules.attention import keep_heads_whole
from .rules.convolution import kernel_axes
from .rules.pointwise import listed, meeting
from .rules.recurrent import tie_recurrent
from .select import index_names
from .tape import Op, Tape, record
from .walk import modules_of, state_of

log = logging.getLogger(__name__)
OTHER = "Give the plan of this model, or the model of that plan."
Array = np.ndarray[Any, Any]


class TraceOptions(TypedDict):
    """What `trace` was told to take for one channel; see there."""

    granularity: str
    conv_groups: str


@dataclass(frozen=True)
class Member:
    """One axis of one parameter or buffer that a group runs along.

    Attributes:
        tensor: name of the parameter or buffer, e.g. ``"layer1.0.conv1.weight"``.
        axis: which axis of it.
        per_channel: how many places of that axis one channel takes.
        module: path of the owning module.
        role: "out", "in", or the axis number for a tensor of a module that torch does not define.
    """

    tensor: str
    axis: int
    per_channel: int
    module: str
    role: str

    @property
    def label(self) -> str:
        """Short form, e.g. ``"layer1.0.conv1:out"``."""
        is_layer = self.module and self.role in ("in", "out")
        return f"{self.module}:{self.role}" if is_layer else f"{self.tensor}:{self.role}"


@dataclass(frozen=True, eq=False)
class ChannelGroup:
    """Channels that are interchangeable: the width of a layer, whatever the layer is.

    Attributes:
        name: path of the first module that makes these channels; unique in its graph.
        channels: (width,) component numbers, in the order of the first member's axis.
        members: every axis the group runs along.
        is_residual: whether tensors that carry these channels are added up (the stream of a residual network).
    """

    name: str
    channels: Array
    members: tuple[Member, ...]
    is_residual: bool = False

    @property
    def width(self) -> int:
        """Number of channels."""
        return len(self.channels)

    @property
    def labels(self) -> set[str]:
        """Short forms of the members, e.g. ``{"conv1:out", "bn1:out", "conv2:in"}``."""
        return {member.label for member in self.members}


@dataclass(eq=False)
class ChannelGraph:
    """Which channels of a model live and die together. Made by `trace`; knows nothing of weights or methods.

    Attributes:
        groups: name -> group, in the order of the forward pass.
        unknown: (operation, module path) of each operation without a rule; what touches it is frozen.
        shapes: parameter or buffer name -> shape of the traced model.
        tape: what was recorded.
        places: every labelled axis of every parameter and buffer, also of those that cannot be cut.
        rigid: name of each group that the model's code cannot narrow -> why; see `secateur.surgery.feasible`.
        selections: paths of the norms and layers at which the graph has a channel selection that the model lacks; None
            = it was not asked for any, see `secateur.surgery.selection.with_selections`.
    """

    groups: dict[str, ChannelGroup]
    unknown: list[tuple[str, str]]
    shapes: dict[str, tuple[int, ...]]
    tape: Tape
    labels: Labels = field(repr=False)
    component: Array = field(repr=False)  # slot -> channel
    aliases: dict[str, str] = field(repr=False)  # every name of a tied tensor -> the name the tape uses
    op_layers: list[list[list[Tensor]]] = field(repr=False)
    modules: tuple[str, ...] = field(repr=False)
    sizes_of_elements: dict[str, tuple[bool, int]] = field(repr=False)
    example: tuple[tuple[Any, ...], dict[str, Any]] = field(repr=False)
    places: tuple[Member, ...] = field(repr=False)
    rigid: dict[str, str] = field(default_factory=dict)  # groups left whole because the model's code cannot narrow them
    selections: tuple[str, ...] | None = None

    @property
    def options(self) -> TraceOptions:
        """What `trace` was told to take for one channel, to trace again: ``trace(model, args, **graph.options)``."""
        return {
            "granularity": "heads" if self.labels.heads else "head_dims",
            "conv_groups": "whole" if self.labels.whole_groups else "narrow",
        }

    @cached_property
    def costs(self) -> CostModel:
        """MACs, parameters and bytes of any plan, in closed form."""
        return CostModel.of(self)

    @cached_property
    def branches(self) -> dict[str, Branch]:
        """Residual branches by name, in the order in which they are added, also those that cannot be removed."""
        return branches_of(self)

    @cached_property
    def selecting(self) -> dict[str, str]:
        """Name of each group that a `ChannelSelect` passes on -> path of the norm or layer that it stands at."""
        index = {m.tensor: name for name, group in self.groups.items() for m in group.members}
        found = {
            index[tensor]: tensor.rpartition(".")[0].rpartition(".")[0]
            for tensor in self.labels.selecting & index.keys()
        }
        return {name: found[name] for name in self.groups if name in found}

    @property
    def widths(self) -> dict[str, int]:
        """Group name -> number of channels."""
        return {name: group.width for name, group in self.groups.items()}

    @property
    def channel_count(self) -> int:
        """Number of channels that are free to go, over all groups."""
        return sum(group.width for group in self.groups.values())

    def __str__(self) -> str:
        from .show import table

        return table(self)

    def explain(self, one: str, other: str) -> str:
        """Say through which operations two layers came to share channels; see `secateur.graph.show.explain`."""
        from .show import explain

        return explain(self, one, other)

    def check(self, plan: Plan) -> None:
        """Raise `PlanError` if the plan names what this graph lacks, a group of another width, or what has to stay."""
        for name in plan.removed_branches:
            self._check_branch(name)
        for name in plan:
            group = self.groups.get(name)
            if name in self.rigid and plan.removed(name):
                raise PlanError(f"the plan cuts {name!r}, which has to stay whole: {self.rigid[name]}")
            if group is None:
                near = did_you_mean(name, self.groups)
                hint = f"; nearest: {', '.join(near)}" if near else ""
                raise PlanError(
                    f"the plan is of another model: it has a group {name!r}, this model has none{hint}. {OTHER}"
                )
            if group.width != plan.widths[name]:
                raise PlanError(
                    f"the plan is of another model: its group {name!r} has {plan.widths[name]} channels, "
                    f"this model's has {group.width}. {OTHER}"
                )

    def _check_branch(self, name: str) -> None:
        branch = self.branches.get(name)
        if branch is None:
            near = did_you_mean(name, self.branches)
            hint = f"; nearest: {', '.join(near)}" if near else f"; it has {len(self.branches)}"
            raise PlanError(f"the plan removes a residual branch {name!r}, and this model has none of that name{hint}.")
        if branch.obstacle:
            raise PlanError(f"the residual branch {name!r} cannot be removed: {branch.obstacle}. Take it off the plan.")

    def alive(self, plan: Plan) -> Array:
        """Return a bool array over components: True = stays."""
        self.check(plan)
        alive = np.ones(int(self.component.max(initial=0)) + 1, dtype=bool)
        for name in plan:
            alive[self.groups[name].channels[list(plan.removed(name))]] = False
        return alive

    def components_along(self, name: str) -> list[tuple[frozenset[int], Array]]:
        """For each layer of a parameter or buffer: its axes, and its channel numbers (compact)."""
        known = self.labels.params.get(self.aliases.get(name, name))
        return [(axes(layer), self.component[compact(layer).numpy()]) for layer in known[1]] if known else []

    def alive_along(self, name: str, alive: Array) -> list[tuple[frozenset[int], Array]]:
        """For each layer of a parameter or buffer: its axes, and which places (bool, compact) stay alive."""
        return [(varying, alive[numbers]) for varying, numbers in self.components_along(name)]

    def touching(self, paths: Iterable[str]) -> set[str]:
        """Names of the groups that any parameter of these modules (or of modules inside them) belongs to.

        Raises:
            UnknownName: no module has that path.
        """
        found: set[str] = set()
        for path in paths:
            if path and path not in self.modules and path not in self.groups:
                raise UnknownName("module", path, filter(None, self.modules))
            for name, group in self.groups.items():
                if name == path or any(_inside(member.module, path) for member in group.members):
                    found.add(name)
        return found


def _inside(module: str, path: str) -> bool:
    return module == path or not path or module.startswith(f"{path}.")


def trace(
    model: nn.Module,
    args: Any,
    kwargs: Mapping[str, Any] | None = None,
    *,
    strict: bool = False,
    granularity: str = "heads",
    conv_groups: str = "narrow",
    carrier: str | None = None,
) -> ChannelGraph:
    """Find which channels of a model live and die together, from one forward pass on tensors without data.

    Args:
        model: any module; nothing of it changes.
        args: the example input: a tensor, or a tuple of positional inputs. Its batch size is not baked in.
        kwargs: keyword inputs.
        strict: raise on an operation without a rule, where False freezes the channels that touch it.
        granularity: "heads" cuts attention by whole heads, "head_dims" by dimensions of every head alike.
        conv_groups: "narrow" leaves a grouped convolution all its groups and cuts the same channels of each; "whole"
            takes whole groups out (the cardinality of ResNeXt), with all that makes and reads them. Depthwise ones,
            whose groups hold one channel, lose whole groups in any case.
        carrier: "meta", "fake" or "real" tensors; None takes the first that the model runs on.

    Returns:
        The channel graph; print it to see the groups.

    Raises:
        TraceError: the model rejects the input or returns no tensor.
        UnsupportedOp: `strict` and an operation has no rule.
        ValueError: an unknown granularity, or another word for `conv_groups`.

    >>> net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 1))
    >>> trace(net, torch.zeros(1, 3, 8, 8)).widths
    {'0': 8}
    >>> grouped = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3, groups=2), nn.Conv2d(8, 4, 1))
    >>> images = torch.zeros(1, 3, 8, 8)
    >>> trace(grouped, images).widths, trace(grouped, images, conv_groups="whole").widths
    ({'0': 4, '1': 4}, {'0': 2})
    """
    if granularity not in ("heads", "head_dims"):
        raise ValueError(f"granularity={granularity!r}: expected 'heads' or 'head_dims'.")
    if conv_groups not in ("narrow", "whole"):
        raise ValueError(f"conv_groups={conv_groups!r}: expected 'narrow' or 'whole'.")
    example = as_args(args), dict(kwargs or {})
    tape = record(model, *example, carrier=carrier)
    labels = Labels(tape.state, heads=granularity == "heads", whole_groups=conv_groups == "whole")
    return analyse(model, tape, example, labels, strict=strict)


def as_args(args: Any) -> tuple[Any, ...]:
    """Return positional inputs as a tuple: a list or tuple as it is, anything else as the only input."""
    return tuple(args) if isinstance(args, (tuple, list)) else () if args is None else (args,)


Example = tuple[tuple[Any, ...], dict[str, Any]]


def analyse(model: nn.Module, tape: Tape, example: Example, labels: Labels, *, strict: bool = False) -> ChannelGraph:
    """Pass fresh labels along a tape and read the groups off the ties."""
    shapes: dict[str, tuple[int, ...]] = {}
    first: dict[int, str] = {}
    aliases: dict[str, str] = {}
    for name, tensor in state_of(model, shared=True).items():
        shapes[name] = tuple(tensor.shape)
        aliases[name] = first.setdefault(id(tensor), name)
    modules = modules_of(model)
    labels.kernel = kernel_axes(modules, tape.state, {name: len(shape) for name, shape in shapes.items()})
    labels.selecting = index_names(modules)
    labels.recurrent = {path for path, m in modules.items() if isinstance(m, (nn.RNNBase, nn.RNNCellBase))}
    op_layers = [step(labels, op, strict=strict) for op in tape.ops]
    labels.op = None
    for ref in tape.outputs:
        for layer in labels.get(ref):
            labels.freeze(layer, "an output of the model")
    tie_recurrent(labels, modules)
    keep_heads_whole(labels, modules)
    labels.freeze_unread()
    component = _components(labels)
    sizes = element_sizes(model)
    groups = _groups(labels, component, modules, {name: own for name, (own, _) in sizes.items()})
    for name, path in labels.unknown:
        log.warning("no rule for %s in %s: the channels that touch it are frozen", name, path or "the model")
    return ChannelGraph(
        groups=groups,
        unknown=labels.unknown,
        shapes=shapes,
        tape=tape,
        labels=labels,
        component=component,
        aliases=aliases,
        op_layers=op_layers,
        modules=tuple(modules),
        sizes_of_elements=sizes,
        example=example,
        places=tuple(
            _member(name, layer, 1, modules) for name, (_, layers) in labels.params.items() for layer in layers
        ),
    )


def step(labels: Labels, op: Op, *, strict: bool) -> list[list[Tensor]]:
    """Pass labels through one operation; return the layers of its results."""
    labels.op = op
    if all(ref.number in labels.static for ref in op.refs()):
        labels.static.update(ref.number for ref in op.outs())
    rule = RULES.get(op.name)
    if rule is None and torch.Tag.pointwise in op.func.tags:
        rule = meeting
    products = len(labels.contractions)
    if rule is not None:
        rule(labels, op)
    else:
        _freeze_around(labels, op, strict)
    is_product = len(labels.contractions) > products
    labels.note_origin(op, is_product=is_product, is_pointwise=rule in (meeting, listed))
    return [labels.layers.get(ref.number, []) for ref in op.outs()]


def _freeze_around(labels: Labels, op: Op, strict: bool) -> None:
    touched = [layer for ref in op.refs() for layer in labels.get(ref)]
    for ref in op.outs():
        labels.set(ref, [])
    if not touched:
        return
    if strict:
        raise UnsupportedOp(
            f"{op.module or 'the model'} calls {op.func}, and no rule says how channels pass through it. "
            "Add a rule in graph/rules/, or trace with strict=False to freeze the channels that touch it."
        )
    labels.unknown.append((str(op.func), op.module))
    for layer in touched:
        labels.freeze(layer, "no rule for it")


def _components(labels: Labels) -> Array:
    """Slot -> channel number. Grids that no later operation settled are settled here, by tying equal blocks."""
    settled: set[int] = set()
    while True:
        component = _connect(labels)
        changed = False
        for k, (grid, op_index) in enumerate(labels.grids):
            if k not in settled and _settle(labels, component, grid, op_index):
                changed = True
            settled.add(k) if not changed else None
        if not changed:
            return component


def _connect(labels: Labels) -> Array:
    if not labels.ties:
        return np.arange(labels.slot_count)
    one = np.concatenate([a for a, _ in labels.ties])
    other = np.concatenate([b for _, b in labels.ties])
    ones = np.ones(len(one), dtype=np.int8)
    size = labels.slot_count
    _, component = connected_components(coo_matrix((ones, (one, other)), shape=(size, size)), directed=False)
    return np.asarray(component)


def _settle(labels: Labels, component: Array, grid: Tensor, op_index: int) -> bool:
    """Make a grid's channels vary along one axis only; True if ties were added."""
    numbers = component[grid.numpy()]
    varying = [d for d in range(numbers.ndim) if numbers.shape[d] > 1 and (numbers != numbers.take([0], axis=d)).any()]
    if len(varying) < 2:
        return False
    is_image = len(varying) > 2 and varying == list(range(1, numbers.ndim))  # (batch, channels, height, width)
    inner = 1 if is_image else max(varying)
    for axis in varying:
        if axis != inner:
            head = grid.narrow(axis, 0, 1).expand(grid.shape)
            labels.ties.append((head.reshape(-1).numpy(), grid.reshape(-1).numpy()))
            labels.tie_ops.append(op_index)
    return True


def _free(component: Array, arrays: list[Array], is_parameter: list[bool]) -> Array:
    """Return the channels that can go, by where each comes first; of each place, an array of the channels on it."""
    count = int(component.max(initial=0)) + 1
    own = [channels for channels, is_own in zip(arrays, is_parameter, strict=True) if is_own]
    has_parameter = np.zeros(count, dtype=bool)
    has_parameter[np.concatenate(own) if own else []] = True
    # a lone place (an unused position of a table) is tied to nothing: there is nothing to narrow
    has_parameter &= np.bincount(np.concatenate(arrays), minlength=count) > 1
    has_parameter[component[FROZEN]] = False
    first_slot = np.zeros(count, dtype=np.int64)
    first_slot[component[::-1]] = np.arange(len(component))[::-1]
    free = np.flatnonzero(has_parameter)
    return free[np.argsort(first_slot[free], kind="stable")]


def _alike(arrays: list[Array], free: Array, count: int) -> Array:
    """Number free channels by what they lie on: the same number for those on the same arrays, in order of the first."""
    hashes = np.random.default_rng(0).integers(1, 2**63, size=len(arrays), dtype=np.uint64)
    footprint = np.zeros(count, dtype=np.uint64)
    np.add.at(footprint, np.concatenate(arrays), np.repeat(hashes, [len(channels) for channels in arrays]))
    _, first, which = np.unique(footprint[free], return_index=True, return_inverse=True)
    rank = np.empty(len(first), dtype=np.int64)
    rank[np.argsort(first, kind="stable")] = np.arange(len(first))
    return rank[which.ravel()]


def _groups(
    labels: Labels, component: Array, modules: dict[str, nn.Module], is_parameter: dict[str, bool]
) -> dict[str, ChannelGroup]:
    """Channels with the same footprint over (tensor, axis), every product and every part of a split are one group."""
    places = [(name, k, compact(x)) for name, (_, ls) in labels.params.items() for k, x in enumerate(ls)]
    factors = {(f.data_ptr(), tuple(f.shape)): f for c in labels.contractions for f in c.factors}
    arrays = [component[x.numpy().ravel()] for _, _, x in places]
    arrays += [component[x.numpy().ravel()] for x in (*factors.values(), *labels.parts)]
    if not places:
        return {}
    count = int(component.max(initial=0)) + 1
    free = _free(component, arrays[: len(places)], [is_parameter.get(name, False) for name, _, _ in places])
    group_of = np.full(count, -1)
    group_of[free] = _alike(arrays, free, count)
    channels = (
        np.split(free[np.argsort(group_of[free], kind="stable")], np.cumsum(np.bincount(group_of[free]))[:-1])
        if len(free)
        else []
    )
    members = _members(labels, places, arrays, group_of, [len(c) for c in channels], modules)
    added = np.zeros(count, dtype=bool)
    for layer in labels.added:
        added[component[layer.numpy()]] = True
    result: dict[str, ChannelGroup] = {}
    for numbers, own in zip(channels, members, strict=True):
        # what no parameter makes (columns of a constant table) is an input of the model, not a channel
        is_made = any(is_parameter.get(m.tensor, False) and m.role != "in" for m in own)
        is_made = is_made or any(m.tensor in labels.selecting for m in own)
        if len(numbers) > 1 and is_made:
            name = _name(own, result)
            result[name] = ChannelGroup(name, numbers, tuple(own), bool(added[numbers].any()))
    return result


def _members(
    labels: Labels,
    places: list[Any],
    arrays: list[Array],
    group_of: Array,
    widths: list[int],
    modules: dict[str, nn.Module],
) -> list[list[Member]]:
    members: list[list[Member]] = [[] for _ in widths]
    for (name, k, _), numbers in zip(places, arrays, strict=False):
        layer = labels.params[name][1][k]
        of = group_of[numbers]
        present = of[of >= 0]
        if not len(present):
            continue
        counts = np.bincount(present, minlength=len(widths))
        if len(axes(layer)) > 1:
            counts = _along_last(layer, numbers, of, len(widths))
        for group in np.flatnonzero(counts):
            per_channel = max(1, int(counts[group]) // widths[group])
            members[group].append(_member(name, layer, per_channel, modules))
    return members


def _along_last(layer: Tensor, numbers: Array, of: Array, count: int) -> Array:
    """Return (groups,) how many places of the last axis along which a layer varies their channels take in all."""
    shape = compact(layer).shape
    axis = max(axes(layer))
    place = np.broadcast_to(np.arange(shape[axis]).reshape(-1, *[1] * (len(shape) - axis - 1)), shape).ravel()
    pairs = np.unique(numbers.astype(np.int64) * shape[axis] + place, return_index=True)[1]
    found = of[pairs]
    return np.bincount(found[found >= 0], minlength=count)


def _member(name: str, layer: Tensor, per_channel: int, modules: dict[str, nn.Module]) -> Member:
    axis = max(axes(layer), default=0)
    path = name.rpartition(".")[0].partition(".parametrizations")[0].removesuffix("parametrizations").rstrip(".")
    return Member(name, axis, per_channel, path, _role(modules.get(path), name, axis, layer.ndim))


def _role(module: nn.Module | None, name: str, axis: int, rank: int) -> str:
    leaf = name.rpartition(".")[2]
    if leaf in ("_v", "weight_v") and rank == 1:  # spectral norm: the input side of the matrix
        return "in"
    if module is None or isinstance(module, (nn.RNNBase, nn.MultiheadAttention)):
        return str(axis)
    transposed = isinstance(module, nn.modules.conv._ConvTransposeNd)
    if isinstance(module, (nn.Linear, nn.modules.conv._ConvNd)) and axis < 2:
        return "out" if leaf in ("bias", "original0") or axis == int(transposed) else "in"
    if isinstance(module, (nn.Embedding, nn.EmbeddingBag)):
        return "out" if axis == 1 else "in"
    if leaf in ("weight", "bias", "running_mean", "running_var") and axis == 0:
        return "out"
    return str(axis)


def _name(members: list[Member], taken: dict[str, ChannelGroup]) -> str:
    base = next((m.module or m.tensor for m in members if m.role == "out"), members[0].module or members[0].tensor)
    name, number = base, 1
    while name in taken:
        number += 1
        name = f"{base}#{number}"
    return name
