"""The maps that channels show to the layers that read them, seen while a model runs.

A feature of a group is the last operation before a reader that computes something: an activation, an addition, a
normalisation. What only moves, joins, pools or averages numbers stands between it and the reader. At run time it is
found again by the module that runs it, its kind, and how often that module ran one of that kind before. A linear layer
or an attention call counts as one, since the kernels that it is made of depend on strides and sizes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode

from ..errors import MethodError, first_line
from ..graph.groups import ChannelGraph, ChannelGroup
from ..graph.labels import axes, compact
from ..graph.norms import Flow
from ..graph.products import MATRIX_PRODUCTS, readers
from ..graph.rules import RULES
from ..graph.tape import CallWatch, ModuleWatch, Op, op_name, plain_kernels, tensors
from ..train.task import Inputs

PASSIVE = ("indexing", "movement", "pooling", "reduction")  # families of rules
CALL = "call"  # kind of a composite call
MANY_NAMED = ("batch_norm", "convolution", "group_norm", "layer_norm")  # rules of kernels that go by several names


class Key(NamedTuple):
    """An operation of a forward pass: the module that runs it, its kind, and how many it ran of that kind before."""

    module: str
    kind: str
    use: int


@dataclass(frozen=True, eq=False)
class Feature:
    """Where the channels of a group can be seen.

    Attributes:
        key: the operation whose first result holds them.
        axis: along which they lie.
        rank: number of axes of the result.
        period: places along the axis after which the channels come again; all but where samples are folded into it.
        places: (width, places per channel) where each channel lies along the axis.
    """

    key: Key
    axis: int
    rank: int
    period: int
    places: Tensor

    def maps(self, value: Tensor) -> Tensor:
        """Return what each channel shows as matrices, (samples, width, rows, columns).

        A channel that is an image gives its lines, one of several places (a head) gives positions by places. Where that
        leaves a single row or column, the samples are the rows of one matrix.

        Raises:
            MethodError: the result is laid out in another way than on the example input.
        """
        line = value.shape[self.axis] if value.ndim == self.rank else 0
        if not line or line % self.period or (self.axis and line != self.period):
            raise MethodError(
                f"module {self.key.module!r} gave a tensor {list(value.shape)} with its channels on axis {self.axis}; "
                f"on the example input they took {self.period} places there. Give data like the example input."
            )
        if self.axis:
            value = value.movedim(self.axis, 1)
        else:
            value = value.unflatten(0, (-1, self.period))
        width, per_channel = self.places.shape
        picked = value[:, self.places.flatten().to(value.device)].unflatten(1, (width, per_channel))
        if per_channel == 1 and picked.ndim > 4:
            found: Tensor = picked.squeeze(2).flatten(2, -2)
        else:
            found = picked.flatten(start_dim=3).transpose(2, 3) if picked.ndim > 3 else picked.unsqueeze(2)
        if 1 in found.shape[2:]:
            found = found.flatten(2).transpose(0, 1)[None]
        return found


def features(graph: ChannelGraph, flow: Flow, group: ChannelGroup) -> list[Feature]:
    """Return every place where a group's channels are shown to layers that read them, in forward order."""
    keys = _keys(graph)
    behind: set[int] = set()
    for product in readers(graph, group, flow.products):
        behind |= flow.behind(group, product.source, product.op.index, lambda op: not _is_passive(op))
    last = {op.call: op.index for op in graph.tape.ops if op.call}  # the result of a call is that of its last operation
    shown = sorted({last.get(graph.tape.ops[k].call, k) for k in behind})
    found = (_feature(graph, group, graph.tape.ops[k], keys[k]) for k in shown)
    return [feature for feature in found if feature is not None]


def watch_features(model: nn.Module, inputs: Inputs, see: Mapping[Key, Callable[[Tensor], None]], who: str) -> None:
    """Run a model as it is, without gradients, and call a function with the result of each of these operations.

    Raises:
        MethodError: the model cannot be run on these inputs, or one of the operations did not happen.
    """
    args, kwargs = inputs
    modules = ModuleWatch(model)
    sight = _Sight(modules, see)
    with torch.no_grad(), torch.autocast(_device_type(model), enabled=False), _kernels(model), modules.watching():
        try:
            with _Calls(sight) as calls, _Ops(sight, calls):
                model(*args, **kwargs)
        except MethodError:
            raise
        except Exception as error:
            raise MethodError(
                f"{who}: the model cannot be run, module {modules.failed or type(model).__name__!r} raised "
                f"{type(error).__name__}: {first_line(error)}. The batches of data= have to be what task= expects."
            ) from error
    missing = sorted(see.keys() - sight.seen)
    if missing:
        raise MethodError(
            f"{who}: module {missing[0].module!r} did not run {missing[0].kind!r} as it did on the example input: its "
            "control flow follows the data. Protect that layer, or give data that take the same way."
        )


