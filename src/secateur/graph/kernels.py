"""Plain versions of fused kernels that refuse some precisions or tensors without data."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

aten = torch.ops.aten


def grouped_mm(x: Tensor, weight: Tensor, offs: Tensor | None = None, *rest: Any, **named: Any) -> Tensor:
    """Multiply runs of rows by one matrix each (routed experts), in any precision.

    Args:
        x: (rows, in), sorted by expert.
        weight: (experts, in, out).
        offs: (experts,) end of each expert's run of rows.
        rest: what else the fused kernel takes; used only where that kernel is called.
        named: the same by name.

    Returns:
        (rows, out).
    """
    if x.ndim != 2 or weight.ndim != 3 or offs is None:
        return aten._grouped_mm.default(x, weight, offs, *rest, **named)  # type: ignore[no-any-return]
    out = x.new_empty(x.shape[0], weight.shape[2])
    if x.device.type == "meta" or type(x) is not Tensor:
        return out
    start = 0
    for expert, end in enumerate(offs.tolist()):
        out[start:end] = x[start:end] @ weight[expert]
        start = end
    return out


SUBSTITUTES: dict[Any, Callable[..., Any]] = (
    {aten._grouped_mm.default: grouped_mm} if hasattr(aten, "_grouped_mm") else {}
)


def _like_first(x: Tensor, *_: Any, **__: Any) -> Tensor:
    return torch.empty_like(x)


def _itself(x: Tensor, *_: Any, **__: Any) -> Tensor:
    return x


def _batch_norm(x: Tensor, *_: Any) -> tuple[Tensor, Tensor, Tensor]:
    return torch.empty_like(x), x.new_empty(x.shape[1]), x.new_empty(x.shape[1])


def _layer_norm(x: Tensor, over: list[int], *_: Any) -> tuple[Tensor, Tensor, Tensor]:
    rest = (*x.shape[: x.ndim - len(over)], *(1 for _ in over))
    return x.new_empty(x.shape), x.new_empty(rest), x.new_empty(rest)


def _addmm(_bias: Tensor, one: Tensor, other: Tensor, **_: Any) -> Tensor:
    if one.shape[1] != other.shape[0]:
        raise RuntimeError(f"mat1 and mat2 shapes cannot be multiplied ({list(one.shape)} and {list(other.shape)})")
    return one.new_empty(one.shape[0], other.shape[1])


# On tensors without data torch works these shapes out in Python, slowly; here they are directly.
SHAPES: dict[Any, Callable[..., Any]] = {
    **SUBSTITUTES,
    aten.native_batch_norm.default: _batch_norm,
    aten.native_layer_norm.default: _layer_norm,
    aten.addmm.default: _addmm,
    aten.gelu.default: _like_first,
    aten.hardsigmoid.default: _like_first,
    aten.hardswish.default: _like_first,
    aten.hardswish_.default: _itself,
    aten.hardtanh.default: _like_first,
    aten.hardtanh_.default: _itself,
    aten.sigmoid.default: _like_first,
    aten.silu.default: _like_first,
    aten.silu_.default: _itself,
    aten._safe_softmax.default: _like_first,
}


NARROW = (torch.float32, torch.float16, torch.bfloat16)


def _stay_double(x: Tensor, *, dtype: torch.dtype | None = None, **named: Any) -> Tensor:
    wide = torch.float64 if x.dtype == torch.float64 and dtype in NARROW else dtype
    return aten._to_copy.default(x, dtype=wide, **named)  # type: ignore[no-any-return]


# For proofs in float64: a norm or router that computes "in float32" would hide everything below 1e-7.
EXACT: dict[Any, Callable[..., Any]] = {**SUBSTITUTES, aten._to_copy.default: _stay_double}


class ExactKernels(TorchDispatchMode):
    """Run everything in float64, also what a model rounds to less, and fused kernels by their plain versions."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return EXACT.get(func, func)(*args, **(kwargs or {}))
