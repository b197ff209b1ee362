"""AOFP: mask random halves of a layer while the network trains, and see which filters the next layer does not miss.

Source: Ding, Ding, Guo, Han, Yan, "Approximated Oracle Filter Pruning for Destructive CNN Width Optimization", ICML
2019, arXiv:1905.04748.
Claim: the damage that a filter's removal does to the next layer, averaged over many random masks that contain it, ranks
filters as well as trying each alone, for all layers at once and at the cost of one more forward pass.
Equation: t = ||F - F'||^2 / ||F||^2 over a batch, F what the next layer gives after norm and activation, F' the same
with a random half of the filters masked; each masked filter is credited with t. After `iters_per_half` batches the
better half goes if the largest mean among it is below `threshold` (the paper's theta); otherwise the search goes on
inside it, down to one filter.
Cost: one forward pass without gradients more per training step, and one product more per layer that reads a group;
log2(n) halves of `iters_per_half` steps for each move of a layer with n filters.
Use it when there is time to train and the widths are to be found by the method: layers lose what the next one does not
miss, not a fraction set by hand.

Where we differ, and why:

- Training ends at the move that meets the budget, and of that move only as many filters go as the budget needs, the
  least missed first: budgets here are exact. The paper checks once per epoch.
- If the budget is not met after `epochs`, the filters with the lowest damage in the last whole search of their
  layer go too, whatever the threshold, with a warning in the log; ``shortfall="error"`` refuses instead.
- The pass that scores runs in evaluation mode beside the training step, so that running statistics and random numbers
  of the base path do not see it; only the norm right behind a scored layer takes its own batch's statistics, as in the
  paper. A norm between the masked channels and the layer that reads them keeps the base path's statistics.
- A group that several layers read suffers the sum of their relative damages; the paper has one consumer per layer.
- What is gone is held at zero in every weight that makes or reads it, which is the paper's mask after the activation.
- Weight decay is the recipe's for all parameters; the paper's code spares biases and norms and doubles the biases'
  rate. How many epochs the search may take is ours.
"""

from __future__ import annotations

import contextlib
import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..budget import kept_counts, meet
from ..errors import BudgetError, MethodError, NothingToPrune
from ..plan import Plan
from ..surgery.shrink import clone
from ..train.attachment import Attachment, Moment
from ..train.loop import fit
from ..train.schedules import Recipe
from ..train.task import Inputs, Task
from ._damage import Damages
from ._problem import Decision, Problem
from ._scores import counts_for, eligible, plan_from_counts
from ._training import HeldAtZero, blamed, training_data

log = logging.getLogger(__name__)


