"""Magnitude pruning: small weights go.

Source: Han, Pool, Tran, Dally, "Learning both Weights and Connections for Efficient Neural Networks", NeurIPS 2015,
arXiv:1506.02626; global ranking: Blalock, Gonzalez Ortiz, Frankle, Guttag, "What is the State of Neural Network
Pruning?", MLSys 2020, arXiv:2003.03033.

Claim: most weights of a trained network are redundant; those near zero can go, and the others make up for it when
they are trained on from the values they have.

Equation: score(w) = |w|. Han's rule: w of layer l goes where |w| < q_l * std(W_l), q_l its quality factor.

Cost: O(P) time for P weights and, for the global ranking, a copy of all scores. No data.

Use it when you want the reference that any other criterion for single weights has to beat; with fine-tuning or a
gradual schedule it is hard to beat.

Where we differ, and why:

- Han chooses q_l by hand; here the one factor that all layers share, times `quality`, is found so that the budget is
  met exactly, which makes scores |w| / (quality_l * std(W_l)) ranked over all layers.
- Han removes and retrains in several rounds; here one round is left to `secateur.finetune`, several are
  ``LotteryTicket(retrain="finetune")``. Dropout stays as it is, where Han makes it smaller with each round.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..errors import MethodError, UnknownName
from ._weight_choice import Scope, check_scope, choose
from ._weights import Weight, WeightDecision, WeightProblem


@dataclass(frozen=True)
class Magnitude:
    """Remove the weights with the smallest absolute values.

    Attributes:
        scope: what is ranked together: "global" (the default: the best with one shot), "layer", "row", or {parameter:
            relative fraction to remove}.
        thresholds: "absolute" compares |w|; "std" compares |w| in standard deviations of its layer, Han's rule, and
            needs the global scope.
        quality: parameter -> Han's quality factor q_l, relative to the other layers' 1: 2 prunes up to twice as far
            out. From a sensitivity analysis, or by hand. Only with thresholds="std".
    """

    scope: Scope = "global"
    thresholds: str = "absolute"
    quality: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_scope(self.scope)
        if self.thresholds not in ("absolute", "std"):
            raise MethodError(f"thresholds={self.thresholds!r}: expected 'absolute' or 'std'.")
        if self.thresholds == "std" and self.scope != "global":
            raise MethodError(f"thresholds='std' ranks all layers together: scope={self.scope!r} has no use for it.")
        if self.quality and self.thresholds != "std":
            raise MethodError("quality= weighs Han's thresholds: it needs thresholds='std'.")
        for name, value in self.quality.items():
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < float("inf"):
                raise MethodError(f"quality[{name!r}]={value!r}: expected a factor above 0.")

    def choose(self, problem: WeightProblem) -> WeightDecision:
        """Score and choose; reads weights only.

        Raises:
            BudgetError: the budget is not reachable.
            MethodError: weights are not finite real numbers.
            NothingToPrune: no weight is free to go.
            UnknownName: `scope` or `quality` names a parameter that there is not.
        """
        weights = problem.weights()
        scores = self._scores(weights)
        return WeightDecision(choose(problem, weights, scores, self.scope), scores=scores)

    def _scores(self, weights: Sequence[Weight]) -> dict[str, Tensor]:
        if unknown := [name for name in self.quality if name not in {w.name for w in weights}]:
            raise UnknownName("parameter with weights to remove", unknown[0], [w.name for w in weights])
        scores = {weight.name: weight.tensor.detach().abs() for weight in weights}
        if self.thresholds == "absolute":
            return scores
        return {
            weight.name: _in_deviations(weight.tensor.detach(), scores[weight.name])
            / self.quality.get(weight.name, 1.0)
            for weight in weights
        }


def _in_deviations(weight: Tensor, magnitude: Tensor) -> Tensor:
    """Return |w| in standard deviations of its layer; a layer without any spread has none to spare."""
    spread = weight.double().std(correction=0)
    return magnitude.double() / spread if spread > 0 else torch.full_like(magnitude, float("inf"), dtype=torch.float64)
