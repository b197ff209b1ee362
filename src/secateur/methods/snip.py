"""SNIP: single-shot pruning by how much the loss feels each connection.

Source: Lee, Ajanthan, Torr, "SNIP: Single-shot Network Pruning based on Connection Sensitivity", ICLR 2019,
arXiv:1810.02340, section 4.

Claim: one batch at initialisation tells which connections a task needs, so that a network can be pruned once, before
it is trained, and then trained as usual.

Equation: score(j) = |g_j| / (sum over all k of |g_k|), g_j = dL/dc_j at c = 1 = w_j dL/dw_j, where c_j switches the
connection j on and off and L is the mean loss of a batch.

Cost: one forward and one backward pass for each batch, one by default; a copy of the model and one gradient for each
weight. Half-precision models are copied to float32. With start="variance_scaling" another copy, which is returned.

Use it when you want a sparse network before training it, and compare it with random weights under the same layer
shares. On a trained network magnitude is usually the better choice: its gradients are near zero.

Where we differ, and why:

- The paper prunes at initialisation, with variance scaling (weights of variance 1 / inputs, biases 0). Here the weights
  given are scored, trained or not, since pruning a trained model must not throw its training away unasked: build a
  model, prune it, then train it, and this is the paper's method. start="variance_scaling" draws all weights of a copy
  anew, scores these, and returns that copy, to be trained from the beginning.
- The authors' code removes biases too. Here they stay, as in every method that removes single weights.
- Several batches can be read; their gradients are averaged before |.|, as if they were one batch.
- Norms use the statistics of the batch, as in training; dropout is off, so that the score has no noise of its own.
- Weights that are exactly zero go before any other, also before those whose gradient vanishes; both would score 0. They
  are given -1.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from ..errors import MethodError
from ._fresh import variance_scaled
from ._gradients import Gradients, each_gradient
from ._settings import check_settings
from ._weight_choice import Scope, check_scope, choose, zeros_lowest
from ._weights import Weight, WeightDecision, WeightProblem


def connection_sensitivity(weight: Tensor, gradient: Tensor) -> Tensor:
    """Return |dL/dc| = |w dL/dw| for each weight; higher = keep.

    Source: Lee et al. 2019, section 4.1, equations 4 and 5, before normalisation.

    Args:
        weight: of any shape.
        gradient: dL/dw in the same shape.

    Returns:
        In the same shape and float64, >= 0, in the unit of the loss.

    >>> import torch
    >>> connection_sensitivity(torch.tensor([2.0, -1.0]), torch.tensor([0.5, 3.0])).tolist()
    [1.0, 3.0]
    """
    return (weight.detach().double() * gradient.double()).abs()


@dataclass(frozen=True)
class Snip:
    """Remove the connections that the loss of a batch feels least.

    Attributes:
        start: "given" scores the weights as they are; "variance_scaling" draws them anew, as the paper does, and the
            decision's model has these.
        batch_count: how many batches to read, the paper takes one; fewer if the data have fewer.
        norm_statistics: "batch" (as in training) or "running" (as in use).
        scope: what is ranked together: "global" (the paper), "layer", "row", or {parameter: relative fraction to
            remove}.
    """

    start: str = "given"
    batch_count: int = 1
    norm_statistics: str = "batch"
    scope: Scope = "global"

    def __post_init__(self) -> None:
        check_scope(self.scope)
        check_settings(
            self,
            {
                "start": (self.start in ("given", "variance_scaling"), "'given' or 'variance_scaling'"),
                "batch_count": (type(self.batch_count) is int and self.batch_count > 0, "a whole number >= 1"),
                "norm_statistics": (self.norm_statistics in ("batch", "running"), "'batch' or 'running'"),
            },
        )

    def choose(self, problem: WeightProblem) -> WeightDecision:
        """Score and choose; runs batches forward and backward on a copy of the model.

        Raises:
            BudgetError: the budget is not reachable.
            MethodError: no labelled data; weights, loss or gradients are not finite; no gradient reaches any weight.
            NothingToPrune: no weight is free to go.
        """
        fresh = None
        if self.start == "variance_scaling":
            fresh = variance_scaled(problem.model, problem.seed, "snip")
            problem = replace(problem, model=fresh)
        weights = problem.weights()
        scores = self._scores(problem, weights)
        return WeightDecision(choose(problem, weights, scores, self.scope), fresh, scores)

    def _scores(self, problem: WeightProblem, weights: Sequence[Weight]) -> dict[str, Tensor]:
        sums: dict[str, Tensor] = {}

        def see(gradients: Gradients) -> None:
            for name, (_, gradient) in gradients.items():
                sums[name] = sums[name] + gradient if name in sums else gradient

        each_gradient(
            problem,
            [weight.name for weight in weights],
            see,
            method="snip",
            batch_count=self.batch_count,
            batch_statistics=self.norm_statistics == "batch",
        )
        found = {weight.name: connection_sensitivity(weight.tensor, sums[weight.name]) for weight in weights}
        total = sum(float(scores.sum()) for scores in found.values())
        if total == 0:
            raise MethodError(
                "snip: the gradient of every weight that can go is zero on these batches, so nothing can be ranked. Is "
                "the task's loss that of this model, and are units of it alive?"
            )
        return {weight.name: zeros_lowest(weight.tensor, found[weight.name] / total) for weight in weights}
