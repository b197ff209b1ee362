"""Filter pruning via geometric median (FPGM): filters that lie amid the others go, whatever their norm.

Source: He, Liu, Wang, Hu, Yang, "Filter Pruning via Geometric Median for Deep Convolutional Neural Networks
Acceleration", CVPR 2019, arXiv:1811.00250, section 3.3.

Claim: a filter close to the geometric median of its layer can be stood in for by the filters around it, so it is the
most replaceable one, also where no filter has a small norm.

Equation: score(j) = sum over k of ||F[j] - F[k]||_2, where F[j] is filter j, the raw weights that make channel j
flattened into one vector, and k runs over all filters of the same group.

Cost: O(n^2 d) time and O(n d + n^2) memory in float64 for n channels of d weights each, group by group. No data.

Use it when the norms of a layer's filters are all alike or none is small, so that a norm says little; it costs no data.

Where we differ, and why:

- The paper zeroes the chosen filters after every epoch of training and lets them grow back; here they are chosen once
  and cut, so that the criterion can be compared with others under the same recipe.
- The paper's mixed runs take a part by small norm first. ``remove_by_norm`` does so; the distances are then those among
  the filters that this part leaves, as in the authors' code. The default is none, as in the authors' main runs.
- Channels that several weights make are points in the space of all of these weights laid side by side; the paper has
  one filter per channel.
- A sum of distances grows with the width and the filter size of a layer, so ``allocation="global"`` favours wide
  layers; the paper takes the same fraction of each layer, and so does the default.
- Residual streams are treated as in `L1Filter`, so that both cut the same layers.
- A filter of zeros need not be near the median, so it does not go first by itself.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import MethodError
from ._filters import filter_rows
from ._problem import Decision, Problem
from ._scores import Allocation, eligible, lowest, plan_from_scores


def fpgm_scores(filters: Tensor) -> Tensor:
    """Score each filter by the sum of its Euclidean distances to all filters; higher = keep.

    Source: He et al. 2019, section 3.3, equations 4 to 6: the filter that is nearest to the geometric median is the one
    with the smallest sum.

    Args:
        filters: (channels, weights), flattened and raw: w and -w are far apart.

    Returns:
        (channels,), >= 0, in the weights' own unit.

    >>> fpgm_scores(torch.tensor([[0.0], [1.0], [10.0]])).tolist()
    [11.0, 10.0, 19.0]
    """
    return torch.cdist(filters, filters).sum(dim=1)


def norm_then_distance_scores(filters: Tensor, remove_by_norm: float) -> Tensor:
    """Rank the filters of smallest norm below all others, and these by their distances among themselves.

    Source: the mixed runs of He et al. 2019, section 4.

    Args:
        filters: (channels, weights).
        remove_by_norm: fraction of the channels that go by norm before any goes by distance, in [0, 1).

    Returns:
        (channels,): norm minus the largest norm (<= 0) for the first part, the sum of distances (>= 0) for the rest.

    >>> norm_then_distance_scores(torch.tensor([[0.0], [1.0], [10.0], [12.0]]), remove_by_norm=0.25).tolist()
    [-12.0, 20.0, 11.0, 13.0]
    """
    norms: Tensor = torch.linalg.vector_norm(filters, 2, dim=1)
    small = lowest(norms, math.floor(remove_by_norm * len(filters) + 1e-9))
    is_large = torch.ones(len(filters), dtype=torch.bool, device=filters.device)
    is_large[small] = False
    scores = norms - norms.max()
    scores[is_large] = fpgm_scores(filters[is_large])
    return scores


@dataclass(frozen=True)
class Fpgm:
    """Remove the filters nearest to the geometric median of their group.

    Attributes:
        remove_by_norm: fraction of each group's channels that go for their small L2 norm before any goes for its
            distances, in [0, 1); 0 = distances alone.
        allocation: "uniform" (the paper), "global" or {module path: relative fraction}.
        residual: "projection", "skip" or "prune": what happens to residual streams, as in `L1Filter`.

    Raises:
        MethodError: `remove_by_norm` is not a fraction below 1.
    """

    remove_by_norm: float = 0.0
    allocation: Allocation = "uniform"
    residual: str = "projection"

    def __post_init__(self) -> None:
        if not 0 <= self.remove_by_norm < 1:
            raise MethodError(
                f"remove_by_norm={self.remove_by_norm!r}: expected a fraction in [0, 1), e.g. 0.1 for 10 % of a "
                "group's channels."
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
        scores = {name: self._scores(problem, name) for name in names}
        return Decision(plan_from_scores(problem, scores, self.allocation), scores=scores)

    def _scores(self, problem: Problem, name: str) -> Tensor:
        return norm_then_distance_scores(filter_rows(problem, name, self.residual), self.remove_by_norm).cpu()
