"""Correlated filters: of two filters that say the same, one goes, after training has made them say it even more alike.

Source: Singh, Verma, Rai, Namboodiri, "Leveraging Filter Correlations for Deep Model Compression", WACV 2020,
arXiv:1811.10559.

Claim: filters that are strongly correlated with each other are redundant in pairs, and a short optimisation that raises
their correlation before one of each pair goes makes the loss smaller than removing filters for their own sake.

Equation: r_ab = cov(w_a, w_b) / (std(w_a) std(w_b)) for filters a, b of one layer, flattened; an episode S holds the
pairs with the largest |r|, no filter twice; training minimises L + lambda * exp(-mean of |r_ab| over S), with L the
task's loss; then the filter with the smaller L1 norm goes from each pair of S.

Cost: per episode `epochs` + `finetune_epochs` of training on the data, with 1 / `step` episodes for a whole group; the
correlations of n filters of d weights take O(n^2 d) time and O(n^2) memory per group and episode.

Use it when there are labelled data and time to train while pruning. It looks for redundancy, not for small weights, so
it differs most from norms in wide layers with near-copies.

Where we differ, and why:

- The paper leaves open how many pairs go at a time and how long each episode trains; `step`, `epochs`,
  `finetune_epochs`, `lr`, `momentum` and `weight_decay` are our choices, and so is the smaller L1 norm as what decides
  within a pair.
- Channels that several weights make (residual streams, gated units, heads) are compared by one joint vector, since they
  can only go together.
- The budget is met exactly: how many filters of each group go is settled first, and an episode never takes more of a
  group than `step` of it, nor more than half of what is left.
- A filter of zeros has no correlation, and adds nothing but a constant: such filters go before any pair. Other constant
  filters count as uncorrelated.
- ``compensate=True`` is our addition: before filter b of a pair goes, the straight line that predicts its channel from
  that of a, fitted on the data where the next layers read both, is folded into those layers' weights and biases.
- Removed channels stay in the working copy as zeros until the end. Where they enter a LayerNorm, training therefore
  sees statistics with these zeros, and the cut takes them out.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..plan import Plan
from ..surgery.shrink import clone
from ..train.attachment import Attachment, Moment
from ..train.randomness import epoch_seed
from ..train.schedules import Recipe
from ._compensate import compensated
from ._filters import JointFilters
from ._problem import Decision, Problem
from ._scores import Allocation, counts_for, eligible
from ._settings import check_settings
from ._training import HeldAtZero, blamed, train_, training_data

log = logging.getLogger(__name__)
Pair = tuple[int, int]


def standardised(filters: Tensor) -> Tensor:
    """Return each row less its mean and divided by its length; rows of equal numbers become zeros.

    >>> standardised(torch.tensor([[1.0, 3.0, 1.0, 3.0], [7.0, 7.0, 7.0, 7.0]])).tolist()
    [[-0.5, 0.5, -0.5, 0.5], [0.0, 0.0, 0.0, 0.0]]
    """
    centred = filters - filters.mean(dim=1, keepdim=True)
    length = torch.linalg.vector_norm(centred, dim=1, keepdim=True)
    # A constant row differs from its own mean by rounding only, and that must not count as a pattern.
    is_constant = length <= 32 * torch.finfo(filters.dtype).eps * torch.linalg.vector_norm(filters, dim=1, keepdim=True)
    return torch.where(is_constant, 0.0, centred / torch.where(is_constant, 1.0, length))


def correlations(filters: Tensor) -> Tensor:
    """Return the Pearson correlation of every two filters; 0 with a constant filter.

    Source: Singh et al. 2020, section 3.

    Args:
        filters: (filters, weights), each row a flattened filter.

    Returns:
        (filters, filters), in [-1, 1].

    >>> correlations(torch.tensor([[1.0, 2.0, 4.0], [5.0, 7.0, 11.0], [-1.0, -2.0, -4.0]]))[0].tolist()
    [1.0, 1.0, -1.0]
    """
    rows = standardised(filters)
    return (rows @ rows.T).clamp(-1, 1)


def strongest_pairs(strength: Tensor, candidates: Sequence[int], count: int) -> list[Pair]:
    """Choose disjoint pairs greedily: the strongest of all, then the strongest without these two, and so on.

    Args:
        strength: (n, n) symmetric; larger = closer.
        candidates: which of the n may be paired.
        count: how many pairs, at most half of the candidates.

    Returns:
        (a, b) with a < b, strongest first; of equals the lower indices first.

    >>> strongest_pairs(torch.tensor([[0., 9., 8.], [9., 0., 1.], [8., 1., 0.]]), [0, 1, 2], 1)
    [(0, 1)]
    """
    index = np.array(sorted(candidates))
    first, second = np.triu_indices(len(index), k=1)
    values = strength.detach().cpu().numpy()[index[first], index[second]]
    free, pairs = set(index.tolist()), list[Pair]()
    for k in np.argsort(-values, kind="stable"):
        if len(pairs) == count:
            break
        a, b = int(index[first[k]]), int(index[second[k]])
        if a in free and b in free:
            free -= {a, b}
            pairs.append((a, b))
    return pairs


def pair_penalty(filters: Mapping[str, Tensor], pairs: Mapping[str, Sequence[Pair]]) -> Tensor:
    """Return exp(-mean of |r| over all pairs of an episode), in [1/e, 1]; gradients raise the correlations.

    Source: Singh et al. 2020, section 3.

    Args:
        filters: group -> (filters, weights).
        pairs: group -> pairs of row numbers; at least one pair in all.
    """
    found = []
    for name, own in pairs.items():
        rows = standardised(filters[name])
        first, second = (torch.tensor(side, device=rows.device) for side in zip(*own, strict=True))
        found.append((rows[first] * rows[second]).sum(dim=1).abs())
    return torch.exp(-torch.cat(found).mean())


@dataclass(frozen=True)
class Cfp:
    """Remove one of each pair of correlated filters, in episodes of training and removing.

    Attributes:
        penalty: lambda, weight of the term that raises correlations, >= 0.
        step: largest fraction of a group that goes in one episode, in (0, 0.5]; at least one filter goes.
        epochs: passes over the data that raise the correlations of an episode's pairs; 0 = none.
        finetune_epochs: passes over the data after an episode's filters are gone; 0 = none.
        lr: learning rate of both, constant.
        momentum: of SGD.
        weight_decay: of SGD.
        compensate: fold what a filter that goes shares with the one that stays into the next layers. Ours.
        allocation: "uniform", "global" (the group of the closest pairs first) or {module path: relative fraction}.
        residual: "projection", "skip" or "prune": what happens to residual streams.

    Raises:
        MethodError: a number is out of range.
    """

    penalty: float = 1.0
    step: float = 0.1
    epochs: int = 2
    finetune_epochs: int = 1
    lr: float = 0.001
    momentum: float = 0.9
    weight_decay: float = 5e-4
    compensate: bool = False
    allocation: Allocation = "uniform"
    residual: str = "projection"

    def __post_init__(self) -> None:
        ranges = {
            "penalty": (0 <= self.penalty < math.inf, "a number >= 0"),
            "step": (0 < self.step <= 0.5, "a fraction in (0, 0.5]"),
            "epochs": (self.epochs >= 0, "a whole number >= 0"),
            "finetune_epochs": (self.finetune_epochs >= 0, "a whole number >= 0"),
            "lr": (0 < self.lr < math.inf, "a number > 0"),
            "momentum": (0 <= self.momentum < 1, "a number in [0, 1)"),
            "weight_decay": (0 <= self.weight_decay < math.inf, "a number >= 0"),
        }
        check_settings(self, ranges)

    def decide(self, problem: Problem) -> Decision:
        """Train, pair and remove until the budget is met; the decision holds the trained model at full width.

        The scores: of survivors 1 - |r| with their closest fellow, >= 0; of those that go in the last episode -|r| of
        their pair, and 1 less for each episode before it.

        Raises:
            BudgetError: the budget is not reachable.
            MethodError: no data, no task, or weights or activations are not finite real numbers.
            NothingToPrune: no group is free to go.
        """
        names = eligible(problem, self.residual)
        problem.check_weights(names)
        training_data(problem, "cfp")
        filters = {name: JointFilters.of(problem.graph, problem.graph.groups[name]) for name in names}
        closeness = {name: _distances(own.read(problem.model)) for name, own in filters.items()}
        kept = counts_for(problem, names, self.allocation, closeness)
        run = _Run(self, problem, filters, kept)
        while run.is_short:
            run.episode()
        return run.decision()

    def recipe(self, epochs: int, seed: int) -> Recipe:
        """Return how an episode trains."""
        return Recipe(
            epochs,
            self.lr,
            momentum=self.momentum,
            weight_decay=self.weight_decay,
            schedule="constant",
            seed=seed,
        )


class _Run:
    """The episodes of one decision, on one working copy."""

    def __init__(self, method: Cfp, problem: Problem, filters: Mapping[str, JointFilters], kept: Mapping[str, int]):
        self.method, self.problem, self.filters, self.kept = method, problem, filters, kept
        self.widths = {name: problem.graph.groups[name].width for name in filters}
        self.model = clone(problem.model)
        self.episode_count = 0
        self._gone: dict[str, dict[int, tuple[int, float]]] = {n: {} for n in filters}  # filter -> (episode, |r|)

    @property
    def plan(self) -> Plan:
        """What is gone so far."""
        return Plan.from_removed(self._gone, self.widths)

    @property
    def is_short(self) -> bool:
        """Whether filters still have to go."""
        return any(self._missing(name) for name in self.filters)

    def _missing(self, name: str) -> int:
        return self.widths[name] - len(self._gone[name]) - self.kept[name]

    def _left(self, name: str) -> list[int]:
        return [i for i in range(self.widths[name]) if i not in self._gone[name]]

    def episode(self) -> None:
        """Choose pairs, train them together, remove one of each, and train what is left."""
        self.episode_count += 1
        choices = {name: self._choose(name) for name in self.filters if self._missing(name)}
        pairs = {name: choice.pairs for name, choice in choices.items() if choice.pairs}
        if pairs:
            self._train(self.method.epochs, _PulledTogether(self.method.penalty, self.filters, pairs))
        pairs = {name: _weaker_last(self.filters[name].read(self.model), own) for name, own in pairs.items()}
        if self.method.compensate:
            self._compensate(choices, pairs)
        for name, choice in choices.items():
            self._gone[name].update((i, (self.episode_count, 1.0)) for i in choice.zeros)
            taken = pairs.get(name, ())
            self._gone[name].update((b, (self.episode_count, choice.strength[a, b].item())) for a, b in taken)
        log.info("episode %d: %d filters are gone", self.episode_count, self.plan.removed_count)
        HeldAtZero(self.model, self.problem.graph, self.plan).apply_()
        self._train(self.method.finetune_epochs)

    def _choose(self, name: str) -> _Choice:
        """Return what goes in this episode: filters of zeros, then one of each of the closest pairs."""
        filters = self.filters[name].read(self.model).detach().double()
        left = self._left(name)
        zeros = [i for i in left if not filters[i].any()]
        count = min(self._missing(name), max(1, math.floor(self.method.step * self.widths[name])))
        gone = zeros[:count]
        others = [i for i in left if i not in set(zeros)]
        strength = correlations(filters).abs()
        return _Choice(gone, strongest_pairs(strength, others, min(count - len(gone), len(others) // 2)), strength)

    def _compensate(self, choices: Mapping[str, _Choice], pairs: Mapping[str, list[Pair]]) -> None:
        data, task = training_data(self.problem, "cfp")
        every = {}
        for name, choice in choices.items():
            going = {*choice.zeros, *(b for _, b in pairs.get(name, ()))}
            stays = next(i for i in self._left(name) if i not in going)  # any will do: a constant follows from nothing
            every[name] = [(stays, i) for i in choice.zeros] + pairs.get(name, [])
        with blamed("cfp", self.problem):
            self.model = compensated(self.model, self.problem.graph, every, data, task)

    def _train(self, epochs: int, *attachments: Attachment) -> None:
        if epochs:
            seed = epoch_seed(self.problem.seed, self.episode_count)
            held = HeldAtZero(self.model, self.problem.graph, self.plan)
            train_("cfp", self.model, self.problem, self.method.recipe(epochs, seed), [*attachments, held])

    def decision(self) -> Decision:
        """Return plan, scores and, if anything was trained, the working copy."""
        scores = {name: self._scores(name) for name in self.filters}
        method = self.method
        is_new = self.episode_count and (method.epochs or method.finetune_epochs or method.compensate)
        return Decision(self.plan, self.model if is_new else None, scores)

    def _scores(self, name: str) -> Tensor:
        filters, left = self.filters[name].read(self.model).detach().double().cpu(), self._left(name)
        scores = torch.zeros(self.widths[name], dtype=torch.float64)
        scores[left] = _distances(filters[left])
        for i, (episode, strength) in self._gone[name].items():
            scores[i] = -strength - (self.episode_count - episode)
        return scores


class _Choice(NamedTuple):
    zeros: list[int]
    pairs: list[Pair]
    strength: Tensor


class _PulledTogether(Attachment):
    """Adds lambda * exp(-mean |r|) of an episode's pairs to the loss."""

    def __init__(self, penalty: float, filters: Mapping[str, JointFilters], pairs: Mapping[str, list[Pair]]) -> None:
        self._penalty, self._filters, self._pairs = penalty, filters, pairs

    def extra_loss(self, moment: Moment) -> Tensor:
        """Return the penalty of the pairs as they are now."""
        filters = {name: self._filters[name].read(moment.model) for name in self._pairs}
        return self._penalty * pair_penalty(filters, self._pairs)


def _distances(filters: Tensor) -> Tensor:
    """Return (filters,) 1 - |r| with the closest other filter, in [0, 1]; -1 for a filter of zeros."""
    filters = filters.detach().double().cpu()
    closest = correlations(filters).abs().fill_diagonal_(0.0).amax(dim=1)
    return torch.where(filters.any(dim=1), 1 - closest, -1.0)


def _weaker_last(filters: Tensor, pairs: Sequence[Pair]) -> list[Pair]:
    """Return (stays, goes) of each pair: the smaller L1 norm goes, of equals the second."""
    norms = filters.detach().abs().sum(dim=1)
    return [(a, b) if norms[a] >= norms[b] else (b, a) for a, b in pairs]
