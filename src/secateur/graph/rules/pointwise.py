"""Operations that work element by element: labels at the same place are tied."""

from __future__ import annotations

from ..labels import Labels, axes, compact
from ..tape import Op, Ref
from ._table import rule


def meeting(labels: Labels, op: Op) -> None:
    """Every tensor argument meets every other; the result carries what is left. Serves each op that torch tags
    pointwise.
    """
    refs = op.refs()
    out: Ref = op.outs()[0]
    if len(refs) == 1:
        layers = labels.get(refs[0])
        if labels.is_uniform(refs[0]):
            labels.uniform.add(out.number)
        for ref in op.outs():
            labels.set(ref, layers if ref.shape == refs[0].shape else [])
        return
    if all(labels.is_uniform(ref) and not labels.get(ref) for ref in refs):
        labels.uniform.update(ref.number for ref in op.outs())
        return
    if out.number == refs[0].number:
        labels.no_longer_uniform(out)
        _written_view(labels, refs)
    if op.name in ("add", "sub") and labels.is_stream(op, refs):
        labels.added += [compact(layer) for layer in labels.get(refs[0])]
    layers = labels.meet(out.shape, [labels.operand(ref) for ref in refs])
    for ref in op.outs():
        labels.set(ref, layers if ref.shape == out.shape else [])


def _written_view(labels: Labels, refs: list[Ref]) -> None:
    """Writing labelled values into part of an unlabelled tensor: what the whole then holds is not followed."""
    if labels.get(refs[0]) or refs[0].number not in labels.view_of:
        return
    for ref in refs[1:]:
        for layer in labels.get(ref):
            labels.freeze(layer, "written into part of a tensor")


@rule(
    "copy",
    "hardswish",
    "_prelu_kernel",
    "hardtanh",
    "where",
    "masked_fill",
    "lerp",
    "addcmul",
    "addcdiv",
    "clamp",
    "threshold",
    "mish",
    "silu",
    "gelu",
    "softplus",
    "celu",
    "selu",
    "elu",
    "hardsigmoid",
    "leaky_relu",
    "rrelu",
    "log_sigmoid_forward",
    "logit",
    "polar",
    "complex",
    "nan_to_num",
    "angle",
    "_softmax_backward_data",
    "isin",
    "masked_fill_scalar",
    "special_erfcx",
    "bitwise_not",
    "glu_jvp",
    "heaviside",
    "fake_quantize_per_tensor_affine",
)
def listed(labels: Labels, op: Op) -> None:
    """Element-wise operations that torch does not tag as such."""
    meeting(labels, op)


@rule(
    "zeros",
    "ones",
    "empty",
    "full",
    "new_zeros",
    "new_ones",
    "new_full",
    "new_empty",
    "scalar_tensor",
    "empty_strided",
    "new_empty_strided",
    "empty_permuted",
)
def constant(labels: Labels, op: Op) -> None:
    """The same value everywhere, in a size given by the caller: it constrains nothing."""
    for ref in op.outs():
        labels.uniform.add(ref.number)


@rule("zeros_like", "ones_like", "full_like", "empty_like")
def constant_like(labels: Labels, op: Op) -> None:
    """The same value everywhere, in the size of another tensor."""
    labels.uniform.add(op.out.number)
    labels.set(op.out, labels.get(op.args[0]))


@rule("rand_like", "randn_like", "randint_like")
def noise_like(labels: Labels, op: Op) -> None:
    """Noise in the size of another tensor follows its width."""
    labels.set(op.out, labels.get(op.args[0]))


@rule("fill", "zero")
def overwritten(labels: Labels, op: Op) -> None:
    """The same value everywhere, in place; a view's whole then holds several."""
    if op.args[0].number in labels.view_of:
        labels.no_longer_uniform(op.args[0])
    labels.set(op.outs()[0], labels.get(op.args[0]))


@rule(
    "arange",
    "linspace",
    "rand",
    "randn",
    "randint",
    "randperm",
    "eye",
    "tril_indices",
    "triu_indices",
    "hann_window",
    "tensor",
    "normal_functional",
    "random",
    "uniform",
    "normal",
    "exponential",
    "logspace",
    "full_names",
)
def foreign(labels: Labels, op: Op) -> None:
    """Values made here without any tensor of the model: unlabelled."""


@rule(
    "sym_size",
    "size",
    "stride",
    "is_same_size",
    "_local_scalar_dense",
    "equal",
    "_assert_async",
    "_assert_tensor_metadata",
    "item",
    "is_nonzero",
    "allclose",
    "_has_compatible_shallow_copy_type",
    "isinf_any",
)
def observed(labels: Labels, op: Op) -> None:
    """Something is read off a tensor; no new labelled tensor arises. A value read off labelled data freezes it."""
    if op.name in ("_local_scalar_dense", "item", "is_nonzero", "equal", "allclose"):
        for ref in op.refs():
            for layer in labels.get(ref):
                labels.freeze(layer, "a number is read off it")


@rule("view_as_real", "view_as_complex")
def as_parts(labels: Labels, op: Op) -> None:
    """Complex numbers as pairs of real ones on a last axis, and back; the pair itself cannot be cut."""
    source: Ref = op.args[0]
    out: Ref = op.out
    labels.view_of[out.number] = source.number
    if op.name == "view_as_real":
        return labels.set(out, [layer.unsqueeze(-1).expand(out.shape) for layer in labels.get(source)])
    last = len(source.shape) - 1
    kept = [labels.drop(k, [last], "real and imaginary part") if last in axes(k) else k for k in labels.get(source)]
    return labels.set(out, [layer.select(-1, 0) for layer in kept if layer is not None])
