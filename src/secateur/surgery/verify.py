"""Prove that a shrunk model computes what the masked original computes, in float64.

Where removed channels enter a statistic (the mean and variance of a norm, a mean or softmax over channels, a product
of two
activations), "masked" means: full width, but that one operation is taken over kept channels only. The tape knows which
operations these are. Everything else of the reference runs at full width on zeroed weights.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from ..errors import VerificationError
from ..graph.groups import ChannelGraph, as_args, trace
from ..graph.labels import Statistic, axes, compact
from ..graph.tape import leaves, map_tensors, plain_kernels, set_training, tensors, untouched
from ..plan import Plan
from .mask import mask

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


def verify(
    model: nn.Module,
    small: nn.Module,
    plan: Plan,
    args: Any,
    kwargs: Mapping[str, Any] | None = None,
    *,
    granularity: str = "heads",
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
        granularity: as given to `trace`.
        tolerance: largest relative error to call exact.

    Raises:
        VerificationError: an output is not finite in both models, or has another shape.
        PlanError: the plan is of another model.
    """
    inputs, named = map_tensors(_telling, (as_args(args), dict(kwargs or {})))
    graph, wanted = _reference(model, plan, inputs, named, granularity)
    with torch.no_grad(), plain_kernels(), _double(small) as precise, untouched(precise):
        set_training(precise, False)
        got = tensors(precise(*inputs, **named))
    if len(got) != len(wanted.outputs):
        raise VerificationError(f"the shrunk model returns {len(got)} tensors, the masked one {len(wanted.outputs)}.")
    del graph
    errors = [_error(a, b) for a, b in zip(got, wanted.outputs, strict=True)]
    return Verification(max(errors, default=0.0), tolerance, wanted.statistics, len(errors))


@dataclass(frozen=True)
class Reference:
    """Outputs of the masked model, and how many operations had their statistics taken over kept channels."""

    outputs: list[Tensor]
    statistics: int


def reference(
    model: nn.Module, plan: Plan, args: Any, kwargs: Mapping[str, Any] | None = None, *, granularity: str = "heads"
) -> Reference:
    """Run the masked model in float64, with statistics taken over kept channels only, and return its outputs."""
    inputs, named = map_tensors(_as_double, (as_args(args), dict(kwargs or {})))
    return _reference(model, plan, inputs, named, granularity)[1]


def _reference(
    model: nn.Module, plan: Plan, args: tuple[Any, ...], kwargs: dict[str, Any], granularity: str
) -> tuple[ChannelGraph, Reference]:
    with _double(model) as precise:
        graph = trace(precise, args, kwargs, granularity=granularity)
        affected = _affected(graph, plan)
        if affected and graph.tape.carrier != "real":
            graph = trace(precise, args, kwargs, granularity=granularity, carrier="real")
            affected = _affected(graph, plan)
        masked = mask(precise, graph, plan)
        set_training(masked, False)
        mode = _KeptStatistics(graph, graph.alive(plan), affected) if affected else contextlib.nullcontext()
        with torch.no_grad(), plain_kernels(), untouched(masked), mode:
            outputs = tensors(masked(*args, **kwargs))
    return graph, Reference(outputs, len(affected))


def _affected(graph: ChannelGraph, plan: Plan) -> dict[int, Statistic]:
    alive = graph.alive(plan)
    found = {}
    for statistic in graph.labels.statistics:
        layers = [layer for own in statistic.operands.values() for layer in own]
        if any(not alive[graph.component[compact(layer).numpy()]].all() for layer in layers):
            found[statistic.op] = statistic
    return found


class _KeptStatistics(TorchDispatchMode):
    """Run chosen operations on kept channels only and lay the results out at full width, zeros between."""

    def __init__(self, graph: ChannelGraph, alive: Array, affected: dict[int, Statistic]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.graph, self.alive, self.affected = graph, alive, affected
        self.index = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func.namespace == "prim":
            return func(*args, **kwargs)
        index, self.index = self.index, self.index + 1
        statistic = self.affected.get(index)
        if statistic is None:
            return func(*args, **kwargs)
        op = self.graph.tape.ops[index]
        if op.func is not func:
            raise VerificationError(
                f"the reference ran {func} where the tape has {op.func}: its control flow is not fixed."
            )
        found = [t for t in _flat(args) if isinstance(t, Tensor)]
        cut = {
            id(t): self._cut(t, statistic.operands.get(ref.number, []))
            for t, ref in zip(found, leaves(op.args), strict=True)
        }
        slim = _replace(args, cut)
        out = func(*_with_sizes(op.name, slim), **kwargs)
        return self._laid_out(out, op.index, func, args, kwargs)

    def _keep(self, layers: list[Tensor]) -> dict[int, Tensor]:
        """Axis -> kept indices."""
        result: dict[int, Tensor] = {}
        for layer in layers:
            places = self.alive[self.graph.component[compact(layer).numpy()]]
            for axis in axes(layer):
                line = places.any(axis=tuple(d for d in range(places.ndim) if d != axis))
                if not line.all():
                    result[axis] = torch.from_numpy(np.flatnonzero(line))
        return result

    def _cut(self, tensor: Tensor, layers: list[Tensor]) -> Tensor:
        for axis, index in self._keep(layers).items():
            tensor = tensor.index_select(axis, index)
        return tensor

    def _laid_out(self, out: Any, index: int, func: Any, args: Any, kwargs: Any) -> Any:
        outs = list(out) if isinstance(out, (tuple, list)) else [out]
        refs = self.graph.tape.ops[index].outs()
        wide = []
        for tensor, ref, layers in zip(outs, refs, self.graph.op_layers[index], strict=True):
            keep = self._keep(layers)
            if tuple(tensor.shape) == ref.shape:
                wide.append(tensor)
                continue
            for axis, kept in keep.items():
                full = tensor.new_zeros([s if d != axis else ref.shape[axis] for d, s in enumerate(tensor.shape)])
                tensor = full.index_copy(axis, kept, tensor)
            wide.append(tensor)
        return type(out)(wide) if isinstance(out, (tuple, list)) else wide[0]


def _with_sizes(name: str, args: Any) -> Any:
    """Let the size arguments of norms follow their narrower input."""
    args = list(args)
    if name in ("native_layer_norm", "rms_norm", "_fused_rms_norm"):
        args[1] = list(args[0].shape[-len(args[1]) :])
    if name == "native_group_norm":
        args[4] = args[0].shape[1]
    return args


def _flat(value: Any) -> Iterator[Any]:
    if isinstance(value, (list, tuple)):
        for item in value:
            yield from _flat(item)
    else:
        yield value


def _replace(value: Any, new: dict[int, Tensor]) -> Any:
    if isinstance(value, Tensor):
        return new.get(id(value), value)
    if isinstance(value, (list, tuple)):
        return type(value)(_replace(item, new) for item in value)
    return value


@contextlib.contextmanager
def _double(model: nn.Module) -> Iterator[nn.Module]:
    """Yield a float64 copy of a model, or the model itself if it is all float64."""
    floating = [t for t in [*model.parameters(), *model.buffers()] if t.is_floating_point() or t.is_complex()]
    if all(t.dtype in (torch.float64, torch.complex128) for t in floating):
        yield model
        return
    yield to_double(model)


def to_double(model: nn.Module) -> nn.Module:
    """Return a copy with every floating tensor in float64, complex in complex128, plain tensor attributes too."""
    precise = copy.deepcopy(model)
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
