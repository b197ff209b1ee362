"""Wanda: weights go that are small, or that read little.

Source: Sun, Liu, Bair, Kolter, "A Simple and Effective Pruning Approach for Large Language Models", ICLR 2024,
arXiv:2306.11695.

Claim: in a transformer some inputs of a layer are a hundred times as large as others, so a weight matters by its
magnitude times the norm of what it reads, compared within each output; nothing has to be re-fitted.

Equation: S_ij = |W_ij| * ||X_j||_2, with X_j input j of the layer over all samples and positions; in each row i the
weights with the lowest S go, or, of each M consecutive ones, all but the N highest.

Cost: two passes over the data for each stage at most (see `together`), O(columns) memory for each layer. No gradients.

Use it when a model is too large to be trained on afterwards and a few unlabelled samples are at hand; it takes seconds
where SparseGPT takes minutes, and loses little against it up to half of the weights.

Where we differ, and why:

- Any architecture, not only linear layers of transformers: a convolution is unfolded, so that each tap of an input
  channel has a norm of its own.
- The paper calibrates the layers of a transformer's block together, on inputs that blocks before it, already pruned,
  give. So does this; layers outside such blocks are calibrated one by one, which costs a pass each and is exact.
- Where inputs are never anything but zero, their weights go first, the smallest first: the paper leaves ties open.
- Where the budget is no whole number of weights for each row, the rows whose next weight scores lowest lose one more.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from ..recovery.moments import Sampling
from ..weight_plan import WeightPlan
from ._calibrate import Calibration, Place, check_front_to_back, laid_out_like
from ._weight_choice import Scope, flat_mask, pattern_mask, row_mask
from ._weights import Pattern, Weight, WeightDecision, WeightProblem


def wanda_scores(kernel: Tensor, input_norm: Tensor) -> Tensor:
    """Score each weight by its magnitude times the norm of its input; higher = keep.

    Source: Sun et al. 2024, section 3, equation 1.

    Args:
        kernel: (groups, outputs, columns).
        input_norm: (groups, columns), >= 0.

    Returns:
        (groups, outputs, columns), >= 0, in the kernel's dtype, float32 at least.

    >>> wanda_scores(torch.tensor([[[4.0, -1.0]]]), torch.tensor([[1.0, 3.0]])).tolist()
    [[[4.0, 3.0]]]
    """
    kind = torch.promote_types(kernel.dtype, torch.float32)
    least = float(input_norm.max()) * 1e-12 or 1.0  # a dead input's weights are ranked by magnitude, below all others
    return kernel.to(kind).abs() * input_norm.clamp(min=least).to(kind)[:, None]


@dataclass(frozen=True)
class Wanda:
    """Remove the weights with the smallest product of magnitude and input norm.

    Attributes:
        scope: what competes: "row" (the paper: the weights of one output), "layer", or {parameter: relative fraction to
            remove}, whose rows compete each for itself.
        together: which layers are calibrated on one pass over the data, all on the inputs that what runs before them
            gives once it is pruned: "block" (the paper: those of a transformer's block; others one by one), "layer"
            (one by one: as many passes as layers), "model" (all at once, on the original's activations).
        rows_per_sample: positions read of each sample, drawn at random; None = all, as the paper.
        max_samples: samples read at most, in whole batches; None = all. The paper's 128 are sequences.

    Raises:
        MethodError: a setting makes no sense.
    """

    scope: Scope = "row"
    together: str = "block"
    rows_per_sample: int | None = None
    max_samples: int | None = 128

    def __post_init__(self) -> None:
        check_front_to_back(self.scope, self.together, ("row", "layer"))
        self._sampling()

    def _sampling(self, seed: int = 0) -> Sampling:
        return Sampling(self.rows_per_sample, self.max_samples, seed)

    def choose(self, problem: WeightProblem) -> WeightDecision:
        """Go through the layers front to back; reads weights and unlabelled data.

        Raises:
            BudgetError: the budget is not reachable.
            MethodError: no data or task, a layer's inputs are not finite, or its inputs do not fit the pattern.
            NothingToPrune: no weight is free to go.
            TrainingError: the data give no batch, or do not reach a layer.
            UnknownName: `scope` names a parameter that there is not.
        """
        run = Calibration(problem, "wanda", self.together, self._sampling(problem.seed))
        counts = run.counts(self.scope)
        scores: dict[str, Tensor] = {}
        kept = {w.name: torch.ones(w.tensor.shape, dtype=torch.bool) for w in run.weights}
        for stage, sites in run.stages(counts):
            sums = run.sums(sites, _Squares)
            for weight in stage:
                scores[weight.name] = _scores_of(weight, sums[weight.name])
                mask = self._mask(weight, scores[weight.name], counts[weight.name], problem.pattern)
                weight.tensor.detach().masked_fill_(~mask, 0.0)
                kept[weight.name] = mask
        return WeightDecision(WeightPlan(kept), scores=scores)

    def _mask(self, weight: Weight, scores: Tensor, count: int, pattern: Pattern | None) -> Tensor:
        if pattern is not None:
            return pattern_mask(weight, scores, pattern)
        return (flat_mask if self.scope == "layer" else row_mask)(weight, scores, count)


class _Squares:
    """Sum of squares of each column."""

    def __init__(self) -> None:
        self.total = torch.zeros(())

    def add(self, inputs: Tensor) -> None:
        self.total = self.total.to(inputs) + inputs.square().sum(dim=1)


def _scores_of(weight: Weight, sums: Mapping[Place, _Squares]) -> Tensor:
    """Return scores in the parameter's shape; weights that no product reads keep the score 0."""
    kind = torch.promote_types(weight.tensor.dtype, torch.float32)
    scores = laid_out_like(weight.tensor, kind, 0.0)
    for place, squares in sums.items():
        place.write_(scores, wanda_scores(place.kernel(weight.tensor), squares.total.sqrt()))
    return scores
