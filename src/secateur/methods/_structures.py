"""A factor on each structure of a network, channels and residual branches, held in its weights while these train.

A branch is multiplied by its factor in the parameters that scale its result last; a channel in the columns of the
weights that read it. The model holds the products all the time, so that whoever runs it, runs it with the factors; the
optimizer is shown the weights without them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from ..budget import kept_counts
from ..errors import BudgetError
from ..graph.branches import Branch, names_inside
from ..graph.walk import parameters_of
from ..plan import Plan
from ..surgery.feasible import feasible_branches
from ._channel_sides import Sides
from ._filter_masks import mask_gradient
from ._problem import Problem
from ._scores import lowest


@dataclass(frozen=True, eq=False)
class Structures:
    """What has a factor: branches first, then the channels of each group, in one flat vector.

    Attributes:
        branches: residual branches by name.
        groups: groups of channels by name, with what makes and reads them.
    """

    branches: Mapping[str, Branch]
    groups: Mapping[str, Sides]

    @property
    def count(self) -> int:
        """Number of factors."""
        return len(self.branches) + sum(sides.group.width for sides in self.groups.values())

    def of_branches(self, flat: Tensor) -> dict[str, float]:
        """Return branch -> its number of a flat vector."""
        return dict(zip(self.branches, flat[: len(self.branches)].tolist(), strict=True))

    def of_groups(self, flat: Tensor) -> dict[str, Tensor]:
        """Return group -> (width,) numbers of a flat vector."""
        widths = [sides.group.width for sides in self.groups.values()]
        return dict(zip(self.groups, flat[len(self.branches) :].split(widths), strict=True))

    def saved(self, problem: Problem, what: str) -> Tensor:
        """Return (structures,) float64: what each one alone saves of a cost."""
        costs, order = problem.graph.costs, list(problem.graph.groups)
        whole = costs.value(what, costs.widths)
        found = [whole - costs.value(what, costs.widths, (name,)) for name in self.branches]
        for name, sides in self.groups.items():
            one_less = costs.widths.copy()
            one_less[order.index(name)] -= 1
            found += [whole - costs.value(what, one_less)] * sides.group.width
        return torch.tensor(found, dtype=torch.float64)


class Factors:
    """Factors in the weights of a model.

    Attributes:
        parameters: those that hold factors, by name.
    """

    def __init__(self, model: nn.Module, structures: Structures) -> None:
        lines: dict[
            str, dict[int, Tensor]
        ] = {}  # parameter -> axis (-1 = all of it) -> number of the factor, -1 = none
        for number, branch in enumerate(structures.branches.values()):
            for name in branch.switch:
                lines.setdefault(name, {})[-1] = torch.tensor([number])
        known = parameters_of(model, shared=True)
        start = len(structures.branches)
        for sides in structures.groups.values():
            for place in sides.readers:
                own = lines.setdefault(place.tensor, {})
                line = own.setdefault(place.axis, torch.full((known[place.tensor].shape[place.axis],), -1))
                numbers = torch.arange(start, start + sides.group.width)
                line[place.index.flatten()] = numbers.repeat_interleave(place.index.shape[1])
            start += sides.group.width
        self.parameters = {name: known[name] for name in lines}
        self._lines, self._count = lines, structures.count
        self._bare: dict[str, Tensor] = {}

    @torch.no_grad()
    def take_out_(self, factors: Tensor) -> Tensor:
        """Show the weights without factors, and the gradients of these, in place; return dL/dfactor of each.

        Args:
            factors: (structures,) as the weights hold them.
        """
        gradient = torch.zeros(self._count + 1, dtype=factors.dtype, device=factors.device)
        for name, parameter in self.parameters.items():
            bare = self._bare_of(name, parameter)
            shown = self._laid(name, factors, parameter)
            if parameter.grad is not None:
                for axis, line in self._lines[name].items():
                    self._add_(gradient, line, axis, _without(shown, axis, bare), parameter.grad)
                for factor in shown.values():
                    parameter.grad.mul_(factor)
            parameter.copy_(bare)
        return gradient[:-1]

    @torch.no_grad()
    def put_in_(self, factors: Tensor) -> None:
        """Multiply the weights by their factors, in place."""
        for name, parameter in self.parameters.items():
            bare = self._bare_of(name, parameter).copy_(parameter)
            for factor in self._laid(name, factors, parameter).values():
                bare = bare * factor
            parameter.copy_(bare)

    def bare(self) -> dict[str, Tensor]:
        """Return the weights without factors; empty before the first step."""
        return {name: tensor.clone() for name, tensor in self._bare.items()}

    def load(self, bare: Mapping[str, Tensor]) -> None:
        """Take up what `bare` returned."""
        self._bare = {name: tensor.clone() for name, tensor in bare.items()}

    def _bare_of(self, name: str, parameter: nn.Parameter) -> Tensor:
        found = self._bare.get(name)
        if found is None or found.device != parameter.device:
            found = self._bare[name] = parameter.detach().clone() if found is None else found.to(parameter.device)
        return found

    def _laid(self, name: str, factors: Tensor, parameter: nn.Parameter) -> dict[int, Tensor]:
        """Factors of a parameter by axis, in shapes that broadcast to it."""
        padded = torch.cat([factors, factors.new_ones(1)])
        laid = {}
        for axis, line in self._lines[name].items():
            if line.device != factors.device:
                line = self._lines[name][axis] = line.to(factors.device)
            shape = [-1 if d == axis else 1 for d in range(parameter.ndim)]
            laid[axis] = padded[line].to(parameter.dtype).view(shape)
        return laid

    def _add_(self, total: Tensor, line: Tensor, axis: int, value: Tensor, gradient: Tensor) -> None:
        if axis < 0:
            found = mask_gradient(value.reshape(1, -1), gradient.reshape(1, -1), 0)
        else:
            found = mask_gradient(value, gradient, axis)
        index = torch.where(line < 0, self._count, line)
        total.index_add_(0, index, found.to(total.dtype))


def _without(shown: Mapping[int, Tensor], axis: int, bare: Tensor) -> Tensor:
    """The weight with all its factors but those along one axis."""
    for other, factor in shown.items():
        if other != axis:
            bare = bare * factor
    return bare


def plan_of(problem: Problem, structures: Structures, scores: Tensor) -> Plan:
    """Return the plan that removes the structures of lowest scores until the budget is met, and no more.

    Args:
        problem: model, graph, budget and limits.
        structures: what may go.
        scores: (structures,) float64; of equal ones the first goes first.

    Raises:
        BudgetError: the budget is not reachable.
    """
    graph, budget, names = problem.graph, problem.budget, list(structures.branches)
    every = list(graph.groups)
    owner = [-1 - k for k in range(len(names))]
    for name, sides in structures.groups.items():
        owner += [every.index(name)] * sides.group.width
    order = np.array(owner, dtype=np.int64)[torch.argsort(scores, stable=True).numpy()]
    whole = graph.costs.value(budget.of, graph.costs.widths)
    target = (1 - budget.remove) * whole + 1e-9 * whole

    def after(count: int) -> tuple[np.ndarray[tuple[int], np.dtype[np.int64]], tuple[str, ...]]:
        gone = order[:count]
        removed = np.bincount(gone[gone >= 0], minlength=len(every))
        return kept_counts(removed, graph.costs.widths, problem.limits), tuple(names[-1 - k] for k in gone[gone < 0])

    def left(count: int) -> float:
        return graph.costs.value(budget.of, *after(count))

    if left(len(order)) > target:
        most = np.floor(1000 * (1 - left(len(order)) / whole)) / 1000 if whole else 0.0
        raise BudgetError(
            f"asked to remove {budget.remove:.1%} of {budget.of}; at most {most:.1%} can go with the "
            f"{len(names)} residual branches and {len(structures.groups)} groups of channels that have factors. Ask "
            "for less, give factors to more structures, or protect less."
        )
    low, high = 0, len(order)
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if left(middle) <= target else (middle + 1, high)
    kept, branches = after(low)
    own = structures.of_groups(scores)
    removed = {n: lowest(own[n], int(graph.costs.widths[every.index(n)] - kept[every.index(n)])).tolist() for n in own}
    return Plan.from_removed(removed, graph.widths, branches)


def removable_branches(problem: Problem) -> tuple[dict[str, Branch], dict[str, str]]:
    """Return the residual branches that may go and have a place for a factor, and for the others why not."""
    found, why = dict[str, Branch](), dict[str, str]()
    trained = {name for name, p in parameters_of(problem.model, shared=True).items() if p.requires_grad}
    for name, branch in problem.graph.branches.items():
        frozen = [n for n in branch.switch if n not in trained]
        if branch.obstacle:
            why[name] = branch.obstacle
        elif not branch.is_proportional:
            why[name] = "its result is not proportional to the parameters that turn it off"
        elif frozen:
            why[name] = f"{frozen[0]!r} does not train"
        elif _is_protected(problem, branch):
            why[name] = "it is protected"
        else:
            found[name] = branch
    for name, reason in feasible_branches(problem.model, problem.graph, list(found)).items():
        why[name] = reason
        del found[name]
    shared = [n for branch in found.values() for n in branch.switch]
    twice = {n for n in shared if shared.count(n) > 1}
    for name in [name for name, branch in found.items() if twice.intersection(branch.switch)]:
        why[name] = "its last parameters are another branch's too"
        del found[name]
    return found, why


def _is_protected(problem: Problem, branch: Branch) -> bool:
    protect = problem.limits.protect
    inside = names_inside(branch.modules, protect)
    holds = [path for path in protect if names_inside([path], branch.modules)]
    return bool(inside or holds or branch.name in protect or "" in protect)


def is_off(values: Sequence[float] | Tensor, small: float) -> int:
    """Count numbers of at most this size."""
    return int((torch.as_tensor(values).abs() <= small).sum())
