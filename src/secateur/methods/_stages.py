"""Part of the way to a weight plan: what methods that remove single weights in several stages share."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from ..budget import WEIGHTS, Budget
from ..weight_plan import WeightPlan
from ._weight_choice import Scope, choose, flat_mask, layer_counts, row_mask
from ._weights import Weight, WeightProblem


def choose_part(
    problem: WeightProblem, weights: Sequence[Weight], scores: Mapping[str, Tensor], *, scope: Scope, share: float
) -> WeightPlan:
    """Return a plan that removes a share of the weights that the problem's budget asks for, rounded down.

    On the same scores a larger share removes the same weights and more. With scope "layer" or "row", or a mapping,
    every layer goes the same share of its own way. With N:M blocks the lowest of those weights go that the whole
    pattern would remove.

    Args:
        problem: its budget, or its pattern, says how many go in the end.
        weights: the parameters that can lose some.
        scores: parameter -> score of each weight; higher = keep.
        scope: as in `choose`.
        share: 0 removes nothing, 1 all that has to go.

    Raises:
        BudgetError: more have to go in the end than can.
        MethodError: scores are NaN, or a layer's inputs do not fit the pattern.
        UnknownName: the scope names a parameter that there is not.
    """
    if share >= 1:
        return choose(problem, weights, scores, scope)
    if problem.pattern is not None:
        whole = choose(problem, weights, scores, scope)
        free = {name: own.masked_fill(whole.kept[name].to(own.device), torch.inf) for name, own in scores.items()}
        count = part_of(whole.removed_count, share)
        return choose(_removing(problem, weights, count), weights, free, "global")
    count = problem.removal_count(weights)
    if scope == "global":
        return choose(_removing(problem, weights, part_of(count, share)), weights, scores, scope)
    counts = layer_counts(weights, count, scope)
    pick = row_mask if scope == "row" else flat_mask
    return WeightPlan({w.name: pick(w, scores[w.name], part_of(counts[w.name], share)) for w in weights})


def part_of(count: int, share: float) -> int:
    """Return a share of a count, rounded down; what only rounding keeps below a whole number is that number.

    >>> part_of(10, 0.3), part_of(10, 0.1 + 0.2), part_of(3, 0.5)
    (3, 3, 1)
    """
    return min(math.floor(count * share + 1e-6), count)


def _removing(problem: WeightProblem, weights: Sequence[Weight], count: int) -> WeightProblem:
    whole = sum(weight.tensor.numel() for weight in weights)
    return replace(problem, pattern=None, budget=Budget(count / whole, WEIGHTS))
