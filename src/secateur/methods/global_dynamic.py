"""GDP: masks over all filters of a network are set anew while it trains, and a filter masked too early comes back.

Source: Lin, Ji, Li, Wu, Huang, Zhang, "Accelerating Convolutional Networks via Global & Dynamic Filter Pruning", IJCAI
2018, and the authors' repository GDP.

Claim: ranking the filters of all layers together and letting masked ones return as training goes on finds a better
network than removing filters layer by layer for good.

Equation: min L(m * W) with at most beta N of the N masks m at 1; T(l, k) = |dL/dm(l, k)| = |sum of W dL/d(m W)| over
filter k of layer l, and every `interval` steps the beta N filters with the largest mean of T get m = 1, the others 0.

Cost: training by `recipe`; per step O(P) time for P weights, no further pass over the data, and up to one copy of the
weights that read what is masked.

Use it when there are labelled data and time to train, and how much each layer may lose is not known beforehand.

Where we differ, and why:

- The mask multiplies a channel where the next layers read it, in the columns of their weights. With ReLU this is the
  paper's mask on filter, bias or normalisation, with the same T; for other activations it is what the cut does. It
  makes dL/dm known at m = 0 too: behind ReLU, the gradient of a filter of zeros is zero, and it could never return.
- So there is no pass with all masks open: T is averaged over the last `window` training steps, each masked filter's
  with the others' masks as they are. The authors open all masks and read 100 batches; their code adds T up over these
  and then ranks by the last one alone.
- A masked filter stays at its last value: neither weight decay nor momentum moves it. Its running statistics go on.
- The budget may count anything; then the lowest T go until it is met, and every layer keeps `min_keep`.
- `normalise=True` divides T by its length over each group, as Molchanov et al. 2017 do. Ours; the paper does not.
- Residual streams stay whole, as in the paper; `residual="prune"` masks them everywhere they are read.
- Channels that something reads without a weight for each, or by weights that do not train, stay whole.
- The authors train 30 epochs with masks that change and 20 with fixed ones, at two falling rates; here one schedule
  falls over both, and `search` says when masks are fixed.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..errors import MethodError
from ..graph.walk import parameters_of
from ..plan import Plan
from ..train.attachment import Moment
from ..train.schedules import Recipe
from ._attached import Attached, train_and_decide
from ._channel_sides import Sides
from ._filter_masks import FilterMasks, mask_gradient, maskable
from ._history import Standing
from ._problem import Decision, Problem
from ._scores import Allocation, counts_for, eligible, plan_from_counts
from ._settings import check_settings
from ._taking_part import own_state

log = logging.getLogger(__name__)

PAPER_RECIPE = Recipe(
    epochs=50,
    lr=1e-3,
    schedule="step",
    milestones=(0.2, 0.6),
    batch_size=32,
    source="Lin et al. 2018: VGG-16 on ImageNet, 30 epochs from 1e-3 and 20 with fixed masks; the steps are ours",
)


@dataclass(frozen=True)
class GlobalDynamic:
    """Train under masks over all filters, set anew every so many steps, and remove what they hide in the end.

    Attributes:
        interval: steps between two updates of the masks, >= 1.
        window: steps over which T is averaged, >= 1.
        search: fraction of the epochs in which masks change, in (0, 1]; then they are fixed.
        normalise: divide T by its Euclidean length over each group. Ours.
        allocation: "global" (the paper), "uniform" or {module path: relative fraction}.
        residual: "skip" (the paper), "projection" or "prune": what happens to residual streams.
        recipe: how to train, where we do.

    Raises:
        MethodError: a setting makes no sense.
    """

    interval: int = 500
    window: int = 100
    search: float = 0.6
    normalise: bool = False
    allocation: Allocation = "global"
    residual: str = "skip"
    recipe: Recipe = PAPER_RECIPE

    def __post_init__(self) -> None:
        ranges = {
            "interval": (self.interval >= 1, "a number of steps, 1 or more"),
            "window": (self.window >= 1, "a number of steps, 1 or more"),
            "search": (0 < self.search <= 1, "a fraction of the epochs in (0, 1]"),
        }
        check_settings(self, ranges)

    def decide(self, problem: Problem) -> Decision:
        """Train a copy under masks; the decision's model is that copy, whose masked columns are zero.

        Raises:
            BudgetError: the budget is not reachable.
            MethodError: no data, no task, nothing that can be masked, or training left the finite numbers.
            NothingToPrune: no group is free to go.
        """
        return train_and_decide("global_dynamic", self, problem)

    def attach(self, problem: Problem) -> Attached:
        """Return what masks filters while the model trains; masks are open until the first update.

        Raises:
            BudgetError: the budget is not reachable.
            MethodError: nothing can be masked, or weights are not finite real numbers.
        """
        names = eligible(problem, self.residual)
        problem.check_weights(names)
        groups = maskable(problem, names, "global_dynamic")
        counts_for(problem, list(groups), "uniform")  # what cannot be reached is told before training
        fixed = None if self.allocation == "global" else counts_for(problem, list(groups), self.allocation)
        return Masking(problem, self, groups, fixed)


class Masking(Attached):
    """Masks filters while a model trains.

    On several processes all come to the same masks: T is read from gradients after they are averaged.
    """

    def __init__(
        self, problem: Problem, method: GlobalDynamic, groups: Mapping[str, Sides], counts: Mapping[str, int] | None
    ) -> None:
        super().__init__(problem)
        self.method, self.counts = method, counts
        self.widths = {name: sides.group.width for name, sides in groups.items()}
        self.total = sum(self.widths.values())
        parameters = parameters_of(self.model, shared=True)
        self.masks = FilterMasks.of(groups, parameters)
        self.mean = torch.zeros(self.total, dtype=torch.float64)  # of T, over the last steps
        self.step_count = 0
        self.scores: Tensor | None = None  # T that the masks were set by
        self.kept: Tensor | None = None  # (filters,) bool; None = all open, never set
        self.is_fixed = False

    def after_backward(self, moment: Moment) -> None:
        """Take T of this step into the mean, and hold back the gradients of what is masked."""
        self.check_optimizer("global_dynamic", moment, self.masks.readers)
        with torch.no_grad():
            if not self.is_fixed:
                self._take()
            if self.kept is not None:
                self.masks.hold_back_()

    def after_step(self, moment: Moment) -> None:
        """Put what is masked back to where it was; set the masks anew where it is time."""
        with torch.no_grad():
            if self.kept is not None:
                self.masks.put_back_()
            if not self.is_fixed and (moment.step + 1) % self.method.interval == 0:
                self._update()

    def after_epoch(self, moment: Moment) -> None:
        """Set the masks for the last time once the search is over."""
        if not self.is_fixed and moment.epoch + 1 >= self.method.search * moment.epoch_count:
            with torch.no_grad():
                self._update()
            self.is_fixed = True

    def standing(self) -> Standing:
        """Return T as it is now; out is what is masked."""
        scores = self._by_group(self.mean.double().cpu())
        if self.kept is None:
            plan = self._plan(scores)
            return Standing(scores, {name: len(plan.kept[name]) for name in scores}, dict.fromkeys(scores, 0))
        out = {name: int((~kept).sum()) for name, kept in self._by_group(self.kept).items()}
        return Standing(scores, {name: self.widths[name] - count for name, count in out.items()}, out)

    def finish(self) -> Decision:
        """Return the plan that the masks stand for.

        Raises:
            MethodError: the model has not been trained for a single step.
        """
        budget = self.problem.budget
        if self.step_count == 0 and budget.remove > 0:
            raise MethodError("global_dynamic has seen no step: train the model with what attach() returned, then ask.")
        if self.kept is None and budget.remove > 0:
            log.warning(
                "global_dynamic: training ended after %d steps, before masks were first set (interval=%d): what goes "
                "is chosen now, and the network has not trained without it",
                *(self.step_count, self.method.interval),
            )
        scores = self._by_group(self.mean.double().cpu() if self.scores is None else self.scores)
        if self.kept is None:
            return Decision(self._plan(scores), scores=scores, repair="batchnorm")
        gone = {name: (~kept).nonzero().flatten().tolist() for name, kept in self._by_group(self.kept).items()}
        return Decision(Plan.from_removed(gone, self.problem.graph.widths), scores=scores, repair="batchnorm")

    def state_dict(self) -> dict[str, Any]:
        """Return T, the masks, and the weights that the masks hide."""
        return {
            "method": "global_dynamic",
            "widths": dict(self.widths),
            "mean": self.mean.clone(),
            "step_count": self.step_count,
            "scores": self.scores,
            "kept": self.kept,
            "is_fixed": self.is_fixed,
            "hidden": self.masks.hidden(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take them up; the model's weights are those that were saved with this state.

        Raises:
            MethodError: the state is of another method or of other groups.
        """
        if own_state(state, "global_dynamic")["widths"] != self.widths:
            raise MethodError(
                f"global_dynamic was given masks of {sorted(state['widths'])[:4]} to go on from, and this run has "
                f"{sorted(self.widths)[:4]} in other widths or names: attach it to the same model, or start anew."
            )
        self.mean, self.step_count = state["mean"].clone(), state["step_count"]
        self.scores, self.kept, self.is_fixed = state["scores"], state["kept"], state["is_fixed"]
        self.masks.load(state["hidden"], self.kept)

    def _take(self) -> None:
        self.step_count += 1
        parts = []
        for weight, gradient, axis in self.masks.uses():
            known = torch.zeros_like(weight) if gradient is None else gradient  # None: not used by this batch
            parts.append(mask_gradient(weight, known, axis))
        found = self.masks.added(parts).abs()
        self.mean = self.mean.to(found)
        self.mean += (found - self.mean) / min(self.step_count, self.method.window)

    def _update(self) -> None:
        self.scores = self.mean.detach().double().cpu()
        plan = self._plan(self._by_group(self.scores))
        keep = torch.ones(self.total, dtype=torch.bool)
        for name, part in self._by_group(keep).items():
            part[list(plan.removed(name))] = False
        if self.kept is not None:
            back = int((keep & ~self.kept).sum())
            log.info("global_dynamic: %d filters are masked, %d came back", int((~keep).sum()), back)
        self.kept = keep
        self.masks.mask_(keep)

    def _plan(self, scores: Mapping[str, Tensor]) -> Plan:
        ranked = dict(scores)
        if self.method.normalise:
            ranked = {name: t / t.norm().clamp_min(torch.finfo(t.dtype).tiny) for name, t in scores.items()}
        counts = self.counts
        if counts is None:
            counts = counts_for(self.problem, list(ranked), "global", ranked)
        return plan_from_counts(self.problem, counts, ranked)

    def _by_group(self, flat: Tensor) -> dict[str, Tensor]:
        return dict(zip(self.widths, flat.split(list(self.widths.values())), strict=True))
