"""L2-norm filter pruning: filters with a small Euclidean norm go.

Source: He, Kang, Dong, Fu, Yang, "Soft Filter Pruning for Accelerating Deep Convolutional Neural Networks", IJCAI
2018, arXiv:1808.06866, section 3.2; of that paper the criterion alone, used once.

Claim: a filter with a small L2 norm makes small activations, so it weighs least in what the network puts out.

Equation: score(j) = sqrt(sum over i of W[j, i]^2), where W[j] is filter j of a layer, flattened: all weights that make
channel j, over input channels and kernel places.

Cost: O(P) time for P parameters, and a temporary of the largest weight's size in float64. No data.

Use it when you want a second weight norm beside L1: one large weight counts for more here than several middling ones.
As L1 it is a reference to beat rather than a method to choose.

Where we differ, and why:

- The paper zeroes filters after every epoch of training and lets them grow back; here they are chosen once and cut, so
  that the criterion can be compared with others under the same recipe.
- Channels that several weights make (gate and up projection, query, key and value of a head) are scored by the norm
  over all of them; the paper has one filter per channel.
- Residual streams are treated as in `L1Filter`, so that both cut the same layers: without a 1x1 projection they stay
  whole, with one its filters decide. The paper zeroes filters of every layer, each on its own.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ._filters import deciding
from ._problem import Decision, Problem
from ._scores import Allocation, eligible, per_channel, plan_from_scores


def l2_filter_scores(weight: Tensor) -> Tensor:
    """Score each filter by its Euclidean norm; higher = keep.

    Source: He et al. 2018, section 3.2, equation 2 with p = 2.

    Args:
        weight: (out_channels, in_channels, kernel_h, kernel_w), or any tensor whose first axis is the filters.

    Returns:
        (out_channels,), >= 0, in the weight's own unit and dtype.

    >>> l2_filter_scores(torch.tensor([[[[3.0, -4.0]]], [[[0.0, 2.0]]]])).tolist()
    [5.0, 2.0]
    """
    norms: Tensor = torch.linalg.vector_norm(weight.flatten(start_dim=1), 2, dim=1)
    return norms


@dataclass(frozen=True)
class L2Filter:
    """Remove the filters with the smallest L2 norm.

    Attributes:
        allocation: "uniform" (the paper), "global" or {module path: relative fraction}.
        residual: "projection", "skip" or "prune": what happens to residual streams, as in `L1Filter`.
    """

    allocation: Allocation = "uniform"
    residual: str = "projection"

    def decide(self, problem: Problem) -> Decision:
        """Score and choose; reads weights only.

        Raises:
            BudgetError: the budget is not reachable.
            MethodError: weights are not finite real numbers.
            NothingToPrune: no group is free to go.
        """
        names = eligible(problem, self.residual)
        problem.check_weights(names)
        scores = {name: self._scores(problem, name) for name in names}
        return Decision(plan_from_scores(problem, scores, self.allocation), scores=scores)

    def _scores(self, problem: Problem, name: str) -> Tensor:
        graph, group = problem.graph, problem.graph.groups[name]
        parameters = dict(problem.model.named_parameters())
        squares = torch.zeros(group.width, dtype=torch.float64)
        for member in deciding(graph, group, self.residual):
            if member.tensor in parameters:
                weight = parameters[member.tensor].detach()
                squares += per_channel(graph, group, member, weight.double().square())
        return squares.sqrt()
