"""Candidates of a search: networks of given widths, repaired from moments taken once and measured on held-out data."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from ..errors import MethodError, TrainingError
from ..graph.products import Product, Site, weight_view
from ..plan import Plan
from ..recovery.moments import ProductMoments, Sampling, channel_sums, column_channels, product_moments
from ..recovery.refit import Refit, Refitting, added
from ..surgery.shrink import clone, shrink
from ..train.batches import device_of, sample_count
from ..train.randomness import same_loader_after, same_randomness_after
from ..train.task import Task
from ..train.watching import kernel_of
from ._problem import Problem
from ._scores import l1_norms, plan_from_counts
from ._sensitivity_measure import Measured, measure

log = logging.getLogger(__name__)


def magnitudes(problem: Problem, name: str, reading: Sequence[Product]) -> Tensor:
    """Score each channel of a group by the absolute weights that read it; higher = keep.

    Args:
        problem: model and graph.
        name: of the group.
        reading: the products that read it; where none has a weight of its own, what makes the channels counts.

    Returns:
        (width,), float64.
    """
    group, total = problem.graph.groups[name], None
    for product in reading:
        view = weight_view(problem.model, problem.graph, product)
        if view is None:
            continue
        sums = kernel_of(view, product.groups, **product.layout).double().abs().sum(dim=1).cpu()
        columns = column_channels(product, problem.graph, group)
        own = channel_sums(sums.flatten(), columns.flatten(), group.width)
        total = own if total is None else total + own
    return l1_norms(problem, name) if total is None else total


@dataclass(frozen=True)
class Split:
    """Batches to fit on and batches to choose by, no sample in both.

    Attributes:
        calibration: for the repair; labels are not read.
        validation: for the reward.
    """

    calibration: list[Any]
    validation: list[Any]

    @classmethod
    def of(cls, problem: Problem, calibration_samples: int, validation_samples: int) -> Split:
        """Deal the batches of the data out to the part that has fewer samples, until both have enough.

        Raises:
            MethodError: no data, no task, or fewer than two batches.
        """
        if problem.data is None or problem.task is None:
            raise MethodError(
                "amc measures candidates: give data= (labelled batches of the training set, never of the test set) "
                "and task=."
            )
        wanted = (calibration_samples, validation_samples)
        parts: tuple[list[Any], list[Any]] = ([], [])
        counts = [0, 0]
        with same_randomness_after(device_of(problem.model)), same_loader_after(problem.data):
            for batch in problem.data:
                waiting = [k for k in (0, 1) if counts[k] < wanted[k]]
                if not waiting:
                    break
                part = min(waiting, key=lambda k: counts[k])
                parts[part].append(batch)
                counts[part] += sample_count(*problem.task.to_inputs(batch))
        if not all(parts):
            raise MethodError(
                f"amc was given {len(parts[0])} batch in data= and needs two: some samples fit the repair, others, "
                "held out from it, choose. Give smaller batches, or more data; pass a list or a loader, not a "
                "generator that was read before."
            )
        return cls(*parts)


@dataclass(frozen=True)
class FromMoments(Refitting):
    """Re-fits consumers from moments of their whole inputs in the original network, so that no data are read."""

    known: Mapping[Site, ProductMoments] = field(default_factory=dict)

    def fits(self, product: Product) -> bool:
        """Whether the moments of this product were taken."""
        return product.site in self.known

    def moments(self, uses: list[Product], kept: Tensor) -> ProductMoments:
        """Return the moments of what is left of the inputs."""
        return added(self.known[product.site].restricted(kept) for product in uses)


class Candidates:
    """Networks cut from one model, each at the cost of a few solves and an evaluation.

    Args:
        problem: model, graph and task.
        split: what to fit on and what to measure on.
        scores: group -> (width,); the lowest go first.
        reading: the products that read any of these groups.
        rows_per_sample: positions of each sample that the repair looks at.
        how: ridge and the largest second moment of the repair.
    """

    def __init__(
        self,
        problem: Problem,
        split: Split,
        *,
        scores: Mapping[str, Tensor],
        reading: Iterable[Product],
        rows_per_sample: int,
        how: Refit,
    ) -> None:
        assert problem.task is not None
        self.problem, self.scores, self._how = problem, scores, how
        self._task: Task = problem.task
        self._validation = split.validation
        with explained():
            self.base = measure(problem.model, self._validation, self._task)
            sites = [product.site for product in reading if self._is_fitted(product)]
            sampling = Sampling(rows_per_sample, None, problem.seed)
            self._known = product_moments(problem.model, sites, split.calibration, self._task, sampling)

    def plan(self, kept: Mapping[str, int]) -> Plan:
        """Return the plan that keeps this many channels of each group."""
        return plan_from_counts(self.problem, kept, self.scores)

    def repaired(self, plan: Plan) -> nn.Module:
        """Return a full-width copy of the model whose readers make do with what the plan leaves them."""
        work, problem = clone(self.problem.model), self.problem
        run = FromMoments(work, problem.graph, plan, (), self._task, self._how, problem.model, self._known)
        for uses, view in run.consumers():
            if run.fits(uses[0]):
                run.refit_(uses, view)
        return work

    def measured(self, plan: Plan) -> Measured:
        """Return metric and loss of the cut and repaired network on the held-out samples."""
        small = shrink(self.repaired(plan), self.problem.graph, plan)
        with explained():
            return measure(small, self._validation, self._task)

    def _is_fitted(self, product: Product) -> bool:
        view = weight_view(self.problem.model, self.problem.graph, product)
        if view is None:
            return False
        groups, _, columns = kernel_of(view, product.groups, **product.layout).shape
        needed = 8 * groups * columns**2
        if needed > self._how.max_bytes:
            log.warning(
                "not repaired: the second moment of what %s reads takes %.1f GiB (max_bytes=%d)",
                *(product.module, needed / 2**30, self._how.max_bytes),
            )
        return needed <= self._how.max_bytes


@contextmanager
def explained() -> Iterator[None]:
    """Turn what goes wrong with the data into a `MethodError` that names the method."""
    try:
        yield
    except TrainingError as error:
        raise MethodError(f"amc: {error}") from error
