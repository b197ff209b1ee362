"""Keep what a removed residual branch adds on average: its last shift, in a parameter that reaches the same sum.

A branch that ends in a normalisation adds a number per channel on average, the shift, and nothing else where the gain
is zero. So does one that ends in a layer whose weights are zero: its bias. Taken out, the branch adds nothing. The
number can be kept exactly where another parameter adds to the same sum, and what that parameter changes is read by
nothing but this sum and branches that go: the shift of a projection, or that of the branch before in a pre-activation
network. Behind an activation there is no such place.
"""

from __future__ import annotations

import logging
from collections import Counter

from torch import Tensor, nn

from ..graph.branches import Branch, Versions
from ..graph.groups import ChannelGraph
from ..graph.norms import Flow
from ..graph.tape import Op, Ref
from ..graph.walk import parameters_of
from ..plan import Plan

log = logging.getLogger(__name__)
Version = tuple[int, int]


def branch_shifts(model: nn.Module, graph: ChannelGraph, plan: Plan) -> dict[str, Tensor]:
    """Return parameter -> what to add to it, so that the branches that go are missed less.

    Where a branch leaves a shift that nothing can take up, a warning is logged.
    """
    if not plan.removed_branches:
        return {}
    places = _Places(graph, [graph.branches[name] for name in plan.removed_branches])
    known, shifts = parameters_of(model, shared=True), dict[str, Tensor]()
    for branch in places.gone:
        shift = known.get(places.shift_of(branch, known) or "")
        if shift is None or not bool(shift.detach().any()):
            continue
        place = places.around(branch)
        if place is None:
            log.warning("%s: what this branch adds on average is lost with it: no shift nearby adds to it", branch.name)
            continue
        value = shift.detach().double().cpu()
        shifts[place] = shifts[place] + value if place in shifts else value
    return shifts


class _Places:
    """Which parameters are added to which sums."""

    def __init__(self, graph: ChannelGraph, gone: list[Branch]) -> None:
        self.gone, self.uses, self.state = gone, Versions(graph), graph.tape.state
        self.ops = graph.tape.ops
        self.removed = {index for branch in gone for index in branch.ops} | self.uses.dead
        flow = Flow(graph)
        self.norms = {norm.op: norm for norm in flow.norms}
        self.products = {product.op.index: product for product in flow.products}
        self.users = Counter(self.state[ref.number] for op in self.ops for ref in op.refs() if ref.number in self.state)

    def shift_of(self, branch: Branch, known: dict[str, nn.Parameter]) -> str | None:
        """Name the parameter that a branch is on average, if what it computes last is a normalisation or constant."""
        index = self.uses.read(self.ops[branch.add], branch.result.number)[0]
        if index in self.norms:
            return self.norms[index].shift
        product = self.products.get(index)
        is_constant = product is not None and not bool(known[product.site.weight].detach().any())
        return product.bias if product is not None and is_constant else None

    def around(self, branch: Branch) -> str | None:
        """Name a parameter that is added to what a branch is added to, and to nothing that is read elsewhere."""
        add = self.ops[branch.add]
        return self._place(self.uses.read(add, branch.shortcut.number), add)

    def _place(self, version: Version, reader: Op) -> str | None:
        others = self.uses.readers.get(version, set()) - self.removed - {reader.index}
        if others or version[0] < 0 or version in self.uses.final or version[0] in self.removed:
            return None
        op = self.ops[version[0]]
        own = self.norms.get(op.index)
        product = self.products.get(op.index)
        name = own.shift if own is not None else product.bias if product is not None else None
        if name is not None:
            return name if self.users[name] == 1 else None
        if op.name != "add" or not all(isinstance(ref, Ref) for ref in op.args[:2]):
            return None
        found = (self._place(self.uses.read(op, ref.number), op) for ref in op.args[:2])
        return next((place for place in found if place is not None), None)
