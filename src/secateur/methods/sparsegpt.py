"""SparseGPT: weights go column by column, and those to the right make up for each at once.

Source: Frantar, Alistarh, "SparseGPT: Massive Language Models Can Be Accurately Pruned in One-Shot", ICML 2023,
arXiv:2301.00774.

Claim: half of the weights of a language model of 175 billion can go in one shot, in hours, at hardly any loss, if each
layer's output is restored by optimal brain surgery in which all rows share one Hessian.

Equation: H = 2 X X^T / N + damping * mean(diag H) * I; U = upper Cholesky factor of H^-1. From left to right, in blocks
of columns: the weights with the lowest W_ij^2 / U_jj^2 of a block go (or of each M in a row all but N); for a column j,
e = (W_:j - kept part of W_:j) / U_jj and W_:,j.. -= e U_j,j... X are the layer's inputs on N rows.

Cost: two passes over the data for each stage at most (see `together`), O(D^3 + rows D^2) time and O(D^2) memory in
float64 for a layer of D inputs. No gradients.

Use it when up to half of the weights, or 2:4, are to go from a model that cannot be trained on afterwards, and minutes
are at hand rather than seconds.

Where we differ, and why:

- Any architecture, not only linear layers of transformers: a convolution is unfolded, a grouped one has a Hessian for
  each group.
- The paper sets weights that read nothing but zeros to zero, over and above the budget. Here they go first and count.
- A block's share of a layer's weights is exact: shares that are no whole number are rounded so that the sum is right.
- N:M groups are consecutive input channels of one tap, and blocks of columns end where a group does, whatever M is.
- Everything is computed in float64; the paper's float32 needs more damping.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from ..errors import MethodError
from ..recovery.moments import Sampling
from ..weight_plan import WeightPlan
from ._calibrate import Calibration, FewSamples, Place, check_front_to_back, laid_out_like
from ._weight_choice import Scope, apportion
from ._weights import Pattern, Weight, WeightDecision, WeightProblem

Cell = tuple[int, int]  # first column and the one after the last


class Compensated(NamedTuple):
    """What `sparsegpt` returns, each (groups, outputs, columns).

    Attributes:
        kernel: with exact zeros where weights went, and the others changed to make up for them.
        keep_mask: True = the weight stays.
        scores: by which weights were chosen, higher = keep.
        errors: e of the paper; half the sum of their squares is what the layer's output loses.
    """

    kernel: Tensor
    keep_mask: Tensor
    scores: Tensor
    errors: Tensor


def sparsegpt(
    W: Tensor, H: Tensor, blocks: Sequence[Sequence[Cell]], choose: Callable[[Cell, Tensor], Tensor]
) -> Compensated:
    """Remove weights from left to right and let those to their right make up for it.

    Source: Frantar & Alistarh 2023, algorithm 1; sections 3.2 (shared Hessians) and 3.3 (masks chosen block by block).
    Symbols of the paper: W weight, H Hessian, U upper Cholesky factor of the inverse of H, e error.

    Args:
        W: (groups, outputs, columns) float64.
        H: (groups, columns, columns) float64, positive but for inputs that are always zero.
        blocks: what is updated together before the columns to the right of it are: lists of cells, in order, that cover
            all columns. Which weights of a cell go is chosen when its turn comes.
        choose: takes a cell and the (groups, outputs, columns of the cell) scores; returns what stays.

    Raises:
        MethodError: H is singular.
    """
    U, is_dead = _factor(H)
    W, keep = W.clone(), torch.ones_like(W, dtype=torch.bool)
    scores, errors = torch.zeros_like(W), torch.zeros_like(W)
    diagonal = U.diagonal(dim1=1, dim2=2)
    for cells in blocks:
        first, last = cells[0][0], cells[-1][1]
        for cell in cells:
            start, end = cell
            scores[..., start:end] = _rank_dead(W, diagonal, is_dead, start, end)
            keep[..., start:end] = choose(cell, scores[..., start:end])
            for j in range(start, end):
                e = W[..., j] * ~keep[..., j] / diagonal[:, j : j + 1]
                W[..., j:last] -= e[..., None] * U[:, j : j + 1, j:last]
                errors[..., j] = e
        W[..., last:] -= errors[..., first:last] @ U[:, first:last, last:]
    return Compensated(W * keep, keep, scores, errors)  # the loop leaves rounding dust where weights went


def _rank_dead(W: Tensor, diagonal: Tensor, is_dead: Tensor, start: int, end: int) -> Tensor:
    found = (W[..., start:end] / diagonal[:, None, start:end]).square()
    return torch.where(is_dead[:, None, start:end], found * 1e-24, found)


def _factor(H: Tensor) -> tuple[Tensor, Tensor]:
    """Return U with U^T U = H^-1, upper, and which inputs are always zero (they have H_jj = 1 in U).

    With J the reversal of columns, J H J = L L^T, so H = (J L J)(J L J)^T and U = (J L J)^-1: no inverse is formed.
    """
    is_dead = H.diagonal(dim1=1, dim2=2) == 0
    reversed_H = (H + torch.diag_embed(is_dead.to(H))).flip(1, 2)
    L, failed = torch.linalg.cholesky_ex(reversed_H)
    left = L.diagonal(dim1=1, dim2=2).square() / reversed_H.diagonal(dim1=1, dim2=2)
    if bool(failed.any()) or bool((left < 1e-13).any()):
        raise MethodError(
            "the inputs of a layer depend on each other, so its Hessian has no inverse: set damping above 0 (the paper "
            "takes 0.01), or give more samples than the layer has inputs."
        )
    eye = torch.eye(H.shape[-1], dtype=H.dtype, device=H.device).expand_as(H)
    return torch.linalg.solve_triangular(L.flip(1, 2), eye, upper=True), is_dead


@dataclass(frozen=True)
class SparseGPT:
    """Remove weights by optimal brain surgery, layer by layer.

    Attributes:
        damping: added to the diagonal of the Hessian, as a fraction of its mean.
        block: columns that are chosen and updated together.
        scope: "layer" (every layer loses the same fraction, as in the paper), or {parameter: relative fraction to
            remove}.
        together: which layers are calibrated on one pass over the data, all on the inputs that what runs before them
            gives once it is pruned: "block" (the paper: those of a transformer's block; others one by one), "layer"
            (one by one: as many passes as layers), "model" (all at once, on the original's activations).
        rows_per_sample: positions read of each sample, drawn at random; None = all, as the paper.
        max_samples: samples read at most, in whole batches; None = all. The paper's 128 are sequences.

    Raises:
        MethodError: a setting makes no sense.
    """

    damping: float = 0.01
    block: int = 128
    scope: Scope = "layer"
    together: str = "block"
    rows_per_sample: int | None = None
    max_samples: int | None = 128

    def __post_init__(self) -> None:
        check_front_to_back(self.scope, self.together, ("layer",))
        if isinstance(self.damping, bool) or not 0 <= self.damping < math.inf:
            raise MethodError(f"damping={self.damping!r}: expected a fraction of the mean diagonal, >= 0, e.g. 0.01.")
        if isinstance(self.block, bool) or not isinstance(self.block, int) or self.block < 1:
            raise MethodError(f"block={self.block!r}: expected a number of columns, >= 1.")
        self._sampling()

    def _sampling(self, seed: int = 0) -> Sampling:
        return Sampling(self.rows_per_sample, self.max_samples, seed)

    def choose(self, problem: WeightProblem) -> WeightDecision:
        """Go through the layers front to back; reads weights and unlabelled data.

        Returns:
            With a model whose remaining weights make up for those that go.

        Raises:
            BudgetError: the budget is not reachable.
            MethodError: no data or task, a layer's inputs are not finite or, without damping, depend on each other, or
                its inputs do not fit the pattern.
            NothingToPrune: no weight is free to go.
            TrainingError: the data give no batch, or do not reach a layer.
            UnknownName: `scope` names a parameter that there is not.
        """
        run = Calibration(problem, "sparsegpt", self.together, self._sampling(problem.seed))
        counts = run.counts(self.scope)
        scores: dict[str, Tensor] = {}
        kept = {w.name: torch.ones(w.tensor.shape, dtype=torch.bool) for w in run.weights}
        short: list[str] = []
        for stage, sites in run.stages(counts):
            sums = run.sums(sites, _SecondMoment)
            for weight in stage:
                own = sums.pop(weight.name)
                short += [f"{weight.name} ({s.rows} for {s.total.shape[-1]})" for s in own.values() if s.is_short]
                plan = _Layer(weight, own, self, problem.pattern, counts[weight.name])
                kept[weight.name], scores[weight.name] = plan.prune_()
        if short:
            warnings.warn(
                f"fewer samples than inputs in {len(short)} layers, e.g. {short[0]}: what is to be made up for is "
                "known in part only, and damping decides the rest. Give more data.",
                FewSamples,
                stacklevel=3,
            )
        return WeightDecision(WeightPlan(kept), model=run.work, scores=scores)


class _SecondMoment:
    """Sum of x x^T."""

    def __init__(self) -> None:
        self.rows, self.total = 0, torch.zeros(())

    def add(self, inputs: Tensor) -> None:
        self.rows += inputs.shape[1]
        self.total = self.total.to(inputs) + inputs.transpose(1, 2) @ inputs

    @property
    def is_short(self) -> bool:
        return self.rows < self.total.shape[-1]

    def hessian(self, damping: float) -> Tensor:
        """Return 2 X X^T / N, damped; inputs that are always zero keep a diagonal of 0."""
        H = 2 * self.total / self.rows
        diagonal = H.diagonal(dim1=1, dim2=2)
        diagonal += damping * diagonal.mean(dim=1, keepdim=True) * (diagonal > 0)
        return H


@dataclass
class _Layer:
    """One parameter, on its way to lose weights.

    Columns are taken tap by tap, so that neighbours are consecutive input channels.
    """

    weight: Weight
    sums: Mapping[Place, _SecondMoment]
    method: SparseGPT
    pattern: Pattern | None
    count: int

    def prune_(self) -> tuple[Tensor, Tensor]:
        """Write the new weights into the parameter; return what stays, and the scores, in its shape."""
        tensor = self.weight.tensor.detach()
        keep, scores = laid_out_like(tensor, torch.bool, True), laid_out_like(tensor, torch.float64, 0.0)
        blocks = {place: self._blocks(place) for place in self.sums}
        counts = self._counts(blocks)
        for place, moment in self.sums.items():
            kernel = place.kernel(tensor)
            order = _tap_by_tap(kernel.shape[2], place.taps).to(kernel.device)
            H = moment.hessian(self.method.damping)[:, order][:, :, order]
            found = self._pruned(kernel[..., order].double(), H, blocks[place], counts, place)
            back = order.argsort()
            place.write_(tensor, found.kernel[..., back].to(tensor.dtype))
            place.write_(keep, found.keep_mask[..., back])
            place.write_(scores, found.scores[..., back])
        return keep, scores

    def _pruned(
        self, W: Tensor, H: Tensor, blocks: list[list[Cell]], counts: Mapping[tuple[Place, Cell], int], place: Place
    ) -> Compensated:
        def choose(cell: Cell, scores: Tensor) -> Tensor:
            if self.pattern is not None:
                return _highest(scores.flatten(0, 1), self.pattern.keep).view_as(scores)
            return _highest(scores.reshape(1, -1), scores.numel() - counts[place, cell]).view_as(scores)

        try:
            return sparsegpt(W, H, blocks, choose)
        except MethodError as error:
            raise MethodError(f"{self.weight.module}: {error}") from error

    def _blocks(self, place: Place) -> list[list[Cell]]:
        """Return blocks of columns, each a list of cells that choose for themselves."""
        columns = place.kernel(self.weight.tensor).shape[2]
        if self.pattern is None:
            size = self.method.block
            return [[(start, min(start + size, columns))] for start in range(0, columns, size)]
        blocks: list[list[Cell]] = [[]]
        inputs = columns // place.taps
        for tap in range(0, columns, inputs):
            for start in range(tap, tap + inputs, self.pattern.of):
                if blocks[-1] and start - blocks[-1][0][0] >= self.method.block:
                    blocks.append([])
                blocks[-1].append((start, min(start + self.pattern.of, tap + inputs)))
        return blocks

    def _counts(self, blocks: Mapping[Place, list[list[Cell]]]) -> dict[tuple[Place, Cell], int]:
        """Return how many weights each cell loses: the same fraction of all, `count` in all."""
        if self.pattern is not None:
            return {}
        sizes = {
            f"{number}": (place, cell, self._size(place, cell))
            for number, (place, cell) in enumerate((p, c) for p, bs in blocks.items() for b in bs for c in b)
        }
        whole = {key: size for key, (_, _, size) in sizes.items()}
        found = apportion({key: float(size) for key, size in whole.items()}, whole, self.count)
        return {(place, cell): found[key] for key, (place, cell, _) in sizes.items()}

    def _size(self, place: Place, cell: Cell) -> int:
        groups, outputs, _ = place.kernel(self.weight.tensor).shape
        return groups * outputs * (cell[1] - cell[0])


def _tap_by_tap(columns: int, taps: int) -> Tensor:
    """Return the order that makes consecutive input channels of one tap neighbours.

    >>> _tap_by_tap(6, 2).tolist()
    [0, 2, 4, 1, 3, 5]
    """
    return torch.arange(columns).view(-1, taps).T.flatten()


def _highest(scores: Tensor, count: int) -> Tensor:
    """Return (rows, n) bool, True for the `count` highest scores of each row; of equal ones the last stay."""
    order = scores.argsort(dim=1, stable=True)
    removed = max(scores.shape[1] - count, 0)
    return torch.ones_like(scores, dtype=torch.bool).scatter_(1, order[:, :removed], False)
