"""Plain versions of fused kernels that refuse some precisions or tensors without data."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
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


def _blank(shape: Sequence[int], like: Tensor) -> Tensor:
    return torch.empty(shape, dtype=like.dtype, device="meta")


def _is_plain(x: Any) -> bool:
    return isinstance(x, Tensor) and x.is_floating_point() and x.is_contiguous()


def _like_first(x: Tensor, *_: Any, **__: Any) -> Tensor:
    return _blank(x.shape, x) if x.is_contiguous() else torch.empty_like(x)


def _itself(x: Tensor, *_: Any, **__: Any) -> Tensor:
    return x


def _batch_norm(x: Tensor, weight: Tensor | None, *_: Any) -> tuple[Tensor, Tensor, Tensor]:
    if weight is not None and weight.shape[0] != x.shape[1]:
        raise RuntimeError(f"batch norm of {weight.shape[0]} channels on an input of {list(x.shape)}")
    return _like_first(x), _blank(x.shape[1:2], x), _blank(x.shape[1:2], x)


def _layer_norm(x: Tensor, over: list[int], *_: Any) -> tuple[Tensor, Tensor, Tensor]:
    rest = (*x.shape[: x.ndim - len(over)], *(1 for _ in over))
    return _blank(x.shape, x), _blank(rest, x), _blank(rest, x)


def _addmm(_bias: Tensor, one: Tensor, other: Tensor, **_: Any) -> Tensor:
    if one.shape[1] != other.shape[0]:
        raise RuntimeError(f"mat1 and mat2 shapes cannot be multiplied ({list(one.shape)} and {list(other.shape)})")
    return _blank((one.shape[0], other.shape[1]), one)


def _element_wise(func: Any) -> Callable[..., Tensor]:
    """Shape of an operation on two tensors, or a tensor and a number; torch's own where dtypes or layouts differ."""

    def kernel(x: Any, y: Any, **named: Any) -> Tensor:
        if _is_plain(x) and (type(y) in (int, float) or (_is_plain(y) and y.dtype == x.dtype)):
            shape = x.shape if type(y) in (int, float) or x.shape == y.shape else _common(x.shape, y.shape)
            if shape is not None:
                return _blank(shape, x)
        return func(x, y, **named)  # type: ignore[no-any-return]

    return kernel


def _common(one: Sequence[int], other: Sequence[int]) -> list[int] | None:
    """Broadcast two shapes; None if they do not fit."""
    if len(one) < len(other):
        one, other = other, one
    shape = list(one)
    for k in range(1, len(other) + 1):
        if shape[-k] != other[-k] and 1 not in (shape[-k], other[-k]):
            return None
        shape[-k] = other[-k] if shape[-k] == 1 else shape[-k]
    return shape


def _mean(x: Tensor, dim: list[int] | None, keepdim: bool = False, **named: Any) -> Tensor:
    if not _is_plain(x) or not dim or named:
        return aten.mean.dim(x, dim, keepdim, **named)  # type: ignore[no-any-return]
    gone = {d % x.ndim for d in dim}
    return _blank([1 if d in gone else s for d, s in enumerate(x.shape) if keepdim or d not in gone], x)


def _convolution(x: Tensor, weight: Tensor, bias: Tensor | None, *sizes: Any) -> Tensor:
    stride, padding, dilation, transposed, _, groups = sizes
    shape = [x.shape[0], weight.shape[0]]
    if x.ndim == weight.ndim == len(stride) + 2 == len(padding) + 2 == len(dilation) + 2:
        for size, kernel, step, pad, gap in zip(x.shape[2:], weight.shape[2:], stride, padding, dilation, strict=True):
            shape.append((size + 2 * pad - gap * (kernel - 1) - 1) // step + 1)
    fits = len(shape) == x.ndim and min(shape) > 0 and x.shape[1] == weight.shape[1] * groups
    if bias is not None and not transposed and bias.shape != weight.shape[:1]:
        raise RuntimeError(f"convolution of weight {list(weight.shape)} with a bias of {list(bias.shape)}")
    fits = fits and weight.shape[0] % groups == 0
    if fits and not transposed and _is_plain(x) and _is_plain(weight) and x.dtype == weight.dtype:
        return _blank(shape, x)
    return aten.convolution.default(x, weight, bias, *sizes)  # type: ignore[no-any-return]


def _cat(parts: list[Tensor], dim: int = 0) -> Tensor:
    first = parts[0]
    dim %= max(first.ndim, 1)
    beside = [(p.ndim, p.dtype, *p.shape[:dim], *p.shape[dim + 1 :]) for p in parts]
    if first.ndim < 2 or any(b != beside[0] for b in beside) or not all(map(_is_plain, parts)):
        return aten.cat.default(parts, dim)  # type: ignore[no-any-return]
    return _blank((*first.shape[:dim], sum(p.shape[dim] for p in parts), *first.shape[dim + 1 :]), first)


# On tensors without data torch works these shapes out in Python, slowly; here they are directly. What is out of the
# ordinary (mixed precision, other layouts, sizes that do not fit) is left to torch.
SHAPES: dict[Any, Callable[..., Any]] = {
    **SUBSTITUTES,
    aten.native_batch_norm.default: _batch_norm,
    aten.native_layer_norm.default: _layer_norm,
    aten.addmm.default: _addmm,
    aten.convolution.default: _convolution,
    aten.cat.default: _cat,
    aten.mean.dim: _mean,
    **{func: _element_wise(func) for func in (aten.add.Tensor, aten.mul.Tensor, aten.sub.Tensor, aten.div.Tensor)},
    aten.relu.default: _like_first,
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


# For proofs in float64: a norm or router that computes "in float32" would hide everything below 1e-7, and a table made
# in float32 would not fit the rest.
WIDE = {
    torch.float32: torch.float64,
    torch.float16: torch.float64,
    torch.bfloat16: torch.float64,
    torch.complex64: torch.complex128,
}


def exact(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """Run an operation by its plain version, in float64 also where it is told to make less.

    >>> exact(aten.arange.default, [2], {"dtype": torch.float32}).dtype
    torch.float64
    """
    named = dict(kwargs)
    if named.get("dtype") in WIDE:
        named["dtype"] = WIDE[named["dtype"]]
    out = SUBSTITUTES.get(func, func)(*args, **named)
    if func is aten.lift_fresh.default and out.dtype in WIDE:  # a tensor of Python numbers with a dtype of its own
        return out.to(WIDE[out.dtype])
    return out


class ExactKernels(TorchDispatchMode):
    """Run everything in float64, also what a model rounds to less, and fused kernels by their plain versions."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return exact(func, args, kwargs or {})


@contextlib.contextmanager
def double_by_default() -> Iterator[None]:
    """Make float64 the precision of tensors that are created without one; the caller's is back after the block."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(before)
