"""Random pruning: the control that no comparison may leave out.

Every group loses the same fraction, as a filter method with uniform allocation would take, but which channels go is
drawn at random. Under one fixed recipe this beats several published methods, so it is the bar.

Source: the control of Liu et al. 2019, "Rethinking the Value of Network Pruning", arXiv:1810.05270, and of Blalock et
al. 2020, "What is the State of Neural Network Pruning?", arXiv:2003.03033. Where we differ: none; both leave the draw
open.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ._problem import Decision, Problem
from ._scores import Allocation, eligible, plan_from_scores


@dataclass(frozen=True)
class Random:
    """Remove channels drawn at random.

    Attributes:
        allocation: how much of each group; see `secateur.methods._scores.counts_for`. "global" draws over all groups.
        residual: what to do with residual streams, as in `L1Filter`, so that both cut the same layers.
    """

    allocation: Allocation = "uniform"
    residual: str = "projection"

    def decide(self, problem: Problem) -> Decision:
        """Draw a score for every channel from the problem's seed.

        Raises:
            BudgetError: the budget is not reachable.
            NothingToPrune: no group is free to go.
        """
        names = eligible(problem, self.residual)
        problem.check_weights(names)
        generator = torch.Generator().manual_seed(problem.seed)
        scores = {n: torch.rand(problem.graph.groups[n].width, generator=generator, dtype=torch.float64) for n in names}
        return Decision(plan_from_scores(problem, scores, self.allocation), scores=scores)
