"""The gains of normalisations that penalties push towards zero: as one flat vector, and one run of such a method."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from ..errors import MethodError
from ..graph.groups import ChannelGroup
from ..graph.norms import Flow, Norm
from ..graph.select import SELECT
from ..graph.walk import parameters_of
from ..plan import Plan
from ..recovery.fold import fold_constants
from ..surgery.mask import mask
from ..surgery.selection import selected
from ..train.attachment import Moment
from ._attached import Attached, counts_now
from ._filters import positions_in
from ._history import Standing
from ._problem import Decision, Problem
from ._scores import Allocation, counts_for, eligible, plan_from_scores
from ._taking_part import check_same_settings, own_state, settings_of

log = logging.getLogger(__name__)
SMALL = 1e-3  # of the largest scale: below this a penalty has done its work. Ours; it decides over messages only.


@dataclass(frozen=True, eq=False)
class Scales:
    """Which gains scale the channels of which groups: places in one flat vector of all of them.

    Attributes:
        names: the gains, in the order of the forward pass.
        shapes: their shapes.
        places: group -> (width, places per channel) positions in the flat vector.
        norms: group -> the normalisations that these gains belong to.
    """

    names: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]
    places: Mapping[str, Tensor]
    norms: Mapping[str, tuple[Norm, ...]]

    @classmethod
    def of(cls, problem: Problem, groups: Iterable[str], method: str) -> Scales:
        """Find the gains behind some groups; groups without any are left out, and named in the log.

        Raises:
            MethodError: no group has one, or one is frozen.
        """
        graph, flow, parameters = problem.graph, Flow(problem.graph), parameters_of(problem.model, shared=True)
        behind = {norm.gain.rpartition(".")[0]: norm for norm in flow.norms}
        chosen = {name: behind[path] for name, path in graph.selecting.items() if path in behind}
        found = {n: [chosen[n]] if n in chosen else scaling(flow, graph.groups[n]) for n in groups}
        norms = {name: own for name, every in found.items() if (own := [n for n in every if n.gain in parameters])}
        if not norms:
            names = ", ".join(list(found)[:4])
            raise MethodError(
                f"{method} trains the gains of normalisations, and none follows any of the {len(found)} groups that "
                f"may lose channels ({names}): use a method that reads weights, e.g. method='l1_filter'."
            )
        if len(norms) < len(found):
            log.info("no normalisation, left whole: %s", ", ".join(n for n in found if n not in norms))
        wanted = {norm.gain for own in norms.values() for norm in own}
        gains = {norm.gain: graph.shapes[norm.gain] for norm in flow.norms if norm.gain in wanted}
        if frozen := [name for name in gains if not parameters[name].requires_grad]:
            raise MethodError(
                f"{method} trains gains, and {', '.join(frozen[:4])} {'do' if len(frozen) > 1 else 'does'} not require "
                "gradients: set requires_grad, or protect the channels of these layers."
            )
        starts = dict(zip(gains, _starts(gains.values()), strict=True))
        places = {}
        for name, own in norms.items():
            if name in chosen:
                places[name] = starts[own[0].gain] + _selected_by(problem, name)
                continue
            group, once = graph.groups[name], dict.fromkeys(norm.gain for norm in own)
            axis = {member.tensor: member.axis for member in group.members}
            parts = [positions_in(graph, group, gain, axis[gain]) + starts[gain] for gain in once]
            places[name] = torch.cat(parts, dim=1)
        return cls(tuple(gains), tuple(gains.values()), places, {n: tuple(own) for n, own in norms.items()})

    def parameters(self, model: nn.Module) -> list[nn.Parameter]:
        """Return the gains of a model."""
        return [model.get_parameter(name) for name in self.names]

    def magnitudes(self, model: nn.Module) -> dict[str, Tensor]:
        """Return group -> (width,) float64, the mean size of each channel's gains."""
        flat = torch.cat([gain.detach().reshape(-1).double().cpu() for gain in self.parameters(model)]).abs()
        return {name: flat[index].mean(dim=1) for name, index in self.places.items()}

    def spread(self, values: Mapping[str, Tensor]) -> list[Tensor]:
        """Lay out one number per channel in the shapes of the gains, float64; 0 where a gain is not of these groups.

        Args:
            values: group -> (width,), or a scalar tensor for all channels.
        """
        sizes = [_size(shape) for shape in self.shapes]
        flat = torch.zeros(sum(sizes), dtype=torch.float64)
        for name, index in self.places.items():
            flat[index] = values[name].double().reshape(-1, 1).expand_as(index)
        return [part.view(shape) for part, shape in zip(flat.split(sizes), self.shapes, strict=True)]


def _selected_by(problem: Problem, name: str) -> Tensor:
    """Return (width, 1) which element of the norm's gain scales each channel of a selection."""
    graph, path = problem.graph, problem.graph.selecting[name]
    index = f"{path}.{SELECT}.index"
    where = positions_in(graph, graph.groups[name], index, 0)
    return selected(problem.model, path, graph.shapes[index][0]).cpu()[where]


def _size(shape: tuple[int, ...]) -> int:
    return torch.Size(shape).numel()


def _starts(shapes: Iterable[tuple[int, ...]]) -> list[int]:
    starts = [0]
    for shape in shapes:
        starts.append(starts[-1] + _size(shape))
    return starts[:-1]


def scaling(flow: Flow, group: ChannelGroup) -> list[Norm]:
    """Return the normalisations that scale a group's channels where they are made.

    One behind a depthwise convolution scales channels that were scaled before, so it is left out, unless it is all
    there is.
    """
    every = flow.norms_on(group)
    depthwise = {product.site.weight for product in flow.products if product.reads_one}
    first = []
    for norm in every:
        behind = flow.weights_behind(group, norm)
        if not behind or behind - depthwise:
            first.append(norm)
    return first or every


