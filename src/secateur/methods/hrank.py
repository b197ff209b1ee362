"""HRank: channels whose feature maps have a low rank go.

Source: Lin, Ji, Wang, Zhang, Zhang, Tian, Shao, "HRank: Filter Pruning using High-Rank Feature Map", CVPR 2020,
arXiv:2002.10179, section 3.

Claim: the rank of the map that a filter gives says how much it tells, and its mean over a few hundred images hardly
depends on which images these are.

Equation: score(c) = mean over images of rank(M[c]), where M[c] is the map of channel c, lines by columns, after the
activation; singular values up to `tolerance` times the largest count as zero.

Cost: one forward pass over about `sample_count` images and O(h w min(h, w)) time for the singular values of each map of
h x w places, which dominates for large maps. No labels, memory of one batch.

Use it when the layers give feature maps of some size and use ReLU: zeros in the map are most of what lowers the rank.
Where maps are small or the activation is smooth, nearly all have full rank and the ranking is made of ties.

Where we differ, and why:

- The paper prunes a layer, trains 30 epochs, and goes on to the next. Here all channels are scored on the trained
  network; train between cuts with `secateur.prune_iteratively`.
- The map is the last thing that is computed before a layer reads the channel, whatever the activation: behind pooling
  and flattening the map is no longer whole. Where several layers read different maps (a residual stream), the score is
  the mean over these maps.
- Channels that are no images: one that takes several places for each token (a head) is a matrix of tokens by places. A
  hidden unit has one number for each sample or token, whose rank says nothing, so its matrix is samples by tokens, of a
  whole batch. For a unit with one number per sample that leaves 1, or 0 if it is dead: the ranking is one of ties.
- The tolerance is that of `torch.linalg.matrix_rank`, max(h, w) times the precision of the network's own numbers, so
  half-precision noise does not count as rank.
- The paper sets a fraction for each layer by hand; here it is the same for every group unless `allocation` says
  otherwise. Ranks of layers with maps of other sizes do not compare, so "global" favours large maps.
- Mean ranks are often equal. Then the channel with the lower index goes first, as everywhere in this package, so the
  plan depends on the order of the channels.
- Residual streams are treated as in `L1Filter`, so that both cut the same layers. Groups without a map stay whole.
"""

from __future__ import annotations

import logging
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from ..errors import MethodError
from ..graph.norms import Flow
from ..graph.tape import set_training
from ..surgery.shrink import cut_copy
from ..train.batches import batches_in, device_of, sample_count, to_device
from ..train.progress import ProgressBar
from ..train.randomness import Stream, same_loader_after, same_randomness_after
from ._features import Feature, Key, features, watch_features
from ._problem import Decision, Problem
from ._scores import Allocation, eligible, plan_from_scores

log = logging.getLogger(__name__)


def map_ranks(maps: Tensor, tolerance: float | None = None) -> Tensor:
    """Return the rank of each matrix; higher = keep.

    Source: Lin et al. 2020, section 3.2.

    Args:
        maps: (..., rows, columns), of any floating-point type.
        tolerance: singular values up to this fraction of the largest count as zero; None = max(rows, columns) times the
            precision of the matrices' type.

    Returns:
        (...), whole numbers; 0 for a matrix of zeros.

    >>> map_ranks(torch.tensor([[[1.0, 2.0], [2.0, 4.0]], [[1.0, 0.0], [0.0, 1.0]]])).tolist()
    [1, 2]
    """
    limit = max(maps.shape[-2:]) * torch.finfo(maps.dtype).eps if tolerance is None else tolerance
    wide = maps if maps.dtype == torch.float64 else maps.float()
    values: Tensor = torch.linalg.svdvals(wide)
    return (values > limit * values[..., :1]).sum(dim=-1)


