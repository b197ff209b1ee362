"""Random pruning: the control that no comparison may leave out.

Source: the control of Liu, Sun, Zhou, Huang, Darrell, "Rethinking the Value of Network Pruning", ICLR 2019,
arXiv:1810.05270, and of Blalock, Gonzalez Ortiz, Frankle, Guttag, "What is the State of Neural Network Pruning?", MLSys
2020, arXiv:2003.03033.

Claim: none. A method that does not beat a random draw of as many channels, under the same recipe, has chosen nothing.

Equation: score(j) ~ Uniform(0, 1), independently for every channel j; those with the lowest scores go.

Cost: O(C) time and memory for C channels. No data.

Use it when you compare methods, as the bar for all of them, with several seeds.

Where we differ, and why:

- The papers leave open how many go of each layer. Unless `allocation` says otherwise, every group loses the same
  fraction here, as with a filter method, so that only the choice within a group is left to chance.
- Residual streams are treated as in `L1Filter`, so that both cut the same layers.
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