@dataclass
class Search:
    """The search in one group: which channels are masked next, and what follows from what was seen.

    Attributes:
        width: number of channels.
        floor: how many of them stay at least.
        seed: of the random masks.
        alive: channels that are left.
        space: those of them that are searched.
        known: (width,) mean damage of each channel in the last whole search; infinite = not measured.
    """

    width: int
    floor: int
    seed: int
    alive: Tensor = field(init=False)
    space: Tensor = field(init=False)
    known: Tensor = field(init=False)

    def __post_init__(self) -> None:
        self._generator = torch.Generator().manual_seed(self.seed)
        self.known = torch.full((self.width,), math.inf, dtype=torch.float64)
        self.alive = torch.arange(self.width)
        self._search(self.alive)

    @property
    def is_open(self) -> bool:
        """Whether a channel may still go."""
        return len(self.alive) > max(self.floor, 1)

    @property
    def means(self) -> Tensor:
        """(width,) mean damage of the masks that held each channel; infinite for one that no mask held."""
        return torch.where(self.counts > 0, self.totals / self.counts, math.inf)

    def draw(self) -> Tensor:
        """Return (width,) bool: a random half of the space, rounded down."""
        mask = torch.zeros(self.width, dtype=torch.bool)
        order = torch.randperm(len(self.space), generator=self._generator)
        mask[self.space[order[: len(self.space) // 2]]] = True
        return mask

    def note(self, mask: Tensor, damage: float) -> None:
        """Credit every masked channel with the damage that the mask did."""
        self.totals[mask] += damage
        self.counts[mask] += 1
        self.batches += 1

    def halve(self, threshold: float) -> list[int]:
        """End a half: return the channels that go, least missed first; if none, search on in the better half.

        Source: Ding et al. 2019, section 3.4 and algorithm 1.
        """
        self._learn()
        means = self.means[self.space]
        half = len(self.space) // 2
        order = torch.argsort(means, stable=True)[:half]
        if means[order[-1]] < threshold:
            gone = self.space[order][: len(self.alive) - self.floor]
            self.alive = self.alive[~torch.isin(self.alive, gone)]
            self._search(self.alive)
            return [int(channel) for channel in gone]
        self._search(self.space[order] if half > 1 else self.alive)
        return []

    def ranked(self) -> Tensor:
        """Return (width,) damages by which to go on where the search ended, all finite."""
        self._learn()
        finite = self.known[self.known.isfinite()]
        last = 2 * float(finite.max()) + 1 if len(finite) else 1.0
        return torch.where(self.known.isfinite(), self.known, last)

    def _learn(self) -> None:
        """Remember a search over everything that is left: only there all channels are measured alike."""
        if len(self.space) == len(self.alive):
            self.known = torch.where(self.counts > 0, self.means, self.known)

    def _search(self, space: Tensor) -> None:
        self.space = space.sort().values
        self.totals, self.counts = torch.zeros(2, self.width, dtype=torch.float64)
        self.batches = 0


@dataclass(frozen=True)
class Aofp:
    """Remove what the next layers do not miss, found by random masks while the network trains.

    Attributes:
        threshold: theta: largest relative damage of a half that may go, > 0.
        iters_per_half: batches until a half is decided.
        warmup: batches before the first layer starts.
        epochs: most passes over the data that the search may take.
        lr: constant learning rate of SGD with momentum 0.9 meanwhile; the paper's code has 0.001 for batches of 64.
        weight_decay: on every parameter meanwhile.
        shortfall: "fill" or "error": what happens if the budget is not met by then.
        residual: "skip" (the paper: only layers inside blocks), "projection" or "prune".

    Raises:
        MethodError: a value makes no sense.
    """

    threshold: float = 0.01
    iters_per_half: int = 1000
    warmup: int = 500
    epochs: int = 200
    lr: float = 1e-3
    weight_decay: float = 1e-4
    shortfall: str = "fill"
    residual: str = "skip"

    def __post_init__(self) -> None:
        if not self.threshold > 0:
            raise MethodError(f"threshold={self.threshold!r}: expected a number above 0, e.g. 0.01.")
        for name, least in (("iters_per_half", 1), ("warmup", 0), ("epochs", 1)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise MethodError(f"{name}={value!r}: expected a whole number of {least} or more.")
        if self.shortfall not in ("fill", "error"):
            raise MethodError(f"shortfall={self.shortfall!r}: expected 'fill' or 'error'.")
        if not 0 < self.lr < math.inf:
            raise MethodError(f"lr={self.lr!r}: expected a number above 0, e.g. 0.001.")
        if not 0 <= self.weight_decay < math.inf:
            raise MethodError(f"weight_decay={self.weight_decay!r}: expected a number of 0 or more, e.g. 0.0001.")

    def decide(self, problem: Problem) -> Decision:
        """Train a copy and search meanwhile.

        Returns:
            The plan; the trained copy, in which removed filters are zero; and scores: mean damages, and below 0 what
            moves removed, the first the lowest.

        Raises:
            BudgetError: the budget is not reachable.
            MethodError: no data, training cannot start or go on, or a budget not met with ``shortfall="error"``.
            NothingToPrune: no group is free to go, or no layer reads any.
        """
        data, own_task = training_data(problem, "aofp")
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            raise MethodError("aofp searches in one process: every process would mask at random on its own.")
        names = eligible(problem, self.residual)
        problem.check_weights(names)
        damages = Damages.of(problem.graph, names)
        names = [name for name in names if name in damages.names]
        if not names:
            raise NothingToPrune("no layer reads a group that is free to go, so no damage can be seen; protect less.")
        counts_for(problem, names, "uniform")  # says what can be reached, before any training
        if problem.budget.remove == 0:
            return Decision(Plan.from_removed({}, problem.graph.widths))
        model, task = clone(problem.model), _Listening(own_task)
        hunt = _Hunt(problem, self, damages, task, names)
        with contextlib.suppress(_BudgetMet), blamed("aofp", problem):
            fit(model, data, task, self._recipe(problem.seed), attachments=[hunt])
        model.zero_grad(set_to_none=True)
        return hunt.decision(model)

    def _recipe(self, seed: int) -> Recipe:
        return Recipe(self.epochs, self.lr, weight_decay=self.weight_decay, schedule="constant", seed=seed)


class _BudgetMet(Exception):
    """Ends training; never leaves `Aofp.decide`."""


class _Listening:
    """A task that remembers what it was last fed."""

    def __init__(self, task: Task) -> None:
        self.task = task
        self.inputs: Inputs = ((), {})
        self.name, self.higher_is_better = task.name, task.higher_is_better

    def to_inputs(self, batch: Any) -> Inputs:
        self.inputs = self.task.to_inputs(batch)
        return self.inputs

    def loss(self, output: Any, batch: Any) -> Tensor:
        return self.task.loss(output, batch)

    def metric(self, output: Any, batch: Any) -> Tensor:
        return self.task.metric(output, batch)


class _Hunt(Attachment):
    """Scores masks beside every training step, and removes what may go."""

    def __init__(self, problem: Problem, method: Aofp, damages: Damages, task: _Listening, names: list[str]) -> None:
        self.problem, self.method, self.damages, self.task = problem, method, damages, task
        widths = problem.graph.costs.widths
        floors = kept_counts(widths, widths, problem.limits)
        self.number = {name: k for k, name in enumerate(problem.graph.groups)}
        self.searches = {
            name: Search(int(widths[self.number[name]]), int(floors[self.number[name]]), _mixed(problem.seed, k))
            for k, name in enumerate(names)
        }
        step = method.iters_per_half // len(names)
        self.starts = {name: method.warmup + k * step for k, name in enumerate(names)}
        self.moved: list[tuple[str, int]] = []
        self.held: HeldAtZero | None = None

    def extra_loss(self, moment: Moment) -> None:
        """Draw a mask for every group and see what it does; the loss stays as it is."""
        live = {n: s for n, s in self.searches.items() if s.is_open and moment.step >= self.starts[n]}
        masks = {name: search.draw() for name, search in live.items()}
        if not masks:
            return
        found = self.damages.measure(moment.model, self.task.inputs, masks)
        for name, search in live.items():
            search.note(masks[name], found[name])

    def after_step(self, moment: Moment) -> None:
        """Decide halves that are complete; hold at zero what is gone."""
        is_met = False
        for name, search in self.searches.items():
            if search.batches < self.method.iters_per_half or is_met:
                continue
            gone = search.halve(self.method.threshold)
            if gone:
                self.moved += [(name, channel) for channel in gone]
                is_met = self._trim()
                log.info("step %d: %s lost %d channels", moment.step + 1, name, len(gone))
                self.held = HeldAtZero(moment.model, self.problem.graph, self._plan())
        if self.held is not None:
            self.held.apply_()
        if is_met:
            raise _BudgetMet

    def decision(self, model: nn.Module) -> Decision:
        """Return plan, model and scores at the end of training."""
        order = list(self.moved)
        if not self._is_met(order):
            self._report()
            order += self._rest()
        kept = self._kept(order)
        scores = {name: self._scores(name) for name in self.searches}
        plan = plan_from_counts(self.problem, kept, scores)
        return Decision(plan, model=model, scores=scores)

    def _scores(self, name: str) -> Tensor:
        gone = [channel for group, channel in self.moved if group == name]
        scores = self.searches[name].ranked()
        scores[gone] = torch.arange(-len(gone), 0, dtype=torch.float64)
        return scores

    def _rest(self) -> list[tuple[str, int]]:
        """Return what is left, the least missed first."""
        ranks = {name: search.ranked() for name, search in self.searches.items()}
        left = [(name, int(channel)) for name, search in self.searches.items() for channel in search.alive]
        return sorted(left, key=lambda one: float(ranks[one[0]][one[1]]))

    def _kept(self, order: Sequence[tuple[str, int]]) -> dict[str, int]:
        """Return how many channels of each group stay if as many go, in this order, as the budget needs."""
        problem, numbers = self.problem, [self.number[name] for name, _ in order]
        widths = problem.graph.costs.widths
        kept = meet(
            problem.budget, numbers, widths, problem.limits, lambda c: problem.graph.costs.value(problem.budget.of, c)
        )
        return {name: int(kept[self.number[name]]) for name in self.searches}

    def _is_met(self, order: Sequence[tuple[str, int]]) -> bool:
        try:
            self._kept(order)
        except BudgetError:
            return False
        return True

    def _trim(self) -> bool:
        """Take back of the last move what the budget does not need; return whether it is met."""
        if not self._is_met(self.moved):
            return False
        while self._is_met(self.moved[:-1]):
            self.moved.pop()
        return True

    def _plan(self) -> Plan:
        removed: dict[str, list[int]] = {}
        for name, channel in self.moved:
            removed.setdefault(name, []).append(channel)
        return Plan.from_removed(removed, self.problem.graph.widths)

    def _report(self) -> None:
        costs, budget, method = self.problem.graph.costs, self.problem.budget, self.method
        widths = costs.widths
        removed = np.bincount([self.number[name] for name, _ in self.moved], minlength=len(widths))
        left = costs.value(budget.of, kept_counts(removed, widths, self.problem.limits))
        reached = 1 - left / costs.value(budget.of, widths)
        message = (
            f"asked to {budget}; in epochs={method.epochs} the moves below threshold={method.threshold:g} reached "
            f"{reached:.1%}: raise epochs= or threshold=, or lower iters_per_half={method.iters_per_half} or "
            f"warmup={method.warmup}"
        )
        if method.shortfall == "error":
            raise MethodError(f"{message}; shortfall='fill' removes the least missed channels for the rest.")
        log.warning("%s; the least missed channels go for the rest", message)


def _mixed(seed: int, number: int) -> int:
    return int(np.random.SeedSequence([seed, number]).generate_state(1, np.uint64)[0] >> np.uint64(1))
