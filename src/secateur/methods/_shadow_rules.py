"""What each operation becomes in the shadow network: linear, with non-negative weights and no biases.

A *live* tensor is one that scores flow through; everything else is a known number. Only live operands matter: the
shadow of an operation that has none is the operation itself.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor

from ..errors import MethodError
from ..graph.rules import RULES
from ..graph.tape import Op, Ref, tensors

aten = torch.ops.aten
Shadow: TypeAlias = Callable[..., Any]
SHADOWS: dict[str, Shadow] = {}
LIPSCHITZ = frozenset(
    "relu relu6 leaky_relu rrelu _prelu_kernel hardtanh threshold clamp clamp_min clamp_max hardswish hardsigmoid gelu "
    "silu mish elu celu selu softplus sigmoid tanh log_sigmoid_forward neg abs sin cos atan erf positive nan_to_num "
    "clone _to_copy contiguous lift_fresh_copy softshrink hardshrink".split()
)
NORMS = frozenset(
    "native_batch_norm _native_batch_norm_legit_no_training _native_batch_norm_legit cudnn_batch_norm "
    "_batch_norm_no_update _batch_norm_with_update _native_batch_norm_legit_functional miopen_batch_norm "
    "native_layer_norm native_group_norm _fused_rms_norm rms_norm".split()
)
LINEAR = frozenset(
    "sum nansum mean cumsum constant_pad_nd im2col col2im avg_pool1d avg_pool2d avg_pool3d _adaptive_avg_pool2d "
    "_adaptive_avg_pool3d adaptive_avg_pool1d upsample_nearest1d upsample_nearest2d upsample_nearest3d "
    "_upsample_nearest_exact1d _upsample_nearest_exact2d upsample_linear1d upsample_bilinear2d upsample_trilinear3d "
    "_upsample_bilinear2d_aa reflection_pad1d reflection_pad2d reflection_pad3d replication_pad1d replication_pad2d "
    "replication_pad3d copy where masked_fill zeros_like ones_like full_like empty_like new_zeros new_ones new_full "
    "new_empty rand_like randn_like fill zero".split()
)
MOVEMENT = frozenset(n for n, rule in RULES.items() if rule.__module__.endswith((".movement", ".indexing")))


def shadow_of(op: Op) -> Shadow | None:
    """Return what computes the shadow of an operation with live operands, ``shadow(op, *args, **kwargs)``; None if
    there is none.
    """
    if op.name in SHADOWS:
        return SHADOWS[op.name]
    if op.name in LIPSCHITZ:
        return _unchanged
    if op.name in LINEAR or op.name in MOVEMENT:
        return _itself
    return None


def _enter(*names: str) -> Callable[[Shadow], Shadow]:
    def enter(shadow: Shadow) -> Shadow:
        SHADOWS.update(dict.fromkeys(names, shadow))
        return shadow

    return enter


def is_live(value: Any) -> bool:
    """Whether scores flow through a tensor."""
    return isinstance(value, Tensor) and value.requires_grad


def _unchanged(_op: Op, *args: Any, **_: Any) -> Tensor:
    """Pass scores as they are; a fresh tensor, since what follows may write into it."""
    (live,) = [value for value in args if is_live(value)][:1]
    return live.clone()  # type: ignore[no-any-return]


def _itself(op: Op, *args: Any, **kwargs: Any) -> Any:
    return op.func(*args, **kwargs)


@_enter("detach", "alias", "lift_fresh", "lift")
def _same_memory(_op: Op, source: Tensor, *_: Any, **__: Any) -> Tensor:
    return source.view_as(source)


@_enter("view", "_unsafe_view", "reshape", "_reshape_alias")
def _reshaped(_op: Op, source: Tensor, size: Sequence[int], *_: Any) -> Tensor:
    return source.reshape(size)


@_enter("add", "sub", "rsub")
def _sum(op: Op, one: Any, other: Any, *rest: Any, alpha: Any = None, **_: Any) -> Tensor:
    alpha = abs(rest[0] if rest else 1 if alpha is None else alpha)
    factors = (1, alpha) if op.name != "rsub" else (alpha, 1)
    return _total(op, [v * f for v, f in zip((one, other), factors, strict=True) if is_live(v)])


@_enter("maximum", "minimum", "fmax", "fmin")
def _larger(op: Op, one: Any, other: Any) -> Tensor:
    live = [v for v in (one, other) if is_live(v)]
    return _total(op, live) / len(live)


@_enter("mul", "div", "true_divide")
def _product(op: Op, one: Any, other: Any, **_: Any) -> Tensor:
    if op.name != "mul":
        if not is_live(one):
            return _ones(op, other)  # type: ignore[no-any-return]  # one result
        return _total(op, [one if is_live(other) else one / _size_of(other)])
    if is_live(one) and is_live(other):
        found: Tensor = _ones(op, one) if one is other else _total(op, [one, other])
        return found
    return _total(op, [one * _size_of(other) if is_live(one) else other * _size_of(one)])


@_enter("addcmul")
def _plus_product(op: Op, base: Any, one: Any, other: Any, value: float = 1) -> Tensor:
    found = [base] if is_live(base) else []
    if is_live(one) or is_live(other):
        live = [v for v in (one, other) if is_live(v)]
        scale = 1 if len(live) == 2 else _size_of(other if is_live(one) else one)
        found += [v * scale * abs(value) for v in live]
    return _total(op, found)


@_enter(
    "pow", "sqrt", "rsqrt", "exp", "expm1", "log", "reciprocal", "var", "std", "var_mean", "std_mean",
    "linalg_vector_norm", "norm", "prod", "logsumexp", "cumprod",
)  # fmt: skip
def _ones(op: Op, *args: Any, **kwargs: Any) -> Any:
    """A statistic counts as 1, and no score goes through it."""
    device = tensors((args, kwargs))[0].device
    outs = [torch.ones(ref.shape, dtype=torch.float64, device=device) for ref in op.outs()]
    return outs if isinstance(op.out, (tuple, list)) else outs[0]


@_enter("_softmax", "_log_softmax", "_safe_softmax", "softmax")
def _shares(_op: Op, source: Tensor, dim: int, *_: Any, **__: Any) -> Tensor:
    """Equal shares, whatever is compared."""
    return torch.full_like(source, 1 / max(source.shape[dim], 1), requires_grad=False)


@_enter("mm", "bmm", "matmul", "mv", "dot")
def _matrix_product(op: Op, one: Tensor, other: Tensor) -> Tensor:
    if is_live(one) and is_live(other):
        if op.name in ("mv", "dot"):
            raise NoShadow
        return _total(op, [one.sum(-1, keepdim=True), other.sum(-2, keepdim=True)])
    return op.func(one if is_live(one) else one.abs(), other if is_live(other) else other.abs())  # type: ignore[no-any-return]


@_enter("addmm", "baddbmm", "_addmm_activation")
def _affine(op: Op, bias: Any, one: Tensor, other: Tensor, *, beta: float = 1, alpha: float = 1, **_: Any) -> Tensor:
    found = [bias * abs(beta)] if is_live(bias) else []
    if is_live(one) and is_live(other):
        found += [t * abs(alpha) for t in (one.sum(-1, keepdim=True), other.sum(-2, keepdim=True))]
    elif is_live(one) or is_live(other):
        factors = [factor if is_live(factor) else factor.abs() for factor in (one, other)]
        found.append(torch.matmul(*factors) * abs(alpha))
    return _total(op, found)


@_enter("convolution")
def _convolution(op: Op, source: Tensor, weight: Tensor, _bias: Any, *rest: Any) -> Tensor:
    if is_live(weight):
        raise NoShadow
    return op.func(source, weight.abs(), None, *rest)  # type: ignore[no-any-return]


@_enter(*NORMS)
def _norm(op: Op, source: Tensor, *args: Any, **_: Any) -> Any:
    """Scale by |gamma| / sigma; sigma counts as 1 where it follows from the activation itself."""
    if not is_live(source):
        raise NoShadow
    is_by_channel = "layer_norm" not in op.name and "rms_norm" not in op.name
    gamma = args[0] if is_by_channel else args[1]
    scale = torch.ones((), dtype=torch.float64, device=source.device) if gamma is None else gamma.abs()
    if is_by_channel and "group" not in op.name:
        takes_own = "no_training" not in op.name and any(a is True for a in args[2:6])
        if not takes_own and isinstance(args[3], Tensor):
            scale = scale / (args[3] + args[-1]).sqrt()
    if is_by_channel and scale.ndim:
        scale = scale.view(-1, *[1] * (source.ndim - 2))
    rest = [torch.zeros(ref.shape, dtype=torch.float64, device=source.device) for ref in op.outs()[1:]]
    out = source * scale
    return (out, *rest) if isinstance(op.out, (tuple, list)) else out


@_enter("max_pool2d_with_indices", "max_pool3d_with_indices", "max_pool2d", "max_pool3d")
def _max_pool(op: Op, source: Tensor, kernel: Sequence[int], stride: Sequence[int] = (), *rest: Any) -> Any:
    options: list[Any] = [0, (1,), False]
    options[: len(rest)] = rest
    padding, dilation, ceil_mode = options
    if any(step != 1 for step in dilation):
        raise NoShadow
    pool: Any = torch.nn.functional.avg_pool2d if "2d" in op.name else torch.nn.functional.avg_pool3d
    found = pool(source, kernel, stride or kernel, padding, ceil_mode, count_include_pad=False)
    return _with_places(op, found)


@_enter("adaptive_max_pool2d", "adaptive_max_pool3d")
def _adaptive_max_pool(op: Op, source: Tensor, size: Sequence[int]) -> Any:
    pool: Any = torch.nn.functional
    found = (pool.adaptive_avg_pool2d if "2d" in op.name else pool.adaptive_avg_pool3d)(source, size)
    return _with_places(op, found)


@_enter("amax", "amin", "max", "min")
def _largest(op: Op, source: Tensor, *args: Any, **kwargs: Any) -> Any:
    if args and is_live(args[0]):
        return _larger(op, source, args[0])
    dims = args[0] if args else kwargs.get("dim")
    if dims is None or dims == []:
        return _with_places(op, source.mean())
    keep = args[1] if len(args) > 1 else kwargs.get("keepdim", False)
    return _with_places(op, source.mean(dims, keepdim=keep))


@_enter("glu")
def _gated(_op: Op, source: Tensor, dim: int = -1) -> Tensor:
    one, other = source.chunk(2, dim)
    return one + other


class NoShadow(Exception):
    """An operation has no shadow for these operands; never leaves `run`."""


class _Blocked(torch.autograd.Function):
    """Nothing, in the shape of a result; a score that comes back to it is an error."""

    @staticmethod
    def forward(ctx: Any, label: str, shape: Sequence[int], *sources: Tensor) -> Tensor:
        ctx.label = label
        return sources[0].new_zeros(tuple(shape))

    @staticmethod
    def backward(ctx: Any, *_: Tensor) -> Any:
        raise MethodError(
            f"scores cannot be passed back through {ctx.label}: it is neither a weighted sum nor a function of one "
            "number that changes no faster than that number. Name a layer before it with classifier=, or protect what "
            "feeds it and use another method there."
        )


def run(op: Op, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    """Return the shadow's results for these operands; in-place operations write into their target."""
    out = _run(op, args, kwargs)
    target = op.args[0] if op.args else None
    is_in_place = isinstance(target, Ref) and isinstance(op.out, Ref) and op.out.number == target.number
    return args[0].copy_(out) if is_in_place and out is not args[0] else out


