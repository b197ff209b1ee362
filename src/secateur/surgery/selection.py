"""Where a channel selection can stand, and how it gets there and away again.

Behind a batch norm that reads a stream (of a pre-activation residual network, or what a dense block has concatenated so
far), or in front of the first layer of a residual branch, channels can go for what reads them there alone: the stream
stays whole, and a `ChannelSelect` passes on what is left.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..graph.groups import ChannelGraph, ChannelGroup, trace
from ..graph.labels import compact
from ..graph.norms import Flow, Norm
from ..graph.products import Product
from ..graph.select import SELECT, ChannelSelect
from ..graph.walk import modules_of
from .selecting import LAYERS, insert_
from .shrink import copy_with

Array = np.ndarray[Any, Any]


def with_selections(model: nn.Module, graph: ChannelGraph, *, before_layers: bool = False) -> ChannelGraph:
    """Return the graph of a model as if a channel selection stood wherever one can.

    Its plans may name the groups of these selections: channels that go there leave the columns of the layers that read
    them, and nothing else. The stream they come from is whole in this graph. `shrink` and `mask` take the model as it
    is, and put the selections in that a plan needs.

    Args:
        model: the traced model; nothing of it changes.
        graph: its graph. A group that it lacks, or that is rigid, is missing in the result too. One that has been asked
            for selections before comes back as it is.
        before_layers: where they stand. False = behind every batch norm of a stream (Liu et al. 2017). True = in front
            of the layers, convolutions and linear ones, by which residual branches read their stream (He et al. 2017,
            section 3.3), whether anything normalises it there or not.

    >>> block = nn.Sequential(nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 1))
    >>> class Net(nn.Module):
    ...     def __init__(self):
    ...         super().__init__()
    ...         self.stem, self.block, self.head = nn.Conv2d(1, 4, 1), block, nn.Conv2d(4, 2, 1)
    ...     def forward(self, x):
    ...         x = self.stem(x)
    ...         return self.head(x + self.block(x))
    >>> net = Net()
    >>> graph = trace(net, torch.zeros(1, 1, 2, 2))
    >>> graph.widths, with_selections(net, graph).widths
    ({'stem': 4}, {'block.0.select': 4})
    >>> with_selections(net, graph, before_layers=True).widths
    {'block.2.select': 4}
    """
    if graph.selections is not None:
        return graph
    paths = first_layers(model, graph) if before_layers else candidates(model, graph)
    found = graph
    while paths:
        found = _traced(model, graph, paths)
        good = [path for path in paths if _is_read_by_columns(found, f"{path}.{SELECT}.index")]
        if good == paths:
            break
        paths = good
    if not paths:
        return replace(graph, selections=())
    known = {n: g for n, g in found.groups.items() if n in graph.groups or n in found.selecting}
    return replace(found, groups=known, rigid=dict(graph.rigid), selections=tuple(paths))


def candidates(model: nn.Module, graph: ChannelGraph) -> list[str]:
    """Return the paths of batch norms without a selection that read a sum, or what others read too."""
    flow, modules = Flow(graph), modules_of(model, shared=True)
    every = ChannelGroup("", np.arange(int(graph.component.max(initial=0)) + 1), ())
    behind: dict[int, set[int]] = {norm.op: flow.behind(every, norm.source, norm.op) for norm in flow.norms}
    behind.update((p.op.index, flow.behind(every, p.source, p.op.index)) for p in flow.products)
    readers = Counter(maker for makers in behind.values() for maker in makers)
    found: dict[str, None] = {}
    for norm in flow.norms:
        path = norm.gain.rpartition(".")[0]
        module: Any = modules.get(path)
        is_own = isinstance(module, nn.modules.batchnorm._BatchNorm) and graph.tape.ops[norm.op].module == path
        makers = behind[norm.op]
        is_shared = any(readers[maker] > 1 for maker in makers) or (len(makers) > 1 and _is_sum(graph, norm))
        if is_own and is_shared and not hasattr(module, SELECT):
            found[path] = None
    return list(found)


def first_layers(model: nn.Module, graph: ChannelGraph) -> list[str]:
    """Return the paths of layers without a selection by which residual branches read channels that are added up."""
    flow, modules, added = Flow(graph), modules_of(model, shared=True), _added(graph)
    summing = {p.op.index: p for p in flow.products if not p.reads_one}
    every = ChannelGroup("", np.arange(len(added)), ())
    found: dict[str, None] = {}
    for branch in graph.branches.values():
        inside = branch.ops & summing.keys()
        for number in sorted(inside):
            product = summing[number]
            module: Any = modules.get(product.module)
            is_own = isinstance(module, LAYERS) and not hasattr(module, SELECT)
            if is_own and _reads(product, added):
                behind = flow.behind(every, product.source, number, lambda op: op.index in summing)
                if not behind & inside:
                    found[product.module] = None
    return list(found)


def _reads(product: Product, channels: Array) -> bool:
    return any(bool(channels[numbers].all()) for numbers in product.columns)


def _added(graph: ChannelGraph) -> Array:
    """Return which channels are added up somewhere."""
    added = np.zeros(int(graph.component.max(initial=0)) + 1, dtype=bool)
    for layer in graph.labels.added:
        added[graph.component[layer.numpy()]] = True
    return added


def _is_sum(graph: ChannelGraph, norm: Norm) -> bool:
    """Whether what a norm reads has channels that are added up somewhere."""
    added = _added(graph)
    own = graph.labels.layers.get(norm.source.number, [])
    return any(bool(added[graph.component[compact(layer).numpy()]].any()) for layer in own)


def _traced(model: nn.Module, graph: ChannelGraph, paths: list[str]) -> ChannelGraph:
    twin = copy_with(model, lambda _, tensor: tensor.detach())
    for path in paths:
        insert_(twin, path)
    return trace(twin, *graph.example, **graph.options, carrier=graph.tape.carrier)


def _is_read_by_columns(graph: ChannelGraph, index: str) -> bool:
    own = next((g for g in graph.groups.values() if any(m.tensor == index for m in g.members)), None)
    return own is not None and all(m.role == "in" for m in own.members if m.tensor != index)


def selected(model: nn.Module, path: str, width: int) -> Tensor:
    """Return which channels the selection at a norm or layer passes on; all of them where there is none."""
    select = getattr(modules_of(model, shared=True)[path], SELECT, None)
    return select.index if isinstance(select, ChannelSelect) else torch.arange(width)
