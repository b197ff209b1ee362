"""What every channel of every activation is on average, followed along the tape without any data.

A normalisation says what leaves it: mean beta and standard deviation |gamma| per channel. From there the two numbers
are carried through whatever follows, as arrays in the activation's own shape that cost nothing along axes where they
do not change. NaN stands for unknown. Standard deviation 0 is a constant, and constants are followed exactly.

Assumed where the deviation is not 0: values are normal; the terms of a sum are independent; the values of one channel
at neighbouring positions are equal. The last lets means pass pooling; a maximum over differing values is in truth
larger.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor

from ..graph.labels import axes, compact, reshaped
from ..graph.rules.reduction import reduced_axes
from ..graph.tape import Op, Ref

NODES = torch.arange(-450, 451, dtype=torch.float64) / 50  # standard normal deviates, beyond +-9 there is nothing
DENSITY = torch.exp(-0.5 * NODES.square())
DENSITY /= DENSITY.sum()
CHUNK = 1 << 13  # elements integrated at once


@dataclass(frozen=True)
class Moments:
    """Mean and standard deviation of an activation.

    Attributes:
        mean: in the activation's shape, stride 0 along axes where it does not change, float64; NaN = unknown.
        std: the same; NaN exactly where the mean is.
    """

    mean: Tensor
    std: Tensor

    def map(self, function: Callable[[Tensor], Any]) -> Moments:
        """Return both arrays after a movement of their elements."""
        return Moments(function(self.mean), function(self.std))

    @property
    def axes(self) -> frozenset[int]:
        """Axes along which either changes."""
        return axes(self.mean) | axes(self.std)

    def along(self, axis: int) -> tuple[Tensor, Tensor]:
        """Return mean and deviation of each place of one axis, (size,) both; unknown if other axes matter too."""
        size = self.mean.shape[axis]
        if not self.axes <= {axis}:
            return unknown(size)
        mean, std = (compact(t).reshape(-1).expand(size) for t in (self.mean, self.std))
        return mean, std


def constant(value: Tensor) -> Moments:
    """Return the moments of a tensor that does not depend on the input."""
    mean = value.detach().double().cpu()
    return Moments(mean, mean.new_zeros(()).expand(mean.shape))


def unknown(*shape: int) -> tuple[Tensor, Tensor]:
    """Return mean and deviation of something unknown."""
    nan = torch.full(shape, torch.nan, dtype=torch.float64)
    return nan, nan


def laid(mean: Tensor, std: Tensor, axis: int, shape: Sequence[int]) -> Moments:
    """Lay (channels,) moments along one axis of an activation."""
    view = [-1 if d == axis else 1 for d in range(len(shape))]
    return Moments(mean, std).map(lambda t: t.view(view).expand(tuple(shape)))


def draws(op: Op) -> bool:
    """Whether an operation's result is random or uninitialised."""
    return torch.Tag.nondeterministic_seeded in op.func.tags or "empty" in op.name


