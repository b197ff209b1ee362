"""Zero a plan in place of cutting it: the same function at full width.

For channels that enter a norm's or mean's statistics the two differ until those are taken over kept channels only;
`secateur.surgery.verify.reference` does that.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor, nn

from ..graph.groups import ChannelGraph
from ..plan import Plan
from .shrink import copy_with, fitted


@torch.inference_mode(False)  # tensors made in that mode never train
def mask(model: nn.Module, graph: ChannelGraph, plan: Plan) -> nn.Module:
    """Return a full-width copy of a model in which everything the plan removes is zero.

    Of a residual branch these are the parameters that scale its result last.

    Running variances become 1 (a variance of 0 is no neutral value), and the directions of ``weight_norm`` stay, since
    their lengths are zero.

    Raises:
        PlanError: the plan or the graph is of another model.
    """
    model = fitted(model, graph)
    dead = dict(dead_places(graph, plan))

    def masked(name: str, tensor: Tensor) -> Tensor:
        copy = tensor.detach().clone(memory_format=torch.preserve_format)
        if name in dead:
            copy.masked_fill_(dead[name].to(copy.device), neutral(name))
        return copy

    return copy_with(model, masked)


def neutral(name: str) -> float:
    """Value that removed places of a tensor take when masked."""
    return 1.0 if name.endswith("running_var") else 0.0


def dead_places(graph: ChannelGraph, plan: Plan) -> Iterator[tuple[str, Tensor]]:
    """Yield the name of each tensor that loses something, and a bool mask broadcastable to it: True = goes.

    The numbers by which a selection passes channels on are no values that zeros could replace; what reads them is here.
    """
    alive = graph.alive(plan)
    off = {name for branch in plan.removed_branches for name in graph.branches[branch].switch}
    for name, shape in graph.shapes.items():
        if name in graph.labels.selecting:
            continue
        gone: Tensor | None = None
        for varying, places in graph.alive_along(name, alive):
            if places.all() or (name.endswith(("parametrizations.weight.original1", "weight_v")) and 0 in varying):
                continue
            here = torch.from_numpy(np.ascontiguousarray(~places)).expand(shape)
            gone = here if gone is None else gone | here
        if name in off:
            gone = torch.ones((1,) * len(shape), dtype=torch.bool).expand(shape)
        if gone is not None:
            yield name, gone
