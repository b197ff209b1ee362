"""A quadratic term on filters as a change of gradients: a factor times the weights less a level, laid out like them.

Two element-wise passes per step over the weights that it acts on, however many filters there are.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..errors import MethodError
from ..graph.groups import ChannelGraph
from ..graph.walk import parameters_of
from ..plan import Plan
from ._filters import JointFilters, positions_in
from ._zeroed import is_size, take_out_


def filters_of(model: nn.Module, graph: ChannelGraph, name: str, *, with_biases: bool = False) -> JointFilters:
    """Return where the filters of a group lie, as far as parameters make them; of weight norm the lengths.

    Args:
        model: whose parameters.
        graph: its channel graph.
        name: of the group.
        with_biases: append the bias of each filter.

    Raises:
        MethodError: no parameter makes the channels, or their filters differ in size.
    """
    group, known = graph.groups[name], parameters_of(model, shared=True)
    made = JointFilters.of(graph, group)
    places = {weight: index for weight, index in made.places.items() if weight in known and is_size(weight)}
    if not places:
        raise MethodError(f"no parameter makes the channels of {name!r}, so nothing can train: protect=[{name!r}].")
    modules = {member.module for member in group.members if member.tensor in places}
    for member in group.members if with_biases else ():
        is_vector = len(graph.shapes[member.tensor]) == 1
        if member.role == "out" and is_vector and member.module in modules and member.tensor in known:
            places[member.tensor] = positions_in(graph, group, member.tensor, member.axis)
    return JointFilters(name, places)


def laid_out(model: nn.Module, filters: JointFilters, rows: Tensor) -> dict[str, Tensor]:
    """Return numbers per filter weight in the shapes of the parameters: `JointFilters.read` backwards, adding up.

    Args:
        model: whose parameters.
        filters: where they lie.
        rows: (filters, weights).

    Returns:
        Name -> a tensor like the parameter, contiguous, 0 where no filter is.
    """
    found, start = {}, 0
    for name, index in filters.places.items():
        weight = model.get_parameter(name).detach()
        flat = weight.new_zeros(weight.numel())
        own = rows[:, start : start + index.shape[1]]
        flat.index_add_(0, index.flatten().to(flat.device), own.flatten().to(flat))
        found[name] = flat.view(weight.shape)
        start += index.shape[1]
    return found


def take_filters_out_(model: nn.Module, graph: ChannelGraph, plan: Plan, filters: Iterable[JointFilters]) -> None:
    """Zero the filters that a plan removes, in place, and let the layers that read them take over what they put out."""
    for own in filters:
        rows = torch.zeros(own.width, own.size)
        rows[list(plan.removed(own.group))] = 1.0
        with torch.no_grad():
            for name, mask in laid_out(model, own, rows).items():
                model.get_parameter(name).masked_fill_(mask != 0, 0.0)
    take_out_(model, graph, plan)


@dataclass
class WeightPull:
    """What is added to the gradient of some parameters: factor * weight - level.

    Attributes:
        factors: name -> a tensor like the parameter.
        levels: name -> likewise; may be empty.
    """

    factors: dict[str, Tensor]
    levels: dict[str, Tensor]

    @classmethod
    def of(
        cls,
        model: nn.Module,
        filters: Mapping[str, JointFilters],
        factors: Mapping[str, Tensor],
        levels: Mapping[str, Tensor],
    ) -> WeightPull:
        """Lay out factors and levels, one number per weight of each filter.

        Args:
            model: whose parameters.
            filters: group -> where its filters lie.
            factors: group -> (filters, weights), or what expands to it.
            levels: group -> likewise; may be empty.
        """
        made = cls({}, {})
        for name, own in filters.items():
            for numbers, into in ((factors, made.factors), (levels, made.levels)):
                if name in numbers:
                    rows = numbers[name].expand(own.width, own.size)
                    for weight, laid in laid_out(model, own, rows).items():
                        into[weight] = into[weight] + laid if weight in into else laid
        return made

    def add_to_gradients_(self, model: nn.Module) -> None:
        """Add it to the gradients, in place; parameters without one do not move."""
        weights = {name: model.get_parameter(name) for name in self.factors}
        moving = [name for name, weight in weights.items() if weight.grad is not None]
        gradients = [g for name in moving if (g := weights[name].grad) is not None]
        if not gradients:
            return
        with torch.no_grad():
            torch._foreach_addcmul_(gradients, [weights[n] for n in moving], [self.factors[n] for n in moving])
            if self.levels:
                torch._foreach_sub_(gradients, [self.levels[n] for n in moving])
