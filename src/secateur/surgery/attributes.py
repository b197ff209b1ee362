"""Make the numbers that modules remember agree with their narrower tensors.

Torch's own layers have a table. For any other module the tape says which sizes its views, splits and slices used and
what they must become; the module's attributes with that value are candidates. A replay of the tape on tensors without
data then proves that every shape is as expected, and settles what is ambiguous. What cannot be settled raises.
"""

from __future__ import annotations

import contextlib
import copy
import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import nn

from ..errors import SurgeryError
from ..graph.groups import ChannelGraph
from ..graph.labels import compact
from ..graph.products import products
from ..graph.tape import Op, Ref, replay
from ..graph.walk import modules_of
from ..plan import Plan
from .branches import branch_settings, narrow_zeros_, swap_branch_module_, without_shortcuts_
from .record import AttributeChange
from .steps import Step, expected_steps, found_steps, groups_after, is_inside, results, shapes_after
from .widths import apply_native_, kept_heads, native_widths, needs_dropin, swap_attention_, without_nested_tensors_

log = logging.getLogger(__name__)
Array = np.ndarray[Any, Any]
TRIES = 60  # replays before giving up
SEEN = "\0seen"
SIZED = (  # operations that are called with sizes
    "view _unsafe_view reshape expand repeat tile split split_with_sizes unflatten unfold as_strided zeros ones "
    "full empty new_zeros new_ones new_full new_empty constant_pad_nd native_group_norm native_layer_norm pixel_shuffle"
).split()


@dataclass(frozen=True)
class Holder:
    """An attribute that may have to change: where it is and what it holds."""

    module: str
    name: str
    value: int


def repair_(
    small: nn.Module, model: nn.Module, graph: ChannelGraph, plan: Plan, cuts: dict[str, Any]
) -> tuple[list[AttributeChange], dict[str, dict[str, Any]]]:
    """Bring every attribute of a freshly cut model in line with its tensors, and take out removed branches, in place.

    Returns:
        The attribute changes in order, and the settings of each module that was swapped for a drop-in.

    Raises:
        SurgeryError: a width in the model's code cannot be found among its attributes.
    """
    alive = graph.alive(plan)
    after = shapes_after(graph, alive) if cuts or plan.removed_branches else []
    swapped = branch_settings(model, graph, plan, after) if plan.removed_branches else {}
    removed = tuple(swapped)
    for path, settings in swapped.items():
        swap_branch_module_(small, path, settings)
    fewer = groups_after(graph, alive) if after else {}
    changes = apply_native_(small, model, _left_in_modules(model, graph, fewer))
    for path in needs_dropin(small, model):
        old: Any = model.get_submodule(path)
        swapped[path] = swap_attention_(small, path, old, kept_heads(old, path, cuts))
    changes += without_nested_tensors_(small, swapped) + without_shortcuts_(small, removed)
    if not after:
        return changes, swapped
    changes += narrow_zeros_(small, graph, after)
    vague = {index for name in plan.removed_branches for index in graph.branches[name].loose}
    expected = expected_steps(graph, alive, tuple(swapped), after, vague)
    repair = _Repair(
        small, graph, expected, wanted_sizes(graph, alive, after, _written_out(model, graph, fewer)), tuple(swapped)
    )
    with _without(plan):
        repair.run()
    return [*changes, *repair.changes()], swapped


def _left_in_modules(model: nn.Module, graph: ChannelGraph, fewer: Mapping[int, tuple[int, int]]) -> dict[str, int]:
    """Return path of each convolution of torch's that loses whole groups -> how many are left.

    It runs the operation, or another module does with its weight.
    """
    modules = modules_of(model)
    weights = {p.op.index: p.site.weight for p in products(graph)} if fewer else {}
    found = {}
    for index, (_, left) in fewer.items():
        owner = weights.get(index, "").rpartition(".")[0].partition(".parametrizations")[0]
        for path in (graph.tape.ops[index].module, owner):
            if isinstance(modules.get(path), nn.modules.conv._ConvNd):
                found[path] = left
    return found


def _written_out(
    model: nn.Module, graph: ChannelGraph, fewer: Mapping[int, tuple[int, int]]
) -> dict[int, tuple[int, int]]:
    """Return those of the convolutions that lose groups which the code of a module calls with a number of its own.

    Not where there is one for each channel: that number is a width like others.
    """
    modules, ops = modules_of(model), graph.tape.ops
    return {
        index: counts
        for index, counts in fewer.items()
        if not isinstance(modules.get(ops[index].module), nn.modules.conv._ConvNd)
        and counts[0] not in (ops[index].args[0].shape[1], ops[index].out.shape[1])
    }