class _Sight:
    """Counts what every module runs, and calls what is to be called."""

    def __init__(self, modules: ModuleWatch, see: Mapping[Key, Callable[[Tensor], None]]) -> None:
        self.modules, self.see = modules, see
        self.seen: set[Key] = set()
        self.counts: Counter[tuple[str, str]] = Counter()
        self.is_busy = False  # what is called computes too, and that is none of the model's operations

    def look(self, kind: str, out: Any) -> None:
        if self.is_busy:
            return
        place = self.modules.path, kind
        key = Key(*place, self.counts[place])
        self.counts[place] += 1
        if key in self.see:
            self.seen.add(key)
            self.is_busy = True
            self.see[key](tensors(out)[0])
            self.is_busy = False


class _Calls(CallWatch):
    """Sees composite calls."""

    def __init__(self, sight: _Sight) -> None:
        super().__init__()
        self.sight = sight

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        before = self.count
        out = super().__torch_function__(func, types, args, kwargs)
        if self.count > before:
            self.sight.look(CALL, out)
        return out


class _Ops(TorchDispatchMode):
    """Sees operations outside composite calls."""

    def __init__(self, sight: _Sight, calls: CallWatch) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.sight, self.calls = sight, calls

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if func.namespace != "prim" and not self.calls.current:
            self.sight.look(_kind(op_name(func)), out)
        return out


def _keys(graph: ChannelGraph) -> list[Key]:
    """Return the key of each operation on the tape; those of one call have the same."""
    counts: Counter[tuple[str, str]] = Counter()
    calls: dict[int, Key] = {}
    keys = []
    for op in graph.tape.ops:
        place = op.module, CALL if op.call else _kind(op.name)
        key = calls.get(op.call) or Key(*place, counts[place])
        if op.call not in calls:
            counts[place] += 1
        if op.call:
            calls[op.call] = key
        keys.append(key)
    return keys


def _kind(name: str) -> str:
    rule = RULES.get(name)
    if name in MATRIX_PRODUCTS:
        return "product"
    return rule.__name__ if rule is not None and rule.__name__ in MANY_NAMED else name


def _is_passive(op: Op) -> bool:
    rule = RULES.get(op.name)
    return rule is not None and rule.__module__.rpartition(".")[2] in PASSIVE


def _feature(graph: ChannelGraph, group: ChannelGroup, op: Op, key: Key) -> Feature | None:
    """Describe the first result of an operation; None if the group's channels do not lie along one axis of it."""
    position = np.full(int(graph.component.max(initial=0)) + 1, -1)
    position[group.channels] = np.arange(group.width)
    for layer in graph.op_layers[op.index][0]:
        where = position[graph.component[compact(layer).numpy()]].reshape(-1)
        if len(axes(layer)) != 1 or not (where >= 0).any():
            continue
        (axis,) = axes(layer)
        period = len(where) if axis else _period(where)
        line = where[:period]
        order = np.argsort(line, kind="stable")[np.count_nonzero(line < 0) :]
        places = torch.from_numpy(order).reshape(group.width, -1)
        return Feature(key, axis, layer.ndim, period, places)
    return None


def _period(where: np.ndarray[Any, Any]) -> int:
    """Return after how many places a sequence repeats itself to its end.

    >>> _period(np.array([0, 1, 1, 0, 1, 1]))
    3
    """
    size = len(where)
    return next(p for p in range(1, size + 1) if size % p == 0 and (where.reshape(-1, p) == where[:p]).all())


def _device_type(model: nn.Module) -> str:
    return next((t.device.type for t in model.parameters()), "cpu")


@contextmanager
def _kernels(model: nn.Module) -> Iterator[None]:
    """Make attention and recurrent layers run step by step, as they were recorded."""
    if any(isinstance(module, nn.RNNBase) for module in model.modules()):
        with plain_kernels():
            yield
        return
    fastpath = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fastpath)
