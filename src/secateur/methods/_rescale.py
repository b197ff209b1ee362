"""Move size from the gains of normalisations into the weights that read them, without a change to the function."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..errors import MethodError
from ..graph.groups import ChannelGraph, ChannelGroup
from ..graph.norms import Flow
from ..graph.products import Product, weight_view
from ..graph.walk import state_of
from ..plan import Plan
from ..recovery.moments import taps_of
from ..surgery.verify import verify
from ..train.watching import kernel_of, write_kernel_
from ._problem import Problem
from ._scales import Scales
from ._sensitivity_measure import clone


def rescale_(model: nn.Module, graph: ChannelGraph, scales: Scales, factor: float) -> None:
    """Multiply gains and shifts by a factor and divide by it the weights that read these channels, IN PLACE.

    The function stays as it is where everything between is positively homogeneous: ReLU, pooling, sums.
    """
    state = state_of(model, shared=True)
    covered = scales.spread({name: torch.ones(()) for name in scales.places})
    times = {name: 1 + (factor - 1) * where for name, where in zip(scales.names, covered, strict=True)}
    with torch.no_grad():
        done: set[str] = set()
        for norm in (norm for own in scales.norms.values() for norm in own):
            for name in (norm.gain, norm.shift):
                if name is not None and name not in done:
                    state[name].mul_(times[norm.gain].to(state[name]))
                    done.add(name)
        for product, columns in _reading(graph, scales):
            view = None if product.site.weight in done else weight_view(model, graph, product)
            if view is not None:
                _divide_(view, product, columns, factor)
                done.add(product.site.weight)


def check_rescaling(problem: Problem, scales: Scales, factor: float) -> None:
    """Rescale a copy in float64 and compare.

    Raises:
        MethodError: the function changes.
    """
    model = clone(problem.model).double()
    other = clone(model)
    rescale_(other, problem.graph, scales, factor)
    found = verify(model, other, Plan(), problem.args, problem.kwargs)
    if not found.is_exact:
        raise MethodError(
            f"rescale={factor!r} would change what the model computes ({found}): between a normalisation and the "
            "layers that read it stands something that does not scale along with its input, as ReLU does. "
            "Use rescale=1."
        )


def _reading(graph: ChannelGraph, scales: Scales) -> list[tuple[Product, Tensor]]:
    """Products that are the first to read what these normalisations put out, and which of their columns do."""
    flow = Flow(graph)
    found = []
    for product in flow.products:
        columns = torch.zeros(product.groups, kernel_columns(product), dtype=torch.bool)
        for name, norms in scales.norms.items():
            columns |= _columns_behind(flow, product, graph, graph.groups[name], {norm.op for norm in norms})
        if columns.any():
            found.append((product, columns))
    return found


def _columns_behind(flow: Flow, product: Product, graph: ChannelGraph, group: ChannelGroup, norms: set[int]) -> Tensor:
    columns = torch.from_numpy(product.channels_of(graph, group) >= 0)
    if columns.any() and flow.behind(group, product.source, product.op.index) & norms:
        return columns
    return torch.zeros_like(columns)


def kernel_columns(product: Product) -> int:
    """Number of input channels that each block of a product reads."""
    if product.is_convolution:
        return int(product.source.shape[1]) // product.groups
    return int(product.weight.shape[-1 if product.is_weight_first else -2])


def _divide_(view: Tensor, product: Product, columns: Tensor, factor: float) -> None:
    layout = {
        "transposed": product.is_convolution and bool(product.op.args[6]),
        "is_convolution": product.is_convolution,
        "is_weight_first": product.is_weight_first,
    }
    kernel = kernel_of(view, product.groups, **layout)
    by = (1 + (factor - 1) * columns.double()).repeat_interleave(taps_of(product), dim=1)[:, None, :]
    write_kernel_(view, kernel / by.to(kernel), **layout)