@contextlib.contextmanager
def _without(plan: Plan) -> Iterator[None]:
    """Say of a failed replay which branches were taken out: one of them may be why."""
    try:
        yield
    except SurgeryError as error:
        if plan.removed_branches:
            error.args = (f"without the residual branches {', '.join(plan.removed_branches)}: {error}",)
        raise


def wanted_sizes(
    graph: ChannelGraph,
    alive: Array,
    after: list[list[tuple[int, ...]]],
    fewer: Mapping[int, tuple[int, int]],
) -> dict[str, dict[int, list[int]]]:
    """For each module path: every size its operations were called with that must change -> what it must become.

    Under ``path + SEEN``: sizes that only came up in results. A module may have checked one, but asked for none.
    `fewer`: position of an operation -> a number of groups that it was called with, and what is left of them.
    """
    wanted: dict[str, dict[int, list[int]]] = {}
    shapes: dict[int, tuple[int, ...]] = {}

    def ask(op: Op, before: int, after: int, suffix: str = "") -> None:
        if before != after:
            options = wanted.setdefault(op.module + suffix, {}).setdefault(before, [])
            if after not in options:
                options.append(after)

    for op, own_shapes in zip(graph.tape.ops, after, strict=True):
        for ref, shape in zip(results(op), own_shapes, strict=True):
            shapes[ref.number] = shape
            if shape != ref.shape:
                for old, new in zip(ref.shape, shape, strict=True):
                    ask(op, old, new, "" if op.name in SIZED else SEEN)
        for old, new in _argument_sizes(graph, op, alive, shapes):
            ask(op, old, new)
        if op.index in fewer:
            ask(op, *fewer[op.index])
    return wanted


def _argument_sizes(
    graph: ChannelGraph, op: Op, alive: Array, shapes: dict[int, tuple[int, ...]]
) -> list[tuple[int, int]]:
    """Sizes that an operation was given as numbers and that do not appear in the shape of its result."""
    found: list[tuple[int, int]] = []
    if op.name == "slice" and len(op.args) > 2:
        source: Ref = op.args[0]
        axis = op.args[1] % len(source.shape)
        for layer in graph.labels.layers.get(source.number, []):
            if layer.shape[axis] > 1 and layer.stride(axis):
                places = alive[graph.component[compact(layer).numpy()]]
                line = places.any(axis=tuple(d for d in range(places.ndim) if d != axis))
                ends = [e for e in op.args[2:4] if isinstance(e, int) and 0 < e <= len(line)]
                found += [(e, int(line[:e].sum())) for e in ends]
                found += [(-e, -int(line[e:].sum())) for e in op.args[2:4] if isinstance(e, int) and -len(line) < e < 0]
    if op.name == "constant_pad_nd":
        found += _pad_sizes(graph, op, alive)
    if op.name in ("native_layer_norm", "rms_norm", "_fused_rms_norm"):
        source = op.args[0]
        after = shapes.get(source.number, source.shape)
        found += list(zip(source.shape[-len(op.args[1]) :], after[-len(op.args[1]) :], strict=True))
    return found


def _pad_sizes(graph: ChannelGraph, op: Op, alive: Array) -> list[tuple[int, int]]:
    out: Ref = op.out
    amounts = list(op.args[1])
    found = []
    for layer in graph.op_layers[op.index][0]:
        for k in range(0, len(amounts), 2):
            axis = len(out.shape) - 1 - k // 2
            if layer.shape[axis] > 1 and layer.stride(axis):
                line = alive[graph.component[compact(layer).numpy().ravel()]]
                low, high = amounts[k], amounts[k + 1]
                found += [(low, int(line[:low].sum()))] if low else []
                found += [(high, int(line[-high:].sum()))] if high else []
    return found


