"""Count the multiply-accumulates (MACs) of one forward pass as they happen.

1 MAC = 2 FLOPs. ``FlopCounterMode`` counts; what it does not see is switched off (fused kernels of attention and of
recurrent layers, whose plain form it does see) or told to it (products with a vector, trilinear products).
"""

from __future__ import annotations

import copy
import logging
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeCopyMode, FakeTensorMode
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils import _pytree as pytree
from torch.utils.flop_counter import FlopCounterMode

from ..graph.groups import ChannelGraph
from ..graph.memoised import remembering_nothing
from ..graph.products import Product, products
from ..weight_plan import WeightPlan
from ._inference import as_call, evaluating

logger = logging.getLogger(__name__)


def measured_macs(model: nn.Module, args: Any, *, kwargs: Mapping[str, Any] | None = None) -> int:
    """Return the MACs of ``model(*args, **kwargs)`` in evaluation mode, for the batch that is given.

    Counted are matrix products, convolutions and attention; pointwise operations, normalisation and pooling are not.
    The call runs on a copy made of fake tensors, which computes nothing; a model that looks at values runs on a real
    copy. Neither changes `model`.

    Args:
        model: any model.
        args: its positional arguments as a tuple or list, or one argument.
        kwargs: its keyword arguments.

    >>> measured_macs(nn.Conv2d(4, 6, 3, groups=2), torch.zeros(1, 4, 5, 5))  # 9 positions x 6 filters x 2 x 3 x 3
    972
    """
    call = as_call(args, kwargs)
    try:
        return _count_on_fake_tensors(model, *call)
    except Exception as error:  # whatever a model does with a value that is not there; the real run has the last word
        logger.debug("cannot count MACs on fake tensors (%s); counting on a real copy.", error)
    return _count(copy.deepcopy(model), *call)


def _count_on_fake_tensors(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> int:
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    with FakeCopyMode(mode):
        fake_model = copy.deepcopy(model)
    fake_args, fake_kwargs = pytree.tree_map_only(Tensor, mode.from_tensor, (args, kwargs))
    return _count(fake_model, fake_args, fake_kwargs, mode)


def _count(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], mode: FakeTensorMode | None = None) -> int:
    model.requires_grad_(False)  # the counter follows gradients, and a view of a parameter has none to follow
    counter = FlopCounterMode(display=False, custom_mapping=_UNCOUNTED)
    # fake tensors come after `evaluating`, which reads and restores real random states
    with _plain_kernels(), evaluating(model), remembering_nothing(model.modules()), mode or nullcontext(), counter:
        model(*args, **kwargs)
    return int(counter.get_total_flops()) // 2


@contextmanager
def _plain_kernels() -> Iterator[None]:
    """Let fused kernels fall apart into products that are counted."""
    mha, backends = torch.backends.mha, (torch.backends.mkldnn, torch.backends.cudnn)
    was_fast, were_enabled = mha.get_fastpath_enabled(), [backend.set_flags()[0] for backend in backends]
    try:
        mha.set_fastpath_enabled(False)
        for backend in backends:
            backend.set_flags(_enabled=False)
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        mha.set_fastpath_enabled(was_fast)
        for backend, was_enabled in zip(backends, were_enabled, strict=True):
            backend.set_flags(_enabled=was_enabled)


def _matrix_vector(matrix: tuple[int, ...], vector: Any, *_: Any, **__: Any) -> int:
    return 2 * math.prod(matrix)


def _added_matrix_vector(added: Any, matrix: tuple[int, ...], vector: Any, *_: Any, **__: Any) -> int:
    return 2 * math.prod(matrix)


def _trilinear(i1: Any, i2: Any, i3: Any, expand1: Any, expand2: Any, expand3: Any, *_: Any, **__: Any) -> int:
    full: list[list[int]] = []
    for shape, expand in ((i1, expand1), (i2, expand2), (i3, expand3)):
        sizes = list(shape)
        for dim in sorted(expand):
            sizes.insert(dim, 1)
        full.append(sizes)
    return 2 * int(math.prod(max(sizes) for sizes in zip(*full, strict=True)))


_UNCOUNTED = {
    torch.ops.aten.mv: _matrix_vector,
    torch.ops.aten.dot: _matrix_vector,
    torch.ops.aten.vdot: _matrix_vector,
    torch.ops.aten.addmv: _added_matrix_vector,
    torch.ops.aten._trilinear: _trilinear,
}


def nonzero_macs(graph: ChannelGraph, plan: WeightPlan) -> int:
    """Return the multiply-adds that are left where every product with a removed weight is left out.

    Hardware that runs zeros as it runs other numbers saves none of them.

    Args:
        graph: the channel graph of the model, traced on the input that multiply-adds are counted for.
        plan: which weights stay.

    >>> from secateur.graph import trace
    >>> model = torch.nn.Linear(4, 2, bias=False)
    >>> nonzero_macs(trace(model, torch.zeros(3, 4)), WeightPlan({"weight": torch.eye(4)[:2] > 0}))
    6
    """
    saved = 0.0
    for product in products(graph):
        mask = plan.kept.get(product.site.weight)
        if mask is not None and mask.numel():
            gone = 1 - int(mask.count_nonzero()) / mask.numel()
            saved += gone * math.prod(product.weight.shape) * _uses(product)
    return graph.costs().macs - round(saved)


def _uses(product: Product) -> int:
    """Return how often each entry of the weight is multiplied: once for each place of the map, row of a matrix."""
    if product.is_convolution:
        ends = product.source if product.layout["transposed"] else product.op.out
        return math.prod(ends.shape) // int(product.weight.shape[0])
    out = product.op.out.shape
    return int(out[-1] if product.is_weight_first else out[-2])
