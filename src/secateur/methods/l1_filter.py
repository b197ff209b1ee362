"""L1-norm filter pruning: filters with small weights go.

Source: Li, Kadav, Durdanovic, Samet, Graf, "Pruning Filters for Efficient ConvNets", ICLR 2017, arXiv:1608.08710.

Claim: in each layer the filters with the smallest sum of absolute weights can go with their feature maps and the next
layer's kernels, and retraining recovers the accuracy, without sparse libraries.

Equation: s_j = sum over i of ||F_ij||_1, where F_ij is the kernel of filter j over input channel i; the filters with
the smallest s_j go.

Cost: O(P) time for P parameters, and a temporary of the largest weight's size in float64. No data.

Use it when there is no data yet, or as the reference that a method which reads data has to beat. It knows nothing of
what the layers after a filter do with it, nor of a scale that normalisation takes out again.

Where we differ, and why:

- Channels that several weights make (gate and up projection of a gated unit, query, key and value of a head) are
  scored by the sum over all of them; the paper has one filter per channel.
- The paper chooses a fraction per layer by hand from sensitivity curves; here the fraction is the same for every group
  unless `allocation` says otherwise, and the budget is met exactly instead of by rounding per layer.
- Residual streams without a projection stay whole, as in the paper's identity shortcuts (section 3.3); with a 1x1
  projection, its filters decide for the whole stream (section 3.3). ``residual="prune"`` goes further than the paper.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import MethodError
from ..graph.groups import ChannelGraph, ChannelGroup
from ._filters import deciding
from ._problem import Decision, Problem
from ._scores import (
    Allocation,
    counts_for,
    eligible,
    lowest,
    per_channel,
    plan_from_counts,
    plan_from_scores,
    producers,
)


def l1_filter_scores(weight: Tensor) -> Tensor:
    """Score each filter by the sum of its absolute weights; higher = keep.

    Source: Li et al. 2017, section 3.1.

    Args:
        weight: (out_channels, in_channels, kernel_h, kernel_w), or any tensor whose first axis is the filters.

    Returns:
        (out_channels,), >= 0, in the weight's own unit and dtype.

    >>> l1_filter_scores(torch.tensor([[[[1., -2.]]], [[[0., 0.5]]]])).tolist()
    [3.0, 0.5]
    """
    return weight.abs().flatten(start_dim=1).sum(dim=1)


@dataclass(frozen=True)
class L1Filter:
    """Remove the filters with the smallest L1 norm.

    Attributes:
        selection: "independent" scores every filter on the whole weight; "greedy" goes through the layers in forward
            order and leaves out the kernels of channels that earlier layers have already lost (section 3.2).
        allocation: "uniform", "global" or {module path: relative fraction}. "greedy" needs a fixed number per layer, so
            it excludes "global".
        residual: "projection" (the paper), "skip" or "prune": what happens to residual streams.
    """

    selection: str = "independent"
    allocation: Allocation = "uniform"
    residual: str = "projection"

    def __post_init__(self) -> None:
        if self.selection not in ("independent", "greedy"):
            raise MethodError(f"selection={self.selection!r}: expected 'independent' or 'greedy'.")
        if self.selection == "greedy" and self.allocation == "global":
            raise MethodError(
                "selection='greedy' scores layers one after another: allocation='global' cannot rank them."
            )

    def decide(self, problem: Problem) -> Decision:
        """Score and choose; reads weights only.

        Raises:
            BudgetError: the budget is not reachable.
            MethodError: weights are not finite real numbers.
            NothingToPrune: no group is free to go.
        """
        names = eligible(problem, self.residual)
        problem.check_weights(names)
        made = {m.tensor for name in names for m in producers(problem.graph, problem.graph.groups[name])}
        weights = {name: p.detach() for name, p in problem.model.named_parameters() if name in made}
        if self.selection == "greedy":
            return self._greedy(problem, names, weights)
        scores = {n: self._scores(problem.graph, problem.graph.groups[n], weights) for n in names}
        return Decision(plan_from_scores(problem, scores, self.allocation), scores=scores)

    def _greedy(self, problem: Problem, names: list[str], weights: dict[str, Tensor]) -> Decision:
        kept = counts_for(problem, names, self.allocation)
        left = {name: tensor.clone() for name, tensor in weights.items()}
        scores: dict[str, Tensor] = {}
        for name in names:
            group = problem.graph.groups[name]
            scores[name] = self._scores(problem.graph, group, left)
            gone = lowest(scores[name], group.width - kept[name])
            _zero_inputs_(problem.graph, group, gone, left)
        return Decision(plan_from_counts(problem, kept, scores), scores=scores)

    def _scores(self, graph: ChannelGraph, group: ChannelGroup, weights: Mapping[str, Tensor]) -> Tensor:
        total = torch.zeros(group.width, dtype=torch.float64)
        for member in deciding(graph, group, self.residual):
            if member.tensor in weights:
                total += per_channel(graph, group, member, weights[member.tensor], absolute=True)
        return total


def _zero_inputs_(graph: ChannelGraph, group: ChannelGroup, gone: Tensor, weights: dict[str, Tensor]) -> None:
    """Zero, in place, the kernels that read removed channels."""
    removed = set(group.channels[gone.numpy()].tolist())
    dead = torch.zeros(int(graph.component.max(initial=0)) + 1, dtype=torch.bool)
    dead[list(removed)] = True
    for member in group.members:
        if member.role == "in" and member.tensor in weights:
            for varying, numbers in graph.components_along(member.tensor):
                if max(varying, default=-1) == member.axis:
                    weights[member.tensor].masked_fill_(
                        dead[torch.from_numpy(numbers)].expand_as(weights[member.tensor]), 0.0
                    )