class _Repair:
    """A search over attribute values, scored by how far the replay gets."""

    def __init__(
        self,
        small: nn.Module,
        graph: ChannelGraph,
        expected: list[Step],
        wanted: dict[str, dict[int, list[int]]],
        swapped: tuple[str, ...],
    ) -> None:
        self.small, self.graph, self.wanted, self.swapped = small, graph, wanted, swapped
        self.modules = modules_of(small)
        self.tries = 0
        self.expected = expected
        self.numbers: dict[str, dict[int, list[str]]] = {}
        self.holders, self.options = self._holders()
        self.values: dict[Holder, int] = {}

    def _holders(self) -> tuple[dict[str, list[Holder]], dict[Holder, list[int]]]:
        """Find, for each module that used a size, the attributes with that value: its own, else its ancestors'."""
        by_module: dict[str, list[Holder]] = {}
        options: dict[Holder, list[int]] = {}
        for key, sizes in self.wanted.items():
            path = key.removesuffix(SEEN)
            if is_inside(path, self.swapped):
                continue
            for before, afters in sizes.items():
                for holder in self._with_value(path, before, upwards=key == path):
                    by_module.setdefault(path, []).append(holder)
                    known = options.setdefault(holder, [])
                    known += [a for a in afters if a not in known]
        return by_module, options

    def _with_value(self, path: str, value: int, *, upwards: bool) -> list[Holder]:
        while True:
            found = [Holder(path, name, value) for name in self._names(path, value)]
            if not upwards:
                return [holder for holder in found if not holder.name.startswith("config.")]
            if found or not path:
                return found
            path = path.rpartition(".")[0]

    def _names(self, path: str, value: int) -> list[str]:
        if path not in self.numbers:
            self.numbers[path] = numbers_of(self.modules[path]) if path in self.modules else {}
        return self.numbers[path].get(value, [])

    def run(self) -> None:
        for holder, news in self.options.items():
            if len(news) == 1 and not _is_unlikely(holder.name):
                self._set(holder, news[0])
        reached, problem = self._replay()
        while problem is not None:
            better = self._improve(reached, problem)
            if better is None:
                raise self._failure(problem)
            reached, problem = better

    def _set(self, holder: Holder, value: int) -> None:
        write(self.modules[holder.module], holder.name, value)
        if value == holder.value:
            self.values.pop(holder, None)
        else:
            self.values[holder] = value

    def changes(self) -> list[AttributeChange]:
        return [AttributeChange(h.module, h.name, h.value, v) for h, v in self.values.items()]

    def _replay(self) -> tuple[int, tuple[int, str, str] | None]:
        """Run the small model; return how many operations agreed, and (index, module path, what was wrong) or None."""
        self.tries += 1
        args, kwargs = self.graph.example
        carrier = self.graph.tape.carrier
        tape, error, failed_in = replay(self.small, args, kwargs, carrier=carrier)
        aliases = self.graph.aliases  # the first name of a tied tensor may have gone with a branch
        tape.state = {number: aliases.get(name, name) for number, name in tape.state.items()}
        found = found_steps(tape, self.swapped)
        for k, (step, known) in enumerate(zip(found, self.expected, strict=False)):
            if what := step.differs(known):
                if carrier == "real" and error is None:
                    return len(self.expected), None  # control flow may follow the data: verify compares the numbers
                return k, (k, known.module, what)
        if error is not None:
            where = failed_in if failed_in is not None else ""
            k = min(len(found), len(self.expected) - 1)
            return len(found), (k, where, f"{type(error).__name__}: {error}")
        return len(self.expected), None

    def _improve(self, reached: int, problem: tuple[int, str, str]) -> tuple[int, tuple[int, str, str] | None] | None:
        """Try other values of attributes near the problem, for all modules of a class at once; keep the first that
        helps.
        """
        for batch in self._candidates(problem):
            if self.tries >= TRIES:
                return None
            before = {holder: self.values.get(holder, holder.value) for holder, _ in batch}
            for holder, value in batch:
                self._set(holder, value)
            now, trouble = self._replay()
            if trouble is None or now > reached:
                return now, trouble
            for holder, value in before.items():
                self._set(holder, value)
        return None

    def _candidates(self, problem: tuple[int, str, str]) -> list[list[tuple[Holder, int]]]:
        index, path, _ = problem
        near = [path, self.expected[min(index, len(self.expected) - 1)].module]
        paths = list(dict.fromkeys(p for start in near for p in _upwards(start)))
        local = [h for p in paths for h in self._near(p)]
        single: list[list[tuple[Holder, int]]] = []
        for holder in dict.fromkeys(local):
            for value in [*self.options.get(holder, []), holder.value]:
                if value != self.values.get(holder, holder.value):
                    alike = [(h, self._counterpart(h, holder, value)) for h in self.options if self._alike(h, holder)]
                    single += [alike, [(holder, value)]] if len(alike) > 1 else [[(holder, value)]]
        pairs = [a + b for i, a in enumerate(single[:6]) for b in single[i + 1 : 6] if a[0][0] != b[0][0]]
        return single + pairs

    def _near(self, path: str) -> list[Holder]:
        """Holders used by a module, held by it, or below it one level."""
        return [*self.holders.get(path, []), *(h for h in self.options if h.module == path)]

    def _alike(self, one: Holder, other: Holder) -> bool:
        return one.name == other.name and type(self.modules[one.module]) is type(self.modules[other.module])

    def _counterpart(self, holder: Holder, like: Holder, value: int) -> int:
        """Value of the same choice (keep, or the k-th option) for another module of the class."""
        if value == like.value:
            return holder.value
        k = self.options[like].index(value) if value in self.options[like] else 0
        options = self.options[holder]
        return options[min(k, len(options) - 1)]

    def _failure(self, problem: tuple[int, str, str]) -> SurgeryError:
        error = SurgeryError(self._complaint(problem))
        op = self.expected[min(problem[0], len(self.expected) - 1)]
        error.op_index, error.module_path = op.index, problem[1] or op.module  # type: ignore[attr-defined]
        return error

    def _complaint(self, problem: tuple[int, str, str]) -> str:
        index, path, what = problem
        op = self.expected[min(index, len(self.expected) - 1)]
        changes = list(self.wanted.get(op.module, {}).items())[:6]
        sizes = ", ".join(f"{before} to {' or '.join(map(str, after))}" for before, after in changes)
        blame = (
            f"A width seems to be written in its code where no attribute holds it (it has to change {sizes}). "
            "Make it an attribute"
            if sizes
            else "Its code seems to compute with a width, so that a narrower layer is another function. "
            "Make the number an attribute of its own"
        )
        where = path or op.module
        name = f"module {where!r}" if where else "the model"
        instead = f"leave it alone with protect=[{where!r}]" if where else "protect the layers around it"
        return f"after the cut, {name} does not run as it must at {op.name}: {what}. {blame}, or {instead}."