@dataclass(frozen=True)
class Hrank:
    """Remove the channels whose feature maps have the lowest mean rank.

    Attributes:
        sample_count: how many images to look at; whole batches are read until there are as many, or the data end.
        tolerance: singular values up to this fraction of a map's largest count as zero; None = the size of the map
            times the precision of its numbers.
        allocation: "uniform", "global" or {module path: relative fraction} (the paper).
        residual: "projection", "skip" or "prune": what happens to residual streams, as in `L1Filter`.

    Raises:
        MethodError: a setting makes no sense.
    """

    sample_count: int = 500
    tolerance: float | None = None
    allocation: Allocation = "uniform"
    residual: str = "projection"

    def __post_init__(self) -> None:
        if not isinstance(self.sample_count, int) or self.sample_count < 1:
            raise MethodError(f"sample_count={self.sample_count!r}: expected a whole number >= 1.")
        if self.tolerance is not None and not 0 <= self.tolerance < 1:
            raise MethodError(
                f"tolerance={self.tolerance!r}: expected a fraction in [0, 1), or None for the usual one."
            )

    def decide(self, problem: Problem) -> Decision:
        """Score and choose; runs batches through a copy of the model, without labels.

        Raises:
            BudgetError: the budget is not reachable.
            MethodError: no data, no group shows a map, or weights or maps are not finite.
            NothingToPrune: no group is free to go.
        """
        names = eligible(problem, self.residual)
        problem.check_weights(names)
        flow = Flow(problem.graph)
        seen = {name: features(problem.graph, flow, problem.graph.groups[name]) for name in names}
        shown = {name: found for name, found in seen.items() if found}
        if not shown:
            raise MethodError(f"hrank finds no map of the channels of {', '.join(names[:4])}: no layer reads them.")
        if len(shown) < len(names):
            log.info("no layer reads them, left whole: %s", ", ".join(n for n in names if n not in shown))
        tallies = {name: [_Tally(feature, self.tolerance) for feature in found] for name, found in shown.items()}
        self._run(problem, [tally for found in tallies.values() for tally in found])
        scores = {name: torch.stack([t.mean() for t in found]).mean(dim=0) for name, found in tallies.items()}
        return Decision(plan_from_scores(problem, scores, self.allocation), scores=scores)

    def _run(self, problem: Problem, tallies: list[_Tally]) -> None:
        if problem.data is None or problem.task is None:
            raise MethodError("hrank looks at feature maps: give data= (batches, labels are not read) and task=.")
        data, device = problem.data, device_of(problem.model)
        by_key: dict[Key, list[_Tally]] = {}
        for tally in tallies:
            by_key.setdefault(tally.feature.key, []).append(tally)
        done = batches = 0
        with ExitStack() as stack:
            stack.enter_context(same_randomness_after(device))
            stack.enter_context(same_loader_after(data))
            stack.enter_context(Stream(problem.seed))
            bar = stack.enter_context(ProgressBar("ranks of maps", batches_in(data)))
            runner = cut_copy(problem.model, {})
            set_training(runner, False)
            for batch in data:
                args, kwargs = problem.task.to_inputs(to_device(batch, device))
                see = {key: partial(_add_to, own, f"hrank, batch {batches}") for key, own in by_key.items()}
                watch_features(runner, (args, kwargs), see, f"hrank, batch {batches}")
                done, batches = done + sample_count(args, kwargs), batches + 1
                bar.advance()
                if done >= self.sample_count:
                    break
        if not batches:
            raise MethodError("hrank: data= gave no batch; pass a list or a loader that starts anew each time.")


class _Tally:
    """Sums up the ranks of one feature's maps."""

    def __init__(self, feature: Feature, tolerance: float | None) -> None:
        self.feature, self.tolerance = feature, tolerance
        self.total = torch.zeros(len(feature.places), dtype=torch.float64)
        self.count = 0

    def add(self, value: Tensor) -> None:
        for maps in self.feature.maps(value):  # one sample at a time, all channels at once
            self.total += map_ranks(maps, self.tolerance).double().cpu()
            self.count += 1

    def mean(self) -> Tensor:
        return self.total / self.count


def _add_to(tallies: list[_Tally], where: str, value: Tensor) -> None:
    if not bool(value.isfinite().all()):
        raise MethodError(
            f"{where}: module {tallies[0].feature.key.module!r} gives NaN or infinite values; nothing can be ranked."
        )
    for tally in tallies:
        tally.add(value)
