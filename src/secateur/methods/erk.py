"""ERK: magnitude pruning with layer densities that follow from the layers' shapes.

Source: Evci, Gale, Menick, Castro, Elsen, "Rigging the Lottery: Making All Tickets Winners", ICML 2020,
arXiv:1911.11134, section 3 (Erdos-Renyi-Kernel); Uniform+: Gale, Elsen, Hooker, "The State of Sparsity in Deep Neural
Networks", 2019, arXiv:1902.09574. Both as baselines of magnitude pruning in Lee et al. 2021, arXiv:2010.07611.

Claim: layers with many weights for their number of inputs and outputs can lose a larger part than slim ones.

Equation: density(l) = min(1, e * (n + c + kh + kw) / (n c kh kw)) for n outputs, c inputs and a kernel of kh x kw, or
e * (n + c) / (n c) for a linear layer; e is such that the budget is met.

Cost: O(P) time for P weights and a copy of all scores. No data.

Use it when a global ranking of magnitudes would starve layers, or as the layer-wise shares of another criterion, by
`erk_scope`.

Where we differ, and why:

- The papers round each density; here the counts kept are the nearest whole numbers that meet the budget exactly, each
  within one weight of its density.
- A layer keeps at least one weight for each output, so that none is emptied. Densities are affected where e is below 1,
  which for usual networks is beyond 99 % removed.
- Uniform+ keeps the first convolution, not the first layer of a network without any, and at least 20 % of the last
  linear layer (of the last parameter where there is none).
- In the first paper the weights are drawn at random and grown while training; here the largest of a trained network
  stay, as in the third. `RandomWeights` with `erk_scope` draws them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from torch import nn

from ..budget import Budget
from ..errors import BudgetError, MethodError
from ..graph.walk import modules_of
from ._weight_choice import apportion, choose
from ._weights import Weight, WeightDecision, WeightProblem

DENSITIES = ("erk", "uniform_plus")
LAST_KEEPS = 0.2  # of the weights of the last layer, by Uniform+


def kept_counts(
    shares: Mapping[str, float], least: Mapping[str, int], most: Mapping[str, int], keep: int
) -> dict[str, int]:
    """Return how many weights each layer keeps, `keep` in all: in proportion to its share, within its bounds.

    Args:
        shares: layer -> what its count is proportional to.
        least: layer -> fewest.
        most: layer -> most.
        keep: of all layers together.

    >>> kept_counts({"a": 1.0, "b": 1.0, "c": 4.0}, {"a": 0, "b": 3, "c": 0}, {"a": 9, "b": 9, "c": 5}, keep=10)
    {'a': 2, 'b': 3, 'c': 5}

    Raises:
        BudgetError: the bounds do not allow `keep`.
    """
    fewest, whole = sum(least.values()), sum(most.values())
    if not fewest <= keep <= whole:
        raise BudgetError(
            f"{whole - keep:,} weights were asked to go; at most {whole - fewest:,} can where every layer keeps one for"
            " each output, and what its densities demand."
        )
    pinned: dict[str, int] = {}
    while True:
        free = {name: share for name, share in shares.items() if name not in pinned}
        counts = apportion(free, most, keep - sum(pinned.values()))
        below = [name for name, count in counts.items() if count < least[name]]
        if not below:
            return {name: pinned[name] if name in pinned else counts[name] for name in shares}
        pinned |= {name: least[name] for name in below}


def density_scope(problem: WeightProblem, weights: Sequence[Weight], densities: str) -> dict[str, float]:
    """Return parameter -> fraction to remove, of whole counts that meet the budget.

    Raises:
        BudgetError: the densities do not allow the budget.
    """
    sizes = {weight.name: weight.tensor.numel() for weight in weights}
    least = {weight.name: min(weight.row_count, sizes[weight.name]) for weight in weights}
    shares = {weight.name: float(sum(weight.tensor.shape)) for weight in weights}
    if densities == "uniform_plus":
        shares = {name: float(size) for name, size in sizes.items()}
        least |= _held_back(problem.model, weights)
    kept = kept_counts(shares, least, sizes, sum(sizes.values()) - problem.removal_count(weights))
    return {name: (size - kept[name]) / size for name, size in sizes.items()}


def _held_back(model: nn.Module, weights: Sequence[Weight]) -> dict[str, int]:
    """Return what Uniform+ keeps at least: all of the first convolution, 20 % of the last linear layer."""
    modules = modules_of(model)
    first = [w for w in weights if isinstance(modules.get(w.module), nn.Conv1d | nn.Conv2d | nn.Conv3d)][:1]
    last = [w for w in weights if isinstance(modules.get(w.module), nn.Linear)][-1:] or list(weights[-1:])
    held = {w.name: max(w.row_count, -int(-LAST_KEEPS * w.tensor.numel() // 1)) for w in last}
    return held | {w.name: w.tensor.numel() for w in first}


def erk_scope(
    model: nn.Module,
    budget: Budget,
    *,
    densities: str = "erk",
    protect: Iterable[str] = (),
    include: Iterable[str] = (),
) -> dict[str, float]:
    """Return parameter -> fraction to remove, to be the `scope` of any method that removes single weights.

    Args:
        model: nothing of it changes.
        budget: as `secateur.sparsify` takes it.
        densities: "erk" or "uniform_plus".
        protect: as `secateur.sparsify` takes it.
        include: as `secateur.sparsify` takes it.

    Raises:
        BudgetError: the densities do not allow the budget.
        MethodError: no such densities.
        NothingToPrune: no weight is free to go.
        UnknownName: no such module or parameter.

    >>> model = nn.Sequential(nn.Conv2d(2, 4, 3), nn.Linear(40, 20))
    >>> shares = erk_scope(model, Budget(remove=0.8, of="weights"))
    >>> {name: round(share, 3) for name, share in shares.items()}
    {'0.weight': 0.597, '1.weight': 0.819}
    """
    _check(densities)
    problem = WeightProblem(model, budget, protect=tuple(protect), include=tuple(include))
    return density_scope(problem, problem.weights(blank=True), densities)


@dataclass(frozen=True)
class Erk:
    """Remove the smallest weights of each layer, as many as its shape says.

    Attributes:
        densities: "erk", or "uniform_plus": every layer the same, but the first convolution whole and the last linear
            layer at 20 % or more.
    """

    densities: str = "erk"

    def __post_init__(self) -> None:
        _check(self.densities)

    def choose(self, problem: WeightProblem) -> WeightDecision:
        """Score and choose; reads weights only. A pattern says for itself how much of each layer goes.

        Raises:
            BudgetError: the budget is not reachable with these densities.
            MethodError: weights are not finite real numbers.
            NothingToPrune: no weight is free to go.
        """
        weights = problem.weights()
        scores = {weight.name: weight.tensor.detach().abs() for weight in weights}
        scope = "layer" if problem.pattern is not None else density_scope(problem, weights, self.densities)
        return WeightDecision(choose(problem, weights, scores, scope), scores=scores)


def _check(densities: str) -> None:
    if densities not in DENSITIES:
        raise MethodError(f"densities={densities!r}: expected 'erk' or 'uniform_plus'.")