def _upwards(path: str) -> list[str]:
    parts = path.split(".") if path else []
    return [".".join(parts[:k]) for k in range(len(parts), -1, -1)]


# Words in the names of numbers that no pruning changes; an attribute so named is tried last.
UNLIKELY = (
    "window patch kernel stride pad_ dilation depth layer_idx layers img_ image grid_ position length step level "
    "eps index token_id block_size seq"
).split()


def _is_unlikely(name: str) -> bool:
    return any(word in name.lower() for word in UNLIKELY)


def numbers_of(module: nn.Module) -> dict[int, list[str]]:
    """For each number that a module holds: the names of its integer attributes with this value.

    Inside lists and tuples as ``name[i]``; a number that is in neither is looked for in the module's config. Widths
    that torch's own layers read off their tensors are right already and left out.

    >>> numbers_of(nn.MaxPool2d(3))
    {3: ['kernel_size', 'stride'], 0: ['padding'], 1: ['dilation']}
    """
    found: dict[int, list[str]] = {}
    read_off = native_widths(module)
    for name, held in module.__dict__.items():
        if name in ("training",) or name in read_off or name.startswith(("_forward", "_backward", "_state", "_load")):
            continue
        if type(held) is int:
            found.setdefault(held, []).append(name)
        elif type(held) in (list, tuple):
            for i, item in enumerate(held):
                if type(item) is int:
                    found.setdefault(item, []).append(f"{name}[{i}]")
    in_config: dict[int, list[str]] = {}
    for name, held in getattr(module.__dict__.get("config"), "__dict__", {}).items():
        if type(held) is int:
            in_config.setdefault(held, []).append(f"config.{name}")
    return {**in_config, **found}


def read(module: nn.Module, name: str) -> Any:
    """Return an attribute by the name that `matching` gives; None if there is none.

    >>> read(nn.Conv2d(3, 8, 5), "kernel_size[1]")
    5
    """
    if name.endswith("]"):
        base, _, position = name[:-1].partition("[")
        held = module.__dict__.get(base)
        index = int(position)
        return held[index] if isinstance(held, (list, tuple)) and index < len(held) else None
    if name.startswith("config."):
        return getattr(module.__dict__.get("config"), "__dict__", {}).get(name.removeprefix("config."))
    return getattr(module, name, None)


def write(module: nn.Module, name: str, value: Any) -> None:
    """Set an attribute by the name that `matching` gives; lists and configs are copied first, they may be shared."""
    if name.endswith("]"):
        base, _, position = name[:-1].partition("[")
        held = module.__dict__[base]
        items = list(held)
        items[int(position)] = value
        module.__dict__[base] = type(held)(items)
    elif name.startswith("config."):
        config = copy.copy(module.__dict__["config"])
        vars(config)[name.removeprefix("config.")] = value
        module.__dict__["config"] = config
    elif name in module.__dict__:
        module.__dict__[name] = value
    else:
        setattr(module, name, value)
