"""Prove that a shrunk model computes what the masked original computes, in float64.

Where removed channels enter a statistic (the mean and variance of a norm, a mean or softmax over channels, a product
of two activations), "masked" means: full width, but that one operation is taken over kept channels only. The tape
knows which operations these are. Everything else of the reference runs at full width on zeroed weights.

Both models run in float64 throughout: tensors that a forward pass creates follow, also where it asks for float32 by
name. That is the same formula at a higher precision, in both alike; a norm that rounded to float32 on the way would
hide every difference below 1e-7.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from ..errors import VerificationError
from ..graph.groups import ChannelGraph, as_args, step, trace
from ..graph.kernels import ExactKernels, double_by_default, exact
from ..graph.labels import Labels, axes, compact
from ..graph.tape import (
    CallWatch,
    ModuleWatch,
    Op,
    Recorder,
    Tape,
    leaves,
    map_tensors,
    op_name,
    plain_kernels,
    set_training,
    state_names,
    tensors,
    untouched,
)
from ..plan import Plan
from .mask import mask
from .shrink import copy_with

Array = np.ndarray[Any, Any]
TOLERANCE = 1e-9


@dataclass(frozen=True)
class Verification:
    """What `verify` found.

    Attributes:
        max_relative_error: largest |shrunk - masked| / max |masked| over the output tensors, in float64.
        tolerance: what was allowed.
        statistics: number of operations whose statistics the reference took over kept channels only.
        output_count: number of output tensors compared.
    """

    max_relative_error: float
    tolerance: float = TOLERANCE
    statistics: int = 0
    output_count: int = 1

    @property
    def is_exact(self) -> bool:
        """Whether the error is within the tolerance."""
        return self.max_relative_error <= self.tolerance

    def __str__(self) -> str:
        verdict = "exact" if self.is_exact else "NOT exact"
        return (
            f"{verdict}: largest relative error {self.max_relative_error:.1e} in float64 (allowed {self.tolerance:.0e})"
        )


@torch.inference_mode(False)  # tensors made in that mode never train
def verify(
    model: nn.Module,
    small: nn.Module,
    plan: Plan,
    args: Any,
    kwargs: Mapping[str, Any] | None = None,
    *,
    granularity: str = "heads",
    conv_groups: str = "narrow",
    tolerance: float = TOLERANCE,
) -> Verification:
    """Run the shrunk model against the masked original and return the largest relative error.

    Args:
        model: the original; nothing of it changes.
        small: what `shrink` made of it.
        plan: the plan between them.
        args: example input: a tensor or a tuple. Constant floating inputs (all zeros) are replaced by seeded noise,
            since they would hide errors.
        kwargs: keyword inputs.
        granularity: as given to `trace`; ``**graph.options`` gives both.
        conv_groups: as given to `trace`.
        tolerance: largest relative error to call exact.

    Raises:
        VerificationError: an output is not finite in both models, or has another shape.
        PlanError: the plan is of another model.
    """
    inputs, named = map_tensors(_telling, (as_args(args), dict(kwargs or {})))
    graph = trace(model, args, kwargs, granularity=granularity, conv_groups=conv_groups)
    wanted = _reference(model, graph, plan, inputs, named)
    precise = to_double(small)
    set_training(precise, False)
    with torch.no_grad(), plain_kernels(), double_by_default(), untouched(precise), _running("shrunk"):
        with ExactKernels():  # type: ignore[no-untyped-call]
            got = tensors(precise(*_copies(inputs), **_copies(named)))
    if len(got) != len(wanted.outputs):
        raise VerificationError(f"the shrunk model returns {len(got)} tensors, the masked one {len(wanted.outputs)}.")
    errors = [_error(a, b) for a, b in zip(got, wanted.outputs, strict=True)]
    return Verification(max(errors, default=0.0), tolerance, wanted.statistics, len(errors))


@dataclass(frozen=True)
class Reference:
    """Outputs of the masked model, and how many operations had their statistics taken over kept channels."""

    outputs: list[Tensor]
    statistics: int


def reference(
    model: nn.Module,
    plan: Plan,
    args: Any,
    kwargs: Mapping[str, Any] | None = None,
    *,
    granularity: str = "heads",
    conv_groups: str = "narrow",
) -> Reference:
    """Run the masked model in float64, with statistics taken over kept channels only, and return its outputs."""
    inputs, named = map_tensors(_as_double, (as_args(args), dict(kwargs or {})))
    graph = trace(model, args, kwargs, granularity=granularity, conv_groups=conv_groups)
    return _reference(model, graph, plan, inputs, named)


def _reference(
    model: nn.Module, graph: ChannelGraph, plan: Plan, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Reference:
    masked = mask(to_double(model), graph, plan)
    set_training(masked, False)
    mode = _KeptStatistics(graph, graph.alive(plan), masked) if _affected(graph, plan) else None
    kernels = mode or ExactKernels()  # type: ignore[no-untyped-call]
    with torch.no_grad(), plain_kernels(), double_by_default(), untouched(masked), _running("masked"), kernels:
        outputs = tensors(masked(*_copies(args), **_copies(kwargs)))
    return Reference(outputs, mode.count if mode is not None else 0)


@contextlib.contextmanager
def _running(which: str) -> Iterator[None]:
    """Say which of the two models failed to run in float64."""
    try:
        yield
    except (RuntimeError, ValueError, TypeError, IndexError) as error:
        hint = (
            ". A layer that the model does not hold (in a plain list; use nn.ModuleList) or a dtype in its code stays "
            "in its own precision"
        )
        raise VerificationError(
            f"the {which} model does not run in float64, so nothing is proved: {type(error).__name__}: {error}"
            + hint * any(dtype in str(error).lower() for dtype in ("float", "double", "dtype", "half"))
        ) from error


def _affected(graph: ChannelGraph, plan: Plan) -> bool:
    """Whether any statistic on the tape, or a model whose control flow follows the data, sees removed channels."""
    alive = graph.alive(plan)
    layers = [layer for s in graph.labels.statistics for own in s.operands.values() for layer in own]
    return any(not alive[graph.component[compact(layer).numpy()]].all() for layer in layers)


class _KeptStatistics(TorchDispatchMode):
    """Run the operations that mix removed channels on kept ones only; lay the results out at full width, zeros between.

    Labels are passed along as the operations run, not read off the tape: control flow may follow the data, and the
    masked model's data are not the original's.
    """

    def __init__(self, graph: ChannelGraph, alive: Array, masked: nn.Module) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.graph, self.alive = graph, alive
        self.count = self.index = 0
        watch = ModuleWatch(masked)
        self.recorder = Recorder(Tape("real"), state_names(masked), watch, CallWatch())
        known = graph.labels
        self.labels = Labels(self.recorder.tape.state, heads=known.heads, whole_groups=known.whole_groups)
        self.labels.kernel, self.labels.selecting = graph.labels.kernel, graph.labels.selecting
        self.known = np.ones(1, dtype=bool)  # slot -> alive
        self.named: set[str] = set()
        self.tied = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        noted, noted_kwargs = self.recorder.note(args), self.recorder.note_kwargs(kwargs)
        out = exact(func, args, kwargs)
        if func.namespace == "prim":
            return out
        self.index += 1
        op = Op(self.index, func, op_name(func), noted, noted_kwargs, self.recorder.note(out), "")
        statistics = len(self.labels.statistics)
        step(self.labels, op, strict=False)
        self._learn()
        if len(self.labels.statistics) == statistics:
            return out
        operands = self.labels.statistics[-1].operands
        keep = {number: self._keep(layers) for number, layers in operands.items()}
        if not any(keep.values()):
            return out
        self.count += 1
        pairs = zip(_flat(args), leaves(noted), strict=True)
        slim = _replace(args, {id(tensor): _cut(tensor, keep[ref.number]) for tensor, ref in pairs})
        return self._laid_out(exact(func, _with_sizes(op.name, slim), kwargs), out, op)

    def _learn(self) -> None:
        """Find out which slots that came up are alive: from the plan for parameters, through ties for the rest."""
        fresh = self.labels.slot_count - len(self.known)
        if fresh:
            self.known = np.concatenate([self.known, np.ones(fresh, dtype=bool)])
        for name in self.labels.params.keys() - self.named:
            self.named.add(name)
            own = self.graph.alive_along(name, self.alive)
            for layer, (_, places) in zip(self.labels.params[name][1], own, strict=False):
                self.known[compact(layer).numpy().ravel()] = places.ravel()
        for one, other in self.labels.ties[self.tied :]:
            both = self.known[one] & self.known[other]
            self.known[one] = both
            self.known[other] = both
        self.tied = len(self.labels.ties)
        self.known[0] = True

    def _keep(self, layers: list[Tensor]) -> dict[int, Tensor]:
        """Axis -> kept indices."""
        result: dict[int, Tensor] = {}
        for layer in layers:
            places = self.known[compact(layer).numpy()]
            for axis in axes(layer):
                line = places.any(axis=tuple(d for d in range(places.ndim) if d != axis))
                if not line.all():
                    result[axis] = torch.from_numpy(np.flatnonzero(line))
        return result

    def _laid_out(self, slim: Any, wide: Any, op: Op) -> Any:
        """Lay narrow results out in the places of the wide ones, which later operations know by number."""
        several = isinstance(wide, (tuple, list))
        for narrow, full, ref in zip(slim if several else [slim], wide if several else [wide], op.outs(), strict=True):
            if narrow.shape == full.shape:
                full.copy_(narrow)
                continue
            keep = self._keep(self.labels.layers.get(ref.number, []))
            if not keep:  # the statistics that a norm returns beside its result
                continue
            for axis, kept in keep.items():
                spread = narrow.new_zeros([s if d != axis else full.shape[axis] for d, s in enumerate(narrow.shape)])
                narrow = spread.index_copy(axis, kept.to(narrow.device), narrow)
            full.copy_(narrow)
        return wide


def _cut(tensor: Tensor, keep: dict[int, Tensor]) -> Tensor:
    for axis, index in keep.items():
        tensor = tensor.index_select(axis, index.to(tensor.device))
    return tensor


def _with_sizes(name: str, args: Any) -> Any:
    """Let the size arguments of norms follow their narrower input."""
    args = list(args)
    if name in ("native_layer_norm", "rms_norm", "_fused_rms_norm"):
        args[1] = list(args[0].shape[-len(args[1]) :])
    if name == "native_group_norm":
        args[4] = args[0].shape[1]
    return args


def _flat(value: Any) -> Iterator[Tensor]:
    if isinstance(value, (list, tuple)):
        for item in value:
            yield from _flat(item)
    elif isinstance(value, Tensor):
        yield value


def _replace(value: Any, new: dict[int, Tensor]) -> Any:
    if isinstance(value, Tensor):
        return new.get(id(value), value)
    if isinstance(value, (list, tuple)):
        return type(value)(_replace(item, new) for item in value)
    return value


def _copies(value: Any) -> Any:
    """Copies of every tensor of an input: a forward pass may write into them."""
    return map_tensors(lambda tensor: tensor.clone(), value)


def to_double(model: nn.Module) -> nn.Module:
    """Return a copy with every floating tensor in float64, complex in complex128, plain tensor attributes too."""
    precise = copy_with(model, lambda _, tensor: tensor.detach().clone(memory_format=torch.preserve_format))
    for module in precise.modules():
        for table in (module._parameters, module._buffers):
            for key, tensor in table.items():
                if tensor is not None and tensor.dtype != (wide := _as_double(tensor)).dtype:
                    tensor.data = wide if key in module._buffers or isinstance(tensor, nn.Parameter) else tensor
        for key, value in list(module.__dict__.items()):
            if isinstance(value, Tensor):
                module.__dict__[key] = _as_double(value)
    return precise


def _as_double(tensor: Tensor) -> Tensor:
    if tensor.is_complex():
        return tensor.detach().to(torch.complex128)
    return tensor.detach().to(torch.float64) if tensor.is_floating_point() else tensor


def _telling(tensor: Tensor) -> Tensor:
    """Return a float64 copy; noise in place of a constant or data-free tensor."""
    if not tensor.is_floating_point():
        return _as_double(tensor)
    is_blank = tensor.device.type == "meta" or (tensor.numel() > 1 and bool((tensor == tensor.flatten()[0]).all()))
    if not is_blank:
        return tensor.detach().to(torch.float64)
    generator = torch.Generator().manual_seed(0)
    device = "cpu" if tensor.device.type == "meta" else tensor.device
    return torch.randn(tensor.shape, dtype=torch.float64, generator=generator).to(device)


def _error(got: Tensor, wanted: Tensor) -> float:
    if got.shape != wanted.shape:
        raise VerificationError(
            f"the shrunk model returns shape {list(got.shape)}, the masked one {list(wanted.shape)}."
        )
    if got.numel() == 0:
        return 0.0
    if not (got.is_floating_point() or got.is_complex()):
        return 0.0 if torch.equal(got, wanted) else float("inf")
    same = (got == wanted) | (got.isnan() & wanted.isnan())
    if not bool((got.isfinite() & wanted.isfinite() | same).all()):
        raise VerificationError(
            "an output is not finite, and not the same in both models: nothing can be said about it."
        )
    finite = wanted.isfinite()
    if not bool(finite.any()):
        raise VerificationError("every output is NaN or infinite: check the weights and the example input.")
    scale = wanted[finite].abs().max().item()
    gap = (got - wanted)[finite].abs().max().item()
    return gap / scale if scale else gap