def soft_threshold(values: list[Tensor], by: list[Tensor]) -> list[Tensor]:
    """Return sign(x) * max(|x| - t, 0) for each tensor x and its t: the proximal step of t * |x|.

    >>> soft_threshold([torch.tensor([0.5, -0.5, 0.1])], [torch.tensor([0.25, 0.25, 0.25])])[0].tolist()
    [0.25, -0.25, 0.0]
    """
    inside = torch._foreach_clamp_min(torch._foreach_clamp_max(values, by), torch._foreach_neg(by))
    return list(torch._foreach_sub(values, inside))


class _Settings(Protocol):
    @property
    def residual(self) -> str: ...

    @property
    def allocation(self) -> Allocation: ...


class ScaleRun(Attached):
    """One run of a method that penalises gains and cuts by their size.

    Attributes:
        problem: the model that is trained, in place, its graph and budget.
        method: the frozen dataclass whose run this is.
        name: of the method, in messages and in the state.
        scales: the gains that it acts on.

    Raises:
        BudgetError: the budget is not reachable, told before anything is trained.
        MethodError: no normalisation, or weights are not finite real numbers.
        NothingToPrune: no group is free to go.
    """

    def __init__(self, name: str, method: _Settings, problem: Problem) -> None:
        super().__init__(problem)
        self.name, self.method = name, method
        groups = eligible(problem, method.residual)
        problem.check_weights(groups)
        self.scales = Scales.of(problem, groups, name)
        self._check_budget()
        self._checked: torch.optim.Optimizer | None = None
        self._cached: tuple[nn.Module, list[nn.Parameter]] | None = None

    def _check_budget(self) -> None:
        allocation, sizes = self.method.allocation, self.scales.magnitudes(self.model)
        # "sensitivity" would run the model, which is not trained yet: how much can go is the same for all of them.
        known = "global" if allocation == "sensitivity" else allocation
        counts_for(self.problem, list(sizes), known, sizes)

    def gains(self, moment: Moment) -> list[nn.Parameter]:
        """Return the gains of the model in training, once it is clear that the optimizer holds them.

        Raises:
            MethodError: it does not hold one.
        """
        if self._cached is None or self._cached[0] is not moment.model:
            self._cached = moment.model, self.scales.parameters(moment.model)
        gains = self._cached[1]
        if self._checked is not moment.optimizer:
            held = {id(parameter) for group in moment.optimizer.param_groups for parameter in group["params"]}
            if absent := [n for n, gain in zip(self.scales.names, gains, strict=True) if id(gain) not in held]:
                raise MethodError(
                    f"{self.name} trains gains, and the optimizer does not hold {', '.join(absent[:4])}: "
                    "give it model.parameters(), or protect the channels of these layers."
                )
            self._checked = moment.optimizer
        return gains

    def standing(self) -> Standing:
        """Return the sizes of gains; out are those that a penalty has brought down to (nearly) zero."""
        scores = self.scales.magnitudes(self.model)
        small = SMALL * max(float(own.max()) for own in scores.values())
        out = {name: int((own <= small).sum()) for name, own in scores.items()}
        return Standing(scores, counts_now(self.problem, self.method.allocation, scores), out)

    def finish(self) -> Decision:
        """Rank the channels by the mean size of their gains and meet the budget exactly; the model stays as it is.

        Raises:
            BudgetError: the budget is not reachable.
            MethodError: gains are not finite.
        """
        scores = self.scales.magnitudes(self.model)
        if bad := [name for name, own in scores.items() if not bool(own.isfinite().all())]:
            raise MethodError(f"{self.name}: the gains of {', '.join(bad[:4])} are not finite after training.")
        plan = plan_from_scores(self.problem, scores, self.method.allocation)
        self._report(plan, scores)
        return Decision(plan, scores=scores)

    def _report(self, plan: Plan, scores: Mapping[str, Tensor]) -> None:
        small = SMALL * max(float(own.max()) for own in scores.values())
        if empty := [name for name, own in scores.items() if float(own.max()) <= small]:
            log.warning(
                "the penalty left no scale to speak of in %s: at least %d channels stay there. Lower it.",
                *(", ".join(empty), self.problem.limits.min_keep),
            )
        gone = [float(scores[name][i]) for name in plan for i in plan.removed(name)]
        reached = sum(scale <= small for scale in gone)
        if reached < len(gone):
            log.warning(
                "training brought %d of the %d channels that go to (nearly) zero; the largest of their scales is %.3g. "
                "Train longer, raise the penalty, or remove less.",
                *(reached, len(gone), max(gone)),
            )

    def state_dict(self) -> dict[str, Any]:
        """Return whose state it is; the gains themselves are the model's."""
        return {"method": self.name, "settings": settings_of(self.method)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Make sure that the run that is taken up is one of this method, with these settings.

        Raises:
            MethodError: it is another.
        """
        check_same_settings(self.name, own_state(state, self.name)["settings"], settings_of(self.method))


def folded(decision: Decision, problem: Problem) -> Decision:
    """Return a decision whose model already holds, in its biases, what the removed channels contribute on average.

    These channels are then zero in it, so that to fold once more changes nothing.
    """
    if decision.model is None or not decision.plan.removed_count:
        return decision
    full = fold_constants(decision.model, problem.graph, decision.plan)
    return replace(decision, model=mask(full, problem.graph, decision.plan))
