"""How synaptic flow passes each operation: only the strengths of paths count, so a network is linear and positive.

Weights and constants act by their absolute values, activation functions let everything pass, normalisations are their
scale, and what is added (biases, positions, masks) starts no path.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Flow:
    """What arrives at an activation over all paths: a tensor in float64, >= 0, of the activation's shape."""

    value: Tensor


FlowRule = Callable[..., Any]  # (operation, its arguments with `Flow` for activations) -> its results, likewise
FLOW_RULES: dict[str, FlowRule] = {}
MADE_ANEW = frozenset(
    "zeros_like ones_like full_like empty_like rand_like randn_like new_zeros new_ones new_full new_empty".split()
)
WITHOUT = ("dtype", "layout", "device", "pin_memory")


def flow_rule(*names: str) -> Callable[[FlowRule], FlowRule]:
    """Enter a rule under these names of operations."""

    def enter(rule: FlowRule) -> FlowRule:
        FLOW_RULES.update(dict.fromkeys(names, rule))
        return rule

    return enter


def strength(value: Any) -> Any:
    """Return the absolute value of a weight, a constant or a number, in float64; a flow's own value.

    >>> strength(-2)
    2
    """
    if isinstance(value, Flow):
        return value.value
    return value.double().abs() if isinstance(value, Tensor) else abs(value)


def through_each(call: Callable[..., Tensor], factors: Sequence[Any]) -> Flow:
    """Return the flow through a product: over each factor that is an activation an equal part of it.

    The other activations weigh the paths by their values, so that a product of k activations is linear in every one,
    passes on in all as much as arrives, and is 0 where one of them is. It is divided by the geometric mean of their
    means, k - 1 times, so that flow does not grow with the degree.

    Args:
        call: linear in each factor.
        factors: flows, weights and constants.
    """
    flows = [place for place, factor in enumerate(factors) if isinstance(factor, Flow)]
    plain = [strength(factor) for factor in factors]
    if len(flows) == 1:
        return Flow(call(*plain))
    logarithms = torch.stack([plain[place].detach().mean().log() for place in flows])
    level = (logarithms.mean() * (len(flows) - 1)).exp()
    parts = [call(*(x.detach() if n in flows and n != place else x for n, x in enumerate(plain))) for place in flows]
    return Flow(torch.stack(parts).mean(0) / torch.where(level > 0, level, 1.0))


@flow_rule(
    *"relu gelu silu mish sigmoid tanh elu selu celu softplus hardtanh hardswish hardsigmoid leaky_relu".split(),
    *"_prelu_kernel log_sigmoid_forward clamp_min clamp_max threshold abs neg exp expm1 log1p sqrt pow erf".split(),
    *"native_dropout nan_to_num alias detach lift_fresh _to_copy clone logit".split(),
    *"rrelu clamp hardshrink softshrink positive".split(),
)
def passes(_: Any, x: Flow, *__: Any, **___: Any) -> Flow:
    """Let through everything, as an activation function in its linear part does."""
    return x


@flow_rule("rsqrt", "reciprocal")
def is_a_scale(_: Any, x: Flow, *__: Any, **___: Any) -> Tensor:
    """Return 1: what normalises an activation is no path."""
    return torch.ones_like(x.value)


@flow_rule("view", "_unsafe_view", "reshape", "_reshape_alias")
def reshaped(_: Any, x: Flow, shape: Sequence[int], *__: Any) -> Flow:
    """Give it another shape, however it lies in memory."""
    return Flow(x.value.reshape(tuple(shape)))


@flow_rule("as_strided")
def strided(_: Any, x: Flow, shape: Sequence[int], *__: Any) -> Any:
    """Lie otherwise in memory; what picks elements by their place there is not followed."""
    return x if tuple(shape) == tuple(x.value.shape) else None


@flow_rule(
    *"transpose permute t unsqueeze squeeze expand select slice unbind split split_with_sizes unsafe_split".split(),
    *"unsafe_split_with_sizes cat stack sum mean cumsum index_select gather index _unsafe_index roll flip".split(),
    *"repeat repeat_interleave pixel_shuffle pixel_unshuffle channel_shuffle native_channel_shuffle unfold".split(),
    *"narrow diagonal tril triu im2col col2im amax max max_pool2d_with_indices max_pool3d_with_indices".split(),
    *"adaptive_max_pool2d adaptive_max_pool3d avg_pool1d avg_pool2d avg_pool3d _adaptive_avg_pool2d".split(),
    *"_adaptive_avg_pool3d adaptive_avg_pool1d upsample_nearest1d upsample_nearest2d upsample_nearest3d".split(),
    *"upsample_linear1d upsample_bilinear2d upsample_trilinear3d reflection_pad1d reflection_pad2d".split(),
    *"reflection_pad3d replication_pad1d replication_pad2d replication_pad3d movedim".split(),
)
def as_it_is(func: Any, *args: Any, **named: Any) -> Any:
    """Run what moves, adds up or picks activations."""
    own = func._schema.is_mutable

    def bare(value: Any) -> Any:
        if isinstance(value, Flow):
            return value.value.clone() if own else value.value
        return [bare(item) for item in value] if isinstance(value, (list, tuple)) else value

    out = func(*map(bare, args), **{key: value for key, value in named.items() if key not in WITHOUT})
    return [_wrapped(t) for t in out] if isinstance(out, (list, tuple)) else _wrapped(out)


def _wrapped(value: Any) -> Any:
    return Flow(value) if isinstance(value, Tensor) and value.is_floating_point() else value


