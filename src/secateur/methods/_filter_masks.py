"""Masks over the filters of a whole network, held in the weights that read them while these train."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn

from ..graph.walk import parameters_of
from ._channel_sides import Place, Sides, channel_sides
from ._problem import Problem
from ._taking_part import tell_left_whole


def mask_gradient(weight: Tensor, gradient: Tensor, axis: int) -> Tensor:
    """Return dL/dm of a mask that multiplies a weight along one axis, whatever the mask is.

    Source: Lin et al. 2018, the global discriminative function; its absolute value is T.

    Args:
        weight: W, not masked.
        gradient: dL/d(m W), in the same shape.
        axis: which axis the mask runs along.

    Returns:
        (length of the axis,) in float32 or better.

    >>> mask_gradient(torch.tensor([[1.0, 2.0], [3.0, 4.0]]), torch.tensor([[1.0, 0.5], [-1.0, 0.5]]), axis=1).tolist()
    [-2.0, 3.0]
    """
    product = weight * gradient
    rest = [d for d in range(product.ndim) if d != axis]
    dtype = torch.float32 if product.dtype in (torch.float16, torch.bfloat16) else product.dtype
    return product.sum(dim=rest, dtype=dtype) if rest else product.to(dtype)


def maskable(problem: Problem, names: Sequence[str], method: str) -> dict[str, Sides]:
    """Return the groups that nothing but columns of trained weights reads.

    Raises:
        MethodError: there is none.
    """
    trained = {name for name, p in parameters_of(problem.model, shared=True).items() if p.requires_grad}
    found, why = dict[str, Sides](), dict[str, str]()
    for name, sides in channel_sides(problem.model, problem.graph, names).items():
        fixed = [place.tensor for place in sides.readers if place.tensor not in trained]
        if sides.obstacle or fixed or not sides.readers:
            why[name] = sides.obstacle or (f"{fixed[0]!r} does not train" if fixed else "no weight reads them")
        else:
            found[name] = sides
    instead = "scores weights, e.g. method='l1_filter'"
    tell_left_whole(method, "mask", why, is_all=not found, instead=instead)
    return found


class FilterMasks:
    """Where the filters of all groups lie in the parameters, as one number per filter over the whole network.

    Each axis on which filters lie has a line: the number of the filter at each of its places, -1 where there is none.

    Attributes:
        readers: parameters with columns that read filters.
        total: number of filters.
    """

    def __init__(
        self,
        columns: Mapping[tuple[str, int], Tensor],
        rows: Mapping[tuple[str, int], Tensor],
        parameters: Mapping[str, nn.Parameter],
        total: int,
    ) -> None:
        self._columns, self._rows, self.total = columns, rows, total
        self.readers = {name: parameters[name] for name, _ in columns}
        self._all = {name: parameters[name] for name in dict.fromkeys([*self.readers, *(name for name, _ in rows)])}
        self._index: Tensor | None = None
        self._hidden: dict[str, Tensor] = {}  # what the masks hide of each reader, zero elsewhere
        self._open: list[Tensor] = []  # 1 = trains, of each parameter
        self._held: list[Tensor] | None = None  # what is masked of each parameter, as it is
        self._kept: Tensor | None = None

    @classmethod
    def of(cls, groups: Mapping[str, Sides], parameters: Mapping[str, nn.Parameter]) -> FilterMasks:
        columns: dict[tuple[str, int], Tensor] = {}
        rows: dict[tuple[str, int], Tensor] = {}
        start = 0
        for sides in groups.values():
            for place in sides.readers:
                _number_(columns, place, parameters[place.tensor], start)
            for place in sides.makers:
                if place.tensor in parameters:
                    _number_(rows, place, parameters[place.tensor], start)
            start += sides.group.width
        return cls(columns, rows, parameters, start)

    def uses(self) -> Iterator[tuple[Tensor, Tensor | None, int]]:
        """Give each axis that reads filters: the weight as if nothing were masked, its gradient, and which axis."""
        for name, axis in self._columns:
            parameter = self.readers[name]
            hidden = self._hidden.get(name)
            yield (parameter if hidden is None else parameter + hidden), parameter.grad, axis

    def added(self, parts: Sequence[Tensor]) -> Tensor:
        """Add up one number per place of each axis of `uses`: (filters,)."""
        found = torch.cat([part.to(parts[0].device) for part in parts])
        if self._index is None or self._index.device != found.device:
            lines = torch.cat(list(self._columns.values()))
            self._index = torch.where(lines < 0, self.total, lines).to(found.device)
        return found.new_zeros(self.total + 1).index_add_(0, self._index, found)[:-1]

    def mask_(self, kept: Tensor) -> None:
        """Hide the columns that read masked filters, and bring back those that are open again."""
        for name, parameter in self.readers.items():
            whole = parameter.detach() + self._hidden[name] if name in self._hidden else parameter.detach().clone()
            is_open = self._mask(name, self._columns, kept, parameter)
            self._hidden[name] = whole * (1 - is_open)
            parameter.copy_(whole * is_open)
        self._freeze(kept)

    def hold_back_(self) -> None:
        """Zero the gradients of what is masked, and note its values."""
        self._here()
        if self._held is None:
            pairs = zip(self._all.values(), self._open, strict=True)
            self._held = [parameter.detach() * (1 - is_open) for parameter, is_open in pairs]
        pairs = zip(self._all.values(), self._open, strict=True)
        found = [(p.grad, is_open) for p, is_open in pairs if p.grad is not None]
        torch._foreach_mul_([grad for grad, _ in found], [is_open for _, is_open in found])

    def put_back_(self) -> None:
        """Give what is masked the values that it had."""
        if self._held is not None:
            own = [parameter.detach() for parameter in self._all.values()]
            torch._foreach_mul_(own, self._open)
            torch._foreach_add_(own, self._held)

    def hidden(self) -> dict[str, Tensor]:
        """Return what the masks hide, to be saved."""
        return dict(self._hidden)

    def load(self, hidden: Mapping[str, Tensor], kept: Tensor | None) -> None:
        """Take up what `hidden` returned, under these masks."""
        self._hidden = {name: t.to(self.readers[name].device) for name, t in hidden.items()}
        if kept is not None:
            self._freeze(kept)

    def _freeze(self, kept: Tensor) -> None:
        self._kept, self._open, self._held = kept, [], None

    def _here(self) -> None:
        """Lay the masks out on the parameters' devices, once for each setting."""
        if not self._open and self._kept is not None:
            for name, parameter in self._all.items():
                columns, rows = (self._mask(name, k, self._kept, parameter) for k in (self._columns, self._rows))
                self._open.append(columns * rows)

    def _mask(self, name: str, lines: Mapping[tuple[str, int], Tensor], kept: Tensor, parameter: Tensor) -> Tensor:
        """Return 1 where a parameter trains and 0 where it is masked, in a shape that broadcasts to it."""
        mask = torch.ones((1,) * parameter.ndim, dtype=parameter.dtype, device=parameter.device)
        for (owner, axis), line in lines.items():
            if owner == name:
                is_open = (line < 0) | kept[line.clamp_min(0)]
                mask = mask * is_open.to(mask).view([-1 if d == axis else 1 for d in range(parameter.ndim)])
        return mask


def _number_(lines: dict[tuple[str, int], Tensor], place: Place, parameter: Tensor, start: int) -> None:
    """Write the numbers of a group's filters into the line of an axis, in place."""
    key = (place.tensor, place.axis)
    line = lines.setdefault(key, torch.full((parameter.shape[place.axis],), -1))
    numbers = torch.arange(start, start + len(place.index))
    line[place.index.flatten()] = numbers.repeat_interleave(place.index.shape[1])
