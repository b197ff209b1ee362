"""LAMP: the magnitude of a weight against that of all larger ones of its layer, ranked over all layers.

Source: Lee, Park, Mo, Ahn, Shin, "Layer-adaptive Sparsity for the Magnitude-based Pruning", ICLR 2021,
arXiv:2010.07611, section 3.

Claim: magnitudes scaled so that they bound what removing a weight does to the output of the whole network can be
ranked over all layers: they give each layer its share without a hyper-parameter.

Equation: score(u) = W[u]^2 / (sum over v >= u of W[v]^2), with a layer's weights numbered by growing magnitude.

Cost: O(P log P) time for P weights (each layer is sorted), and a copy of all scores in float64. No data.

Use it when you want magnitude pruning of many layers at once, at budgets where a global ranking of bare magnitudes
would starve some of them.

Where we differ, and why:

- Of weights of equal magnitude the first in memory counts as the smaller one, so that a count is exact; the paper
  leaves it open.
- Weights that are exactly zero score 0, also in a layer of nothing else, where the paper's score is 0 / 0. Such a layer
  keeps one weight for each output, with a warning. No other layer can be emptied: its largest weight scores 1.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ._weight_choice import choose
from ._weights import WeightDecision, WeightProblem


def lamp_scores(weight: Tensor) -> Tensor:
    """Score each weight by its share of the squares of those that are at least as large; higher = keep.

    Source: Lee et al. 2021, section 3.1, equation 5.

    Args:
        weight: of one layer, in any shape.

    Returns:
        In the same shape and float64, in [0, 1]; unchanged when the layer is scaled.

    >>> [round(score, 4) for score in lamp_scores(torch.tensor([3.0, -1.0, 2.0])).tolist()]
    [1.0, 0.0714, 0.3077]
    """
    magnitude = weight.detach().double().abs().flatten()
    largest = magnitude.max() if magnitude.numel() else magnitude.sum()
    squares = (magnitude / largest.clamp_min(torch.finfo(torch.float64).tiny)).square()
    order = magnitude.argsort(stable=True)
    rising = squares[order]
    at_least = rising.flip(0).cumsum(0).flip(0)
    scores = torch.zeros_like(squares)
    scores[order] = torch.where(rising > 0, rising / at_least, 0.0)
    return scores.reshape(weight.shape)


@dataclass(frozen=True)
class Lamp:
    """Remove the weights with the lowest LAMP scores of all layers; there is nothing to set."""

    def choose(self, problem: WeightProblem) -> WeightDecision:
        """Score and choose; reads weights only.

        Raises:
            BudgetError: the budget is not reachable.
            MethodError: weights are not finite real numbers.
            NothingToPrune: no weight is free to go.
        """
        weights = problem.weights()
        scores = {weight.name: lamp_scores(weight.tensor) for weight in weights}
        return WeightDecision(choose(problem, weights, scores, "global"), scores=scores)