@flow_rule("constant_pad_nd")
def padded(_: Any, x: Flow, pad: Sequence[int], *__: Any) -> Flow:
    """Pad with 0: the edge starts no path."""
    return Flow(torch.nn.functional.pad(x.value, tuple(pad)))


@flow_rule("add", "sub", "rsub")
def added(_: Any, a: Any, b: Any, alpha: Any = 1) -> Flow:
    """Add paths that meet; a constant or a bias brings none."""
    if not isinstance(a, Flow):
        return Flow(b.value * abs(alpha))
    return Flow(a.value + b.value * abs(alpha)) if isinstance(b, Flow) else a


@flow_rule("mul")
def multiplied(_: Any, a: Any, b: Any) -> Flow:
    """Scale paths, or pass them on over both factors."""
    return through_each(lambda x, y: x * y, [a, b])


@flow_rule("div")
def divided(_: Any, a: Any, b: Any, **__: Any) -> Any:
    """Scale paths; what an activation is divided by is a normaliser, of 1."""
    if not isinstance(a, Flow):
        return torch.ones_like(b.value)
    return a if isinstance(b, Flow) else Flow(a.value / strength(b))


@flow_rule("masked_fill")
def masked(_: Any, x: Any, mask: Any, value: Any) -> Any:
    """Cut paths where something else is filled in."""
    if not isinstance(x, Flow) or isinstance(mask, Flow):
        return None
    return Flow(x.value.masked_fill(mask, 0.0))


@flow_rule("where")
def chosen(_: Any, condition: Any, a: Any, b: Any) -> Any:
    """Take the path that the condition takes for the example."""
    first, second = (x.value if isinstance(x, Flow) else torch.zeros((), dtype=torch.float64) for x in (a, b))
    return Flow(torch.where(condition, first, second))


@flow_rule("copy")
def copied(_: Any, __: Any, source: Any, *___: Any) -> Any:
    """Take what is written."""
    return source


@flow_rule("_softmax", "_safe_softmax", "_log_softmax")
def averaged(_: Any, x: Flow, dim: int, *__: Any, **___: Any) -> Flow:
    """Divide by how many share the weight."""
    return Flow(x.value / x.value.shape[dim])


@flow_rule("mm", "bmm", "mv", "dot")
def matrix_product(func: Any, a: Any, b: Any) -> Flow:
    """Multiply."""
    return through_each(func, [a, b])


@flow_rule("addmm", "baddbmm", "addmv", "addbmm")
def matrix_product_with_bias(func: Any, bias: Any, a: Any, b: Any, *, beta: Any = 1, alpha: Any = 1) -> Any:
    """Multiply; a bias starts no path, and a flow that is added goes on."""
    base = Flow(strength(beta) * bias.value) if isinstance(bias, Flow) else None
    if not isinstance(a, Flow) and not isinstance(b, Flow):
        return base
    like = torch.zeros((), dtype=torch.float64, device=strength(a).device)
    found = through_each(lambda x, y: func(like, x, y, beta=0) * abs(alpha), [a, b])
    return found if base is None else Flow(found.value + base.value)


@flow_rule("convolution", "_convolution")
def convolved(func: Any, x: Any, weight: Any, _: Any, *sizes: Any) -> Any:
    """Convolve without the bias."""
    if not isinstance(x, Flow):
        return None
    return through_each(lambda a, w: func(a, w, None, *sizes), [x, weight])


@flow_rule("_trilinear")
def trilinear(func: Any, a: Any, weight: Any, b: Any, *sizes: Any) -> Flow:
    """Pass on over both inputs of a bilinear layer."""
    return through_each(lambda x, w, y: func(x, w, y, *sizes), [a, weight, b])


@flow_rule("glu")
def gated(_: Any, x: Flow, dim: int = -1) -> Flow:
    """Pass on over the gated half and the gate."""
    return through_each(lambda a, b: a * b, [Flow(half) for half in x.value.chunk(2, dim)])


@flow_rule("native_batch_norm", "cudnn_batch_norm", "miopen_batch_norm", "_native_batch_norm_legit")
def batch_norm(_: Any, x: Flow, weight: Any, __: Any, mean: Any = None, variance: Any = None, *rest: Any) -> Any:
    """Scale by |gamma| / sqrt(running variance + eps), by |gamma| where the batch's own statistics are used."""
    is_training, eps = bool(rest[0]), rest[-1]
    return _scaled(x, weight, None if is_training else variance, eps)


@flow_rule("_native_batch_norm_legit_no_training", "_batch_norm_no_update")
def batch_norm_in_use(_: Any, x: Flow, weight: Any, __: Any, ___: Any, variance: Any, *rest: Any) -> Any:
    """Do the same for the variant without a training flag."""
    return _scaled(x, weight, variance, rest[-1])


@flow_rule("native_group_norm")
def group_norm(_: Any, x: Flow, weight: Any, *__: Any) -> Any:
    """Scale by |gamma| of each channel."""
    return _scaled(x, weight, None, 0.0)


def _scaled(x: Flow, weight: Any, variance: Any, eps: float) -> Flow:
    scale = torch.ones(x.value.shape[1], dtype=torch.float64, device=x.value.device)
    if weight is not None:
        scale = scale * strength(weight)
    if variance is not None:
        scale = scale / (strength(variance) + eps).sqrt()
    return Flow(x.value * scale.view(-1, *(1,) * (x.value.dim() - 2)))


@flow_rule("native_layer_norm", "_fused_rms_norm")
def layer_norm(_: Any, x: Flow, __: Any, weight: Any = None, *___: Any) -> Flow:
    """Scale by |gamma|."""
    return x if weight is None else Flow(x.value * strength(weight))
