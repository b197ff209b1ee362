"""Where a channel selection can stand, and how it gets there and away again.

Behind a batch norm that reads a stream (of a pre-activation residual network, or what a dense block has concatenated so
far), channels can go for what reads that norm alone: the stream stays whole, and a `ChannelSelect` passes on what is
left.
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
from ..graph.select import SELECT, ChannelSelect
from ..graph.walk import modules_of
from .selecting import insert_
from .shrink import copy_with


def with_selections(model: nn.Module, graph: ChannelGraph) -> ChannelGraph:
    """Return the graph of a model as if a channel selection stood behind every norm where one can.

    Its plans may name the groups of these selections: channels that go there leave the columns of the layers that read
    them, and nothing else. The stream they come from is whole in this graph. `shrink` and `mask` take the model as it
    is, and put the selections in that a plan needs.

    Args:
        model: the traced model; nothing of it changes.
        graph: its graph. A group that it lacks, or that is rigid, is missing in the result too.

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
    """
    if graph.selections is not None:
        return graph
    paths = candidates(model, graph)
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


def _is_sum(graph: ChannelGraph, norm: Norm) -> bool:
    """Whether what a norm reads has channels that are added up somewhere."""
    added = np.zeros(int(graph.component.max(initial=0)) + 1, dtype=bool)
    for layer in graph.labels.added:
        added[graph.component[layer.numpy()]] = True
    own = graph.labels.layers.get(norm.source.number, [])
    return any(bool(added[graph.component[compact(layer).numpy()]].any()) for layer in own)


def _traced(model: nn.Module, graph: ChannelGraph, paths: list[str]) -> ChannelGraph:
    twin = copy_with(model, lambda _, tensor: tensor.detach())
    for path in paths:
        insert_(twin, path)
    granularity = "heads" if graph.labels.heads else "head_dims"
    return trace(twin, *graph.example, granularity=granularity, carrier=graph.tape.carrier)


def _is_read_by_columns(graph: ChannelGraph, index: str) -> bool:
    own = next((g for g in graph.groups.values() if any(m.tensor == index for m in g.members)), None)
    return own is not None and all(m.role == "in" for m in own.members if m.tensor != index)


def selected(model: nn.Module, path: str, width: int) -> Tensor:
    """Return which channels the selection behind a norm passes on; all of them where there is none."""
    select = getattr(modules_of(model, shared=True)[path], SELECT, None)
    return select.index if isinstance(select, ChannelSelect) else torch.arange(width)
