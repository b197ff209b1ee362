"""The shapes known without torch are torch's own."""

import pytest
import torch

from secateur.graph.kernels import SHAPES

aten = torch.ops.aten


def blank(*shape, dtype=torch.float32, layout=torch.contiguous_format):
    return torch.empty(shape, dtype=dtype, device="meta", memory_format=layout)


def plan(stride=1, padding=1, dilation=1, groups=1):
    return [stride] * 2, [padding] * 2, [dilation] * 2, False, [0, 0], groups


X = blank(2, 6, 9, 8)
LAST = blank(2, 6, 9, 8, layout=torch.channels_last)
CALLS = {
    "convolution": (aten.convolution.default, X, blank(4, 6, 3, 3), blank(4), *plan()),
    "strided and dilated": (aten.convolution.default, X, blank(4, 6, 3, 3), None, *plan(2, 3, 2)),
    "grouped": (aten.convolution.default, X, blank(9, 2, 3, 3), None, *plan(groups=3)),
    "depthwise": (aten.convolution.default, X, blank(6, 1, 3, 3), None, *plan(groups=6)),
    "transposed": (aten.convolution.default, X, blank(6, 4, 3, 3), None, [2, 2], [0, 0], [1, 1], True, [1, 1], 1),
    "channels last": (aten.convolution.default, LAST, blank(4, 6, 3, 3), None, *plan()),
    "one position": (aten.convolution.default, blank(2, 6, 1, 1), blank(4, 6, 1, 1), None, *plan(padding=0)),
    "same shapes": (aten.add.Tensor, X, X),
    "number": (aten.mul.Tensor, X, 2),
    "scaled": (aten.mul.Tensor, X, blank(2, 6, 1, 1)),
    "scale first": (aten.mul.Tensor, blank(6, 1, 1), X),
    "both grow": (aten.sub.Tensor, blank(5, 1), blank(1, 7)),
    "mixed precision": (aten.add.Tensor, X, blank(8, dtype=torch.float64)),
    "whole numbers": (aten.div.Tensor, blank(3, dtype=torch.int64), 2),
    "sum of channels last": (aten.add.Tensor, LAST, LAST),
    "mean": (aten.mean.dim, X, [-1, -2]),
    "mean that keeps axes": (aten.mean.dim, X, [2, 3], True),
    "mean of all": (aten.mean.dim, X, []),
    "cat": (aten.cat.default, [X, blank(2, 3, 9, 8)], 1),
    "cat from behind": (aten.cat.default, [X, blank(2, 6, 9, 3)], -1),
    "cat with nothing": (aten.cat.default, [blank(0), X], 1),
    "relu": (aten.relu.default, LAST),
    "batch norm": (aten.native_batch_norm.default, X, *[blank(6)] * 4, False, 0.1, 1e-5),
    "layer norm": (aten.native_layer_norm.default, X, [9, 8], None, None, 1e-5),
}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_shape_dtype_and_layout_are_those_of_torch(call):
    func, *args = call
    ours, theirs = SHAPES[func](*args), func(*args)
    if isinstance(theirs, tuple):
        ours, theirs = ours[0], theirs[0]
    assert (ours.shape, ours.dtype, ours.stride()) == (theirs.shape, theirs.dtype, theirs.stride())


@pytest.mark.parametrize(
    "call",
    [
        (aten.convolution.default, X, blank(4, 5, 3, 3), None, *plan()),
        (aten.convolution.default, X, blank(4, 6, 99, 3), None, *plan()),
        (aten.convolution.default, X, blank(4, 6, 3, 3), blank(3), *plan()),
        (aten.add.Tensor, X, blank(2, 5, 9, 8)),
        (aten.cat.default, [X, blank(2, 3, 9, 7)], 1),
        (aten.native_batch_norm.default, X, *[blank(5)] * 4, False, 0.1, 1e-5),
        (aten.addmm.default, blank(3), blank(2, 4), blank(5, 3)),
    ],
    ids=lambda call: str(call[0]),
)
def test_sizes_that_do_not_fit_raise(call):
    func, *args = call
    with pytest.raises(RuntimeError):
        SHAPES[func](*args)
