"""From a score per weight to a weight plan that removes exactly as many as the budget says.

Ties fall by position, so a count is exact whatever the scores are. A layer that would lose every weight keeps the best
one of each output, with a warning, and the others make up for it.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from ..errors import BudgetError, MethodError, UnknownName
from ..weight_plan import WeightPlan
from ._weights import Pattern, Weight, WeightProblem

SCOPES = ("global", "layer", "row")
Scope = str | Mapping[str, float]


class LayerKeptAlive(UserWarning):
    """A layer would have lost every weight; it keeps one for each output."""


def check_scope(scope: Scope) -> None:
    """Raise `MethodError` unless the scope is one that `choose` knows."""
    if isinstance(scope, Mapping):
        for name, value in scope.items():
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
                raise MethodError(f"scope[{name!r}]={value!r}: expected the fraction of its weights to remove, 0 to 1.")
    elif scope not in SCOPES:
        raise MethodError(f"scope={scope!r}: expected {', '.join(SCOPES)} or {{parameter: fraction to remove}}.")


def choose(problem: WeightProblem, weights: Sequence[Weight], scores: Mapping[str, Tensor], scope: Scope) -> WeightPlan:
    """Return the plan that removes the weights with the lowest scores.

    Args:
        problem: its budget, or its pattern, says how many.
        weights: the parameters that can lose some.
        scores: parameter -> score of each weight, of the parameter's shape; higher = keep.
        scope: what competes: "global" all weights, "layer" those of a parameter (each loses the same fraction), "row"
            those of an output (likewise). {parameter: relative fraction} gives each its own share.

    Raises:
        BudgetError: more have to go than can.
        MethodError: scores are NaN, or a layer's inputs do not fit the pattern.
        UnknownName: the scope names a parameter that there is not.
    """
    for weight in weights:
        if bool(torch.isnan(scores[weight.name]).any()):
            raise MethodError(f"the scores of {weight.name!r} are NaN: its activations or gradients were not finite.")
    if problem.pattern is not None:
        return WeightPlan({w.name: pattern_mask(w, scores[w.name], problem.pattern) for w in weights})
    count = problem.removal_count(weights)
    if scope == "global":
        return WeightPlan(_global(weights, scores, count))
    counts = layer_counts(weights, count, scope)
    pick = row_mask if scope == "row" else flat_mask
    return WeightPlan({w.name: pick(w, scores[w.name], counts[w.name]) for w in weights})


def zeros_lowest(weight: Tensor, scores: Tensor) -> Tensor:
    """Return scores >= 0 with -1 for weights that are zero already, so that they go before any other.

    >>> zeros_lowest(torch.tensor([0.0, 2.0]), torch.tensor([0.0, 0.0])).tolist()
    [-1.0, 0.0]
    """
    return scores.masked_fill(weight.detach() == 0, -1.0)


def layer_counts(weights: Sequence[Weight], count: int, scope: Scope) -> dict[str, int]:
    """Return how many weights each parameter loses, `count` in all.

    A layer keeps at least one weight for each output; what it cannot lose, the others do.

    Raises:
        BudgetError: more have to go than can.
        UnknownName: the scope names a parameter that there is not.
    """
    sizes = {weight.name: weight.tensor.numel() for weight in weights}
    if isinstance(scope, Mapping):
        if unknown := [name for name in scope if name not in sizes]:
            raise UnknownName("parameter with weights to remove", unknown[0], sizes)
        shares = {name: float(scope.get(name, 0.0)) * size for name, size in sizes.items()}
    else:
        shares = {name: float(size) for name, size in sizes.items()}
    most = {weight.name: max(sizes[weight.name] - weight.row_count, 0) for weight in weights}
    return apportion(shares, most, count)


def apportion(shares: Mapping[str, float], most: Mapping[str, int], count: int) -> dict[str, int]:
    """Return whole numbers that add up to `count`, as near to the shares as the largest of each allows.

    Largest remainders get what rounding down leaves.

    >>> apportion({"a": 1.0, "b": 2.0}, {"a": 10, "b": 3}, 6)
    {'a': 3, 'b': 3}

    Raises:
        BudgetError: the largest do not add up to `count`.
    """
    reachable = sum(most[name] for name, share in shares.items() if share > 0)
    if count > reachable:
        raise BudgetError(
            f"{count:,} weights were asked to go; at most {reachable:,} can where every layer keeps one for each "
            "output and the scope names it."
        )
    given = {name: 0.0 for name in shares}
    open_names = [name for name, share in shares.items() if share > 0]
    left = float(count)
    while open_names and left > 0:
        factor = left / sum(shares[name] for name in open_names)
        full = [name for name in open_names if shares[name] * factor >= most[name]]
        for name in full or open_names:
            given[name] = float(most[name]) if full else shares[name] * factor
        left -= sum(given[name] for name in full or open_names)
        open_names = [name for name in open_names if name not in full] if full else []
    counts = {name: int(value + 1e-9) for name, value in given.items()}
    order = sorted(counts, key=lambda name: counts[name] - given[name])
    while (lack := count - sum(counts.values())) > 0:
        for name in [n for n in order if counts[n] < most[n] and shares[n] > 0][:lack]:
            counts[name] += 1
    return counts


def flat_mask(weight: Weight, scores: Tensor, count: int) -> Tensor:
    """Return the mask that removes the `count` lowest scores of a parameter."""
    return ~_lowest(scores.flatten(), count).reshape(scores.shape)


def row_mask(weight: Weight, scores: Tensor, count: int) -> Tensor:
    """Return the mask that removes the lowest scores of each output, as many of each, `count` in all.

    Where `count` is no multiple of the outputs, those whose next weight scores lowest lose one more.
    """
    rows = weight.rows(scores)
    each, more = divmod(count, rows.shape[0])
    order = rows.argsort(dim=1, stable=True)
    rank = torch.empty_like(order).scatter_(1, order, torch.arange(rows.shape[1], device=order.device).expand_as(order))
    removed = rank < each
    if more:
        following = rows.gather(1, order[:, each : each + 1]).squeeze(1)
        removed |= (rank == each) & _lowest(following, more).unsqueeze(1)
    return weight.from_rows(~removed)


def pattern_mask(weight: Weight, scores: Tensor, pattern: Pattern) -> Tensor:
    """Return the mask that keeps the N highest scores of every M consecutive inputs of an output.

    Raises:
        MethodError: the inputs are no multiple of M, and the pattern says to refuse that.
    """
    inputs, size = weight.input_count, pattern.of
    if inputs % size and pattern.uneven == "skip":
        return torch.ones_like(scores, dtype=torch.bool)
    if inputs % size and pattern.uneven == "refuse":
        raise MethodError(
            f"{weight.name!r} has {inputs} inputs, no multiple of {size}: protect it, or give "
            f"pattern=Pattern({pattern.keep}, {size}, uneven='skip') (--uneven skip), which leaves it whole, or 'pad', "
            "which takes its last block as if it went on with zeros."
        )
    taps = weight.rows(scores).unflatten(1, (-1, inputs))
    padded = torch.nn.functional.pad(taps, (0, -inputs % size), value=float("-inf"))
    blocks = padded.unflatten(-1, (-1, size))
    order = blocks.argsort(dim=-1, stable=True, descending=True)
    kept = torch.zeros_like(blocks, dtype=torch.bool).scatter_(-1, order[..., : pattern.keep], True)
    return weight.from_rows(kept.flatten(-2)[..., :inputs].flatten(1))


def _global(weights: Sequence[Weight], scores: Mapping[str, Tensor], count: int) -> dict[str, Tensor]:
    """Return masks that remove the `count` lowest scores of all; a layer that would be emptied keeps one a row."""
    guarded: set[str] = set()
    while True:
        held = {w.name: _best_of_rows(w, scores[w.name]) for w in weights if w.name in guarded}
        flat = [_held(scores[w.name].flatten(), held.get(w.name)) for w in weights]
        free = sum(f.numel() for f in flat) - sum(int(h.count_nonzero()) for h in held.values())
        if count > free:
            raise BudgetError(f"{count:,} weights were asked to go; at most {free:,} can go without emptying a layer.")
        kind = torch.float64 if any(f.dtype == torch.float64 for f in flat) else torch.float32
        removed = _lowest(torch.cat([f.to(kind) for f in flat]), count).split([f.numel() for f in flat])
        empty = {w.name for w, gone in zip(weights, removed, strict=True) if bool(gone.all())}
        if not empty:
            break
        guarded |= empty
    for name in sorted(guarded):
        warnings.warn(
            f"{name} would have lost every weight: it keeps the best one of each output, and others go in their place.",
            LayerKeptAlive,
            stacklevel=4,
        )
    return {w.name: ~gone.reshape(w.tensor.shape) for w, gone in zip(weights, removed, strict=True)}


def _best_of_rows(weight: Weight, scores: Tensor) -> Tensor:
    rows = weight.rows(scores)
    best = torch.zeros_like(rows, dtype=torch.bool).scatter_(1, rows.argmax(1, keepdim=True), True)
    return weight.from_rows(best)


def _held(flat: Tensor, held: Tensor | None) -> Tensor:
    return flat if held is None else flat.masked_fill(held.flatten(), float("inf"))


def _lowest(scores: Tensor, count: int) -> Tensor:
    """Return (n,) bool, True for the `count` lowest of (n,) scores; of equal ones the first go."""
    if count <= 0:
        return torch.zeros_like(scores, dtype=torch.bool)
    edge = scores.kthvalue(count).values
    removed = scores < edge
    tied = (scores == edge).nonzero().squeeze(1)
    removed[tied[: count - int(removed.count_nonzero())]] = True
    return removed
