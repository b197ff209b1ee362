"""Random weights: the control that no comparison of unstructured methods may leave out.

Source: the control of Frankle, Carbin, "The Lottery Ticket Hypothesis: Finding Sparse, Trainable Neural Networks", ICLR
2019, arXiv:1803.03635, and of Blalock, Gonzalez Ortiz, Frankle, Guttag, "What is the State of Neural Network Pruning?",
MLSys 2020, arXiv:2003.03033.

Claim: none. A criterion that does not beat a random draw of as many weights, under the same recipe, has chosen nothing.

Equation: score(w) ~ Uniform(0, 1), independently for every weight; those with the lowest scores go.

Cost: O(P) time and memory for P weights. No data.

Use it when you compare methods, as the bar for all of them, with several seeds.

Where we differ, and why:

- The papers leave open how many go of each layer. Unless `scope` says otherwise, every layer loses the same fraction,
  so that only the choice within a layer is left to chance.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ._weight_choice import Scope, check_scope, choose
from ._weights import WeightDecision, WeightProblem


@dataclass(frozen=True)
class RandomWeights:
    """Remove weights drawn at random.

    Attributes:
        scope: what competes: "layer" (each loses the same fraction), "global", "row", or {parameter: relative fraction
            to remove}.
    """

    scope: Scope = "layer"

    def __post_init__(self) -> None:
        check_scope(self.scope)

    def choose(self, problem: WeightProblem) -> WeightDecision:
        """Draw a score for every weight from the problem's seed.

        Raises:
            BudgetError: the budget is not reachable.
            MethodError: weights are not finite real numbers.
            NothingToPrune: no weight is free to go.
        """
        weights = problem.weights(blank=True)
        generator = torch.Generator().manual_seed(problem.seed)
        scores = {w.name: torch.rand(w.tensor.shape, generator=generator, dtype=torch.float64) for w in weights}
        return WeightDecision(choose(problem, weights, scores, self.scope), scores=scores)