def _run(op: Op, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    outs = op.outs()
    if not outs or not outs[0].dtype.is_floating_point:
        return op.func(*_dead(args), **_dead(kwargs))
    shadow = shadow_of(op)
    if shadow is not None:
        try:
            return shadow(op, *args, **kwargs)
        except NoShadow:
            pass
    live = [t for t in tensors((args, kwargs)) if t.requires_grad]
    label = f"{op.func} in {op.module or 'the model'}"
    found = [_Blocked.apply(label, ref.shape, *live) for ref in outs]  # type: ignore[no-untyped-call]
    return found if isinstance(op.out, (tuple, list)) else found[0]


def _dead(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.detach()
    if isinstance(value, dict):
        return {key: _dead(item) for key, item in value.items()}
    return type(value)(_dead(item) for item in value) if isinstance(value, (list, tuple)) else value


def _size_of(value: Any) -> Any:
    return value.abs() if isinstance(value, Tensor) else abs(value)


def _total(op: Op, summands: list[Tensor]) -> Tensor:
    """Add up, in the shape of the result."""
    shape = op.outs()[0].shape
    if not summands:
        raise NoShadow
    total = summands[0]
    for other in summands[1:]:
        total = total + other
    return total.expand(shape).clone()


def _with_places(op: Op, found: Tensor) -> Any:
    """Return a maximum with where it was, if the operation gives both."""
    rest = [torch.zeros(ref.shape, dtype=torch.long, device=found.device) for ref in op.outs()[1:]]
    return (found, *rest) if rest else found