def filled(value: Any, tensors: dict[int, Tensor]) -> Any:
    """Return arguments with every `Ref` replaced by the tensor of its number."""
    if isinstance(value, Ref):
        return tensors[value.number]
    if isinstance(value, dict):
        return {key: filled(item, tensors) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(filled(item, tensors) for item in value)
    return value


Get: TypeAlias = Callable[[Ref], Moments | None]
Rule: TypeAlias = Callable[[Get, Op], Moments | list[Moments] | None]
RULES: dict[str, Rule] = {}


def rule(*names: str) -> Callable[[Rule], Rule]:
    """Enter a rule in the table under these operation names."""

    def enter(function: Rule) -> Rule:
        RULES.update(dict.fromkeys(names, function))
        return function

    return enter


def expected(get: Get, op: Op) -> list[Moments | None]:
    """Return the moments of each result of an operation; None = unknown.

    Args:
        get: what is known of an argument.
        op: an operation that depends on the input.
    """
    outs, found = op.outs(), None
    own = RULES.get(op.name)
    if own is None and (torch.Tag.pointwise in op.func.tags or op.name in POINTWISE):
        own = _pointwise
    if own is not None and outs and outs[0].dtype.is_floating_point and not draws(op):
        found = own(get, op)
    if isinstance(found, list):
        return [*found]
    return [found, *[None] * (len(outs) - 1)][: len(outs)]


# -- normalisations -------------------------------------------------------------------------------------------------


@rule(
    "native_batch_norm", "_native_batch_norm_legit_no_training", "_native_batch_norm_legit", "cudnn_batch_norm",
    "_batch_norm_no_update", "miopen_batch_norm",
)  # fmt: skip
def _batch_norm(get: Get, op: Op) -> Moments | None:
    source, weight, bias, running_mean, running_var = op.args[:5]
    mean, std = _affine(get, weight, bias, source.shape[1])
    uses_batch = "no_training" not in op.name and any(a is True for a in op.args[3:7])
    before = get(source)
    if before is not None and not uses_batch and isinstance(running_mean, Ref):
        level, spread = before.along(1)
        centre, _ = vector(get, running_mean)
        width = (vector(get, running_var)[0] + op.args[-1]).sqrt()
        scale = vector(get, weight)[0] if isinstance(weight, Ref) else torch.ones(())
        shift = vector(get, bias)[0] if isinstance(bias, Ref) else torch.zeros(())
        mean = torch.where(spread == 0, (level - centre) / width * scale + shift, mean)
        std = torch.where(spread == 0, 0.0, std)
    return laid(mean, std, 1, source.shape)


@rule("native_layer_norm", "native_group_norm")
def _other_norm(get: Get, op: Op) -> Moments | None:
    source: Ref = op.args[0]
    if op.name == "native_group_norm":
        return laid(*_affine(get, op.args[1], op.args[2], source.shape[1]), 1, source.shape)
    weight, bias = op.args[2:4]
    scale = get(weight) if isinstance(weight, Ref) else constant(torch.ones(()))
    shift = get(bias) if isinstance(bias, Ref) else constant(torch.zeros(()))
    if scale is None or shift is None:
        return None
    return Moments(shift.mean.expand(source.shape), scale.mean.abs().expand(source.shape))


def _affine(get: Get, weight: Any, bias: Any, size: int) -> tuple[Tensor, Tensor]:
    mean = vector(get, bias)[0] if isinstance(bias, Ref) else torch.zeros(size, dtype=torch.float64)
    std = vector(get, weight)[0].abs() if isinstance(weight, Ref) else torch.ones(size, dtype=torch.float64)
    return torch.where(std.isnan(), torch.nan, mean), torch.where(mean.isnan(), torch.nan, std)


def vector(get: Get, ref: Ref) -> tuple[Tensor, Tensor]:
    found = get(ref)
    return found.along(0) if found is not None else unknown(ref.shape[0])


# -- element by element ---------------------------------------------------------------------------------------------

POINTWISE = frozenset(
    "hardswish _prelu_kernel hardtanh where masked_fill lerp addcmul addcdiv clamp threshold mish silu gelu softplus "
    "celu selu elu hardsigmoid leaky_relu nan_to_num".split()
)


def _pointwise(get: Get, op: Op) -> Moments | None:
    """Integrate the function over the one operand that varies; sums may have several."""
    refs, out = op.refs(), op.outs()[0]
    given = [get(ref) for ref in refs]
    if not refs or all(m is None for m in given):
        return None
    rows = [_row(m or Moments(*unknown()), out.shape) for m in given]
    shape = torch.broadcast_shapes(*(t.shape for row in rows for t in row))
    means, stds = (torch.stack([row[k].expand(shape).reshape(-1) for row in rows]) for k in (0, 1))
    varying = {ref.number: s > 0 for ref, s in zip(refs, stds, strict=True)}
    clash = torch.stack([*varying.values()]).sum(dim=0) > 1
    is_sum = op.name in ("add", "sub")
    live = ~means.isnan().any(dim=0) & (~clash | is_sum)
    mean, std = (t.clone() for t in unknown(means.shape[1]))
    mean[live], std[live] = _integrated(op, refs, means[:, live], stds[:, live])
    if is_sum:
        scale = torch.tensor([1.0, *[float(op.kwargs.get("alpha", 1))] * (len(stds) - 1)])
        std = torch.where(live & clash, (stds * scale[:, None]).square().sum(dim=0).sqrt(), std)
    if op.name == "mul":  # whatever the other factor is
        is_zero = ((means == 0) & (stds == 0)).any(dim=0)
        mean[is_zero], std[is_zero] = 0.0, 0.0
    if mean.isnan().all():
        return None
    return Moments(mean, std).map(lambda t: t.view(shape).expand(out.shape))


def _row(moments: Moments, shape: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    wide = moments.map(lambda t: compact(t.expand(shape)))
    return wide.mean, wide.std


def _integrated(op: Op, refs: list[Ref], means: Tensor, stds: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and deviation of the result, (elements,), every operand moving with the same standard normal deviate."""

    def run(operands: Sequence[Tensor]) -> Tensor:
        typed = [t if r.dtype.is_floating_point else t.to(r.dtype) for t, r in zip(operands, refs, strict=True)]
        own = {ref.number: t for ref, t in zip(refs, typed, strict=True)}
        result: Tensor = op.func(*filled(op.args, own), **filled(op.kwargs, own))
        return result.double()

    whole, spread = [], []
    for mean, std in zip(means.split(CHUNK, dim=1), stds.split(CHUNK, dim=1), strict=True):
        exact = run([m.clone() for m in mean])
        moving = run([m + s * NODES[:, None] for m, s in zip(mean, std, strict=True)])
        average = DENSITY @ moving
        is_exact = (std == 0).all(dim=0)
        whole.append(torch.where(is_exact, exact, average))
        spread.append(torch.where(is_exact, 0.0, (DENSITY @ (moving - average).square()).sqrt()))
    return torch.cat(whole), torch.cat(spread)


# -- movement -------------------------------------------------------------------------------------------------------


@rule("index_select")
def _picked(get: Get, op: Op) -> Moments | None:
    found, index = get(op.args[0]), get(op.args[2])
    if found is None or index is None:
        return None
    numbers, axis = index.mean.long(), op.args[1]

    def picked(values: Tensor) -> Tensor:
        thin = compact(values)
        return (thin.index_select(axis, numbers) if thin.shape[axis] > 1 else thin).expand(op.out.shape)

    return found.map(picked)


@rule("permute", "transpose", "t", "unsqueeze", "squeeze", "expand", "slice", "select", "narrow")
def _strided(get: Get, op: Op) -> Moments | None:
    found = get(op.args[0])
    return found.map(lambda t: op.func(t, *op.args[1:], **op.kwargs)) if found is not None else None


@rule("split", "split_with_sizes", "unbind", "unsafe_split", "unsafe_split_with_sizes")
def _parts(get: Get, op: Op) -> list[Moments] | None:
    found = get(op.args[0])
    if found is None:
        return None
    pieces = zip(*(op.func(t, *op.args[1:], **op.kwargs) for t in (found.mean, found.std)), strict=True)
    return [Moments(*piece) for piece in pieces]


@rule("view", "_unsafe_view", "reshape", "_reshape_alias", "_reshape_copy")
def _view(get: Get, op: Op) -> Moments | None:
    found = get(op.args[0])
    if found is None or isinstance(op.args[1], torch.dtype):
        return None
    return found.map(lambda t: reshaped(t, op.out.shape))


@rule("clone", "detach", "alias", "_to_copy", "contiguous", "lift_fresh", "positive", "native_dropout", "dropout")
def _same(get: Get, op: Op) -> Moments | None:
    is_noisy = "dropout" in op.name and len(op.args) > 2 and op.args[2] is not False
    return None if is_noisy else get(op.args[0])


@rule("copy")
def _copied(get: Get, op: Op) -> Moments | None:
    found = get(op.args[1])
    return found.map(lambda t: t.expand(op.out.shape)) if found is not None else None


@rule("flip", "roll")
def _rearranged(get: Get, op: Op) -> Moments | None:
    found = get(op.args[0])
    if found is None or (op.name == "roll" and len(op.args) < 3):
        return None
    return found.map(lambda t: op.func(compact(t), *op.args[1:]).expand(t.shape))


@rule("repeat")
def _repeated(get: Get, op: Op) -> Moments | None:
    found = get(op.args[0])
    return found.map(lambda t: _tiled(t, op.args[1], op.out.shape)) if found is not None else None


def _tiled(tensor: Tensor, counts: Sequence[int], shape: tuple[int, ...]) -> Tensor:
    small = compact(tensor)
    small = small.reshape((1,) * (len(counts) - small.ndim) + tuple(small.shape))
    return small.repeat([c if size > 1 else 1 for c, size in zip(counts, small.shape, strict=True)]).expand(shape)


@rule("cat", "stack")
def _joined(get: Get, op: Op) -> Moments | None:
    out: Ref = op.out
    axis = (op.args[1] if len(op.args) > 1 else op.kwargs.get("dim", 0)) % len(out.shape)
    parts, shapes = [], []
    for ref in op.args[0]:
        shape = ref.shape
        found = get(ref) or Moments(*unknown(*[1] * len(shape)))
        found = found.map(lambda t, shape=shape: t.expand(shape))  # type: ignore[misc]
        if op.name == "stack":
            found, shape = found.map(lambda t: t.unsqueeze(axis)), (*shape[:axis], 1, *shape[axis:])
        if len(shape) == len(out.shape):  # cat lets an empty vector pass
            parts.append(found)
            shapes.append(shape)
    span = frozenset({axis}).union(*(part.axes for part in parts))
    small = [[size if d in span else 1 for d, size in enumerate(shape)] for shape in shapes]
    if all(part.mean.isnan().all() for part in parts):
        return None
    return Moments(
        *(
            torch.cat([_cut_to(getattr(part, name), s) for part, s in zip(parts, small, strict=True)], axis).expand(
                out.shape
            )
            for name in ("mean", "std")
        )
    )


def _cut_to(tensor: Tensor, shape: Sequence[int]) -> Tensor:
    """First elements along axes in which the tensor does not change."""
    for axis, size in enumerate(shape):
        tensor = tensor.narrow(axis, 0, size)
    return tensor


@rule("constant_pad_nd")
def _padded(get: Get, op: Op) -> Moments | None:
    """Channels of a constant beside the others. Around positions, the interior is what is followed."""
    found, out = get(op.args[0]), op.out
    value = float(op.args[2]) if len(op.args) > 2 else 0.0
    if found is None:
        return None
    amounts = list(op.args[1])
    rank = len(out.shape)
    for k in range(0, len(amounts), 2):
        axis = rank - 1 - k // 2
        if axis > 1 and axis not in found.axes:
            amounts[k : k + 2] = 0, 0
    padded = [axis for axis in range(rank) if axis >= rank - len(amounts) // 2 and any(_ends(amounts, rank, axis))]
    wide = [s if d in padded else 1 for d, s in enumerate(op.args[0].shape)]

    def pad(tensor: Tensor, fill: float) -> Tensor:
        small = compact(tensor)
        size = torch.broadcast_shapes(tuple(small.shape), tuple(wide))
        return torch.constant_pad_nd(small.expand(size), amounts, fill).expand(out.shape)

    return Moments(pad(found.mean, value), pad(found.std, 0.0))


def _ends(amounts: list[int], rank: int, axis: int) -> list[int]:
    first = 2 * (rank - 1 - axis)
    return amounts[first : first + 2]


# -- positions ------------------------------------------------------------------------------------------------------


@rule(
    *(f"{kind}{rank}d" for rank in (1, 2, 3) for kind in (
        "max_pool", "avg_pool", "_adaptive_avg_pool", "adaptive_avg_pool", "adaptive_max_pool", "upsample_nearest",
        "_upsample_nearest_exact", "upsample_linear", "upsample_bilinear", "upsample_trilinear", "reflection_pad",
        "replication_pad",
    )), "max_pool2d_with_indices", "max_pool3d_with_indices",
)  # fmt: skip
def _pooled(get: Get, op: Op) -> Moments | None:
    """A channel that is the same at every position stays what it is; zeros from padding would change that."""
    found = get(op.args[0])
    if found is None or (op.name.startswith("avg_pool") and _counts_padding(op)):
        return None
    positions = int(next(c for c in op.name if c.isdigit()))
    if any(axis >= len(op.args[0].shape) - positions for axis in found.axes):
        return None
    return found.map(lambda t: compact(t).expand(op.outs()[0].shape))


def _counts_padding(op: Op) -> bool:
    """Whether an average pool divides by more, or less, than the values it adds."""
    padding = op.args[3] if len(op.args) > 3 else op.kwargs.get("padding", 0)
    counted = op.args[5] if len(op.args) > 5 else op.kwargs.get("count_include_pad", True)
    divisor = op.args[6] if len(op.args) > 6 else op.kwargs.get("divisor_override")
    is_padded = any(padding) if isinstance(padding, (list, tuple)) else bool(padding)
    return (is_padded and bool(counted)) or divisor is not None


@rule("mean", "sum", "amax", "amin")
def _reduced(get: Get, op: Op) -> Moments | None:
    """Over axes along which nothing changes."""
    found = get(op.args[0])
    source, out = op.args[0], op.out
    gone = reduced_axes(op, len(source.shape))
    if found is None or found.axes & gone:
        return None
    factor = 1
    for axis in gone if op.name == "sum" else ():
        factor *= source.shape[axis]
    keeps_rank = len(out.shape) == len(source.shape)

    def reduce(tensor: Tensor) -> Tensor:
        for axis in sorted(gone, reverse=True):
            tensor = tensor.narrow(axis, 0, 1) if keeps_rank else tensor.select(axis, 0)
        return compact(tensor).mul(factor).expand(out.shape)

    return found.map(reduce)
