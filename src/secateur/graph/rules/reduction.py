"""Operations that sum, average or compare along axes: the axes disappear, and labels across them are not tied."""

from __future__ import annotations

from torch import Tensor

from ..labels import Labels, axes, compact
from ..tape import Op, Ref
from ._table import rule


def reduced_axes(op: Op, rank: int) -> frozenset[int]:
    """Axes that a reduction takes away; all of them when it names none."""
    dims = op.args[2] if op.name == "linalg_vector_norm" and len(op.args) > 2 else None
    if op.name != "linalg_vector_norm":
        dims = op.args[1] if len(op.args) > 1 else op.kwargs.get("dim")
    if op.name == "norm":
        dims = op.args[2] if len(op.args) > 2 else op.kwargs.get("dim")
    if dims is None or isinstance(dims, bool):
        return frozenset(range(rank))
    listed = [dims] if isinstance(dims, int) else list(dims)
    return frozenset(d % rank for d in listed) if listed or op.name in ("amax", "amin") else frozenset(range(rank))


@rule(
    "mean",
    "sum",
    "amax",
    "amin",
    "var",
    "std",
    "var_mean",
    "std_mean",
    "linalg_vector_norm",
    "norm",
    "logsumexp",
    "prod",
    "nansum",
    "any",
    "all",
    "max",
    "min",
    "median",
    "nanmedian",
    "aminmax",
    "count_nonzero",
)
def reduced(labels: Labels, op: Op) -> None:
    """Take axes away. Where a layer varies along one, removing a channel changes the value: a statistic."""
    refs = op.refs()
    if len(refs) > 1:  # max(x, y), min(x, y): element by element
        from .pointwise import meeting

        return meeting(labels, op)
    source = refs[0]
    outs = op.outs()
    if op.name in ("max", "min", "median", "nanmedian") and len(outs) == 1 and len(op.args) == 1:
        gone = frozenset(range(len(source.shape)))
    else:
        gone = reduced_axes(op, len(source.shape))
    if labels.is_uniform(source):
        labels.uniform.update(ref.number for ref in outs)
    for ref in outs:
        labels.set(ref, _without(labels, op, source, gone, ref))
    return None


def _without(labels: Labels, op: Op, source: Ref, gone: frozenset[int], out: Ref) -> list[Tensor]:
    keeps_rank = len(out.shape) == len(source.shape)
    layers = labels.get(source)
    if any(axes(layer) & gone for layer in layers) and (not labels.statistics or labels.statistics[-1].op != op.index):
        labels.statistic(op)
    result = []
    for layer in layers:
        varying = axes(layer)
        if varying <= gone:
            continue
        left = labels.collapse(layer, varying & gone)
        for axis in sorted(gone, reverse=True):
            left = left.narrow(axis, 0, 1) if keeps_rank else left.select(axis, 0)
        result.append(left)
    return result


@rule(
    "cumsum",
    "cumprod",
    "logcumsumexp",
    "cummax",
    "cummin",
    "sort",
    "topk",
    "argsort",
    "kthvalue",
    "mode",
    "argmax",
    "argmin",
)
def ordered(labels: Labels, op: Op) -> None:
    """Order matters along one axis: channels there cannot be cut; other axes pass through."""
    source: Ref = op.args[0]
    rank = len(source.shape)
    position = {"topk": 2, "kthvalue": 2}.get(op.name, 1)
    dim = op.args[position] if len(op.args) > position else op.kwargs.get("dim", -1)
    if isinstance(dim, bool) or dim is None:
        dim = -1 if op.name in ("sort", "topk", "argsort") or rank == 1 else None
    gone = frozenset(range(rank)) if dim is None else frozenset({dim % rank if rank else 0})
    kept = []
    for layer in labels.get(source):
        left = labels.drop(layer, axes(layer) & gone, "its order is used") if axes(layer) & gone else layer
        if left is not None:
            kept.append(left)
    for ref in op.outs():
        labels.set(ref, [fitted for layer in kept if (fitted := _fit(layer, gone, ref.shape)) is not None])


def _fit(layer: Tensor, gone: frozenset[int], shape: tuple[int, ...]) -> Tensor | None:
    thin = layer
    for axis in sorted(gone, reverse=True):
        thin = thin.narrow(axis, 0, 1) if len(shape) == layer.ndim else thin.select(axis, 0)
    return thin.expand(shape)


@rule("_fft_r2c", "_fft_c2r", "_fft_c2c")
def transformed(labels: Labels, op: Op) -> None:
    """Fourier transforms mix the positions along some axes: channels there cannot be cut, the others pass."""
    source: Ref = op.args[0]
    out: Ref = op.out
    mixed = frozenset(d % len(source.shape) for d in op.args[1])
    kept = []
    for layer in labels.get(source):
        left = labels.drop(layer, axes(layer) & mixed, "positions are mixed") if axes(layer) & mixed else layer
        if left is not None:
            kept.append(compact(left).expand(out.shape))
    labels.set(out, kept)
