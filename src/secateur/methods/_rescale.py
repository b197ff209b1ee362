"""Move size from the gains of normalisations into the weights that read them, without a change to the function."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from ..errors import MethodError
from ..graph.groups import ChannelGraph
from ..graph.norms import Flow
from ..graph.products import Product, weight_view
from ..graph.tape import map_tensors
from ..graph.walk import state_of
from ..plan import Plan
from ..recovery.moments import taps_of
from ..surgery.shrink import clone
from ..surgery.verify import verify
from ..train.watching import kernel_of, write_kernel_
from ._problem import Problem
from ._scales import Scales


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
    args, kwargs = map_tensors(_as_double, (problem.args, dict(problem.kwargs)))
    found = verify(model, other, Plan(), args, kwargs, **problem.graph.options)
    if not found.is_exact:
        raise MethodError(
            f"rescale={factor!r} would change what the model computes ({found}): between a normalisation and the "
            "layers that read it stands something that does not scale along with its input, as ReLU does. "
            "Use rescale=1."
        )


def _as_double(tensor: Tensor) -> Tensor:
    return tensor.double() if tensor.is_floating_point() else tensor


def _reading(graph: ChannelGraph, scales: Scales) -> list[tuple[Product, Tensor]]:
    """Products that are the first to read what these normalisations put out, and which of their columns do."""
    flow, names = Flow(graph), list(scales.norms)
    group_of = np.full(int(graph.component.max(initial=0)) + 1, -1)
    for number, name in enumerate(names):
        group_of[graph.groups[name].channels] = number
    found = []
    for product in flow.products:
        reads = np.zeros(product.columns[0].shape, dtype=bool) if product.columns else np.zeros((1, 0), dtype=bool)
        for columns in product.columns:
            for number in np.unique(group_of[columns][group_of[columns] >= 0]):
                group, norms = graph.groups[names[number]], {norm.op for norm in scales.norms[names[number]]}
                if flow.behind(group, product.source, product.op.index) & norms:
                    reads |= group_of[columns] == number
        if reads.any():
            found.append((product, torch.from_numpy(reads)))
    return found


def _divide_(view: Tensor, product: Product, columns: Tensor, factor: float) -> None:
    kernel = kernel_of(view, product.groups, **product.layout)
    by = (1 + (factor - 1) * columns.double()).repeat_interleave(taps_of(product), dim=1)[:, None, :]
    write_kernel_(view, kernel / by.to(kernel), **product.layout)
