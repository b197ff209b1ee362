"""Pass importance scores back through a network: the vector-Jacobian product of its shadow.

The shadow is the network with |W| for W, no biases, the identity for activations and averages for maxima (see
`_shadow_rules`). It is run once along the tape, so that autograd knows it; then scores go back through it, through
additions, concatenations, views and reshapes without a rule for any of them.

Where the tape is one tensor wide, all scores are divided by one number, whose logarithm is kept: sums over paths of 100
layers would not fit into float64.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge

from ..errors import MethodError
from ..graph.groups import ChannelGraph
from ..graph.kernels import exact
from ..graph.labels import axes, compact
from ..graph.products import Product, products
from ..graph.tape import Op, Ref, tensors
from ..graph.walk import state_of
from ..train.batches import device_of
from ._scores import producers
from ._shadow_rules import NORMS, is_live, run

Array = np.ndarray[Any, Any]
APART = 8  # operations between two places where scores are divided
WALKED = frozenset(("view", "_unsafe_view", "permute", "transpose", "unsqueeze", "squeeze"))


@dataclass(frozen=True, eq=False)
class Response:
    """What one layer makes of a group's channels, after the normalisation that follows it directly, if one does.

    Attributes:
        group: the group's name.
        op: position on the tape.
        places: for each layer of labels, its channel numbers in the group (-1 = none), with size 1 along axes where
            they do not change.
    """

    group: str
    op: int
    places: tuple[Array, ...]

    def totals(self, scores: Tensor, width: int) -> Tensor:
        """Sum scores in the response's shape over everything that belongs to one channel, (width,)."""
        total = torch.zeros(width, dtype=torch.float64)
        for places in self.places:
            over = [d for d, size in enumerate(places.shape) if size == 1 and scores.shape[d] > 1]
            sums = (scores.sum(dim=over, keepdim=True) if over else scores).cpu().reshape(-1)
            where = torch.from_numpy(places.reshape(-1))
            total.index_add_(0, where[where >= 0], sums[where >= 0])
        return total

    def without(self, scores: Tensor, dead: Tensor) -> Tensor:
        """Return the scores with zeros at dead channels; `dead` is (width,) bool."""
        padded = torch.cat([dead, torch.zeros(1, dtype=torch.bool)])  # -1 = none is the last one
        for places in self.places:
            scores = scores.masked_fill(padded[torch.from_numpy(places)].to(scores.device), 0.0)
        return scores


@dataclass(frozen=True)
class Scaled:
    """Scores times the exponential of a logarithm."""

    scores: Tensor
    log_scale: float

    def plus(self, other: Scaled) -> Scaled:
        """Return the sum."""
        top = max(self.log_scale, other.log_scale)
        parts = [s.scores * math.exp(s.log_scale - top) for s in (self, other)]
        return Scaled(parts[0] + parts[1], top)


Seen = Callable[[Response, Scaled], Tensor]


@dataclass(frozen=True)
class _Cut:
    """A place where the tape is one tensor wide: after which operation, that tensor, and the inputs met before."""

    op: int
    edge: GradientEdge
    root_count: int


@dataclass(eq=False)
class ShadowNetwork:
    """A network's shadow, run as far as the layers whose inputs' scores are given.

    Attributes:
        graph: the network's channel graph.
        finals: products at whose input scores enter.
        responses: what makes the channels of the groups.
    """

    graph: ChannelGraph
    finals: Sequence[Product]
    responses: Sequence[Response]
    _values: dict[int, Tensor] = field(default_factory=dict)
    _roots: list[Tensor] = field(default_factory=list)
    _cuts: list[_Cut] = field(default_factory=list)
    _entries: dict[int, GradientEdge] = field(default_factory=dict)  # position on the tape -> edge
    _see: Callable[[Response, Tensor], Tensor] | None = None

    @classmethod
    def of(
        cls, model: nn.Module, graph: ChannelGraph, finals: Sequence[Product], names: Sequence[str]
    ) -> ShadowNetwork:
        """Run the shadow of `model`; scores will be wanted for the groups `names`.

        Raises:
            MethodError: an operation cannot be run.
        """
        network = cls(graph, finals, responses_of(graph, names))
        with torch.enable_grad():
            network._run(model)
        return network

    def send(self, scores: Mapping[int, Tensor], see: Seen) -> None:
        """Pass scores back, and call ``see(response, scores)`` once at each response, the last on the tape first.

        Args:
            scores: position of a final product -> scores in the shape of its input.
            see: is given (width,) scores of the group's channels; returns (width,) bool, True = this channel's score is
                zeroed before it is passed on.

        Raises:
            MethodError: scores come to an operation that has no shadow, or leave the finite numbers.
        """
        log_scale, dead = 0.0, dict[int, Tensor]()

        def hooked(response: Response, found: Tensor) -> Tensor:
            if id(response) not in dead:  # a tensor that ends one stretch and begins the next comes twice
                if not bool(torch.isfinite(found).all()):
                    raise MethodError(
                        f"the scores of {response.group!r} are not finite: sums over all paths between it and the "
                        "final layer do not fit into float64. Name a layer nearer to it with classifier=."
                    )
                own = response.totals(found, self.graph.groups[response.group].width)
                dead[id(response)] = see(response, Scaled(own, log_scale))
            return response.without(found, dead[id(response)])

        self._see, carried = hooked, None
        cuts = [None, *self._cuts, None]
        try:
            for start, end in reversed([*itertools.pairwise(cuts)]):
                outputs = [(end.edge, carried)] if end is not None and carried is not None else []
                for position, entry in self._entries.items():
                    is_here = (start is None or position > start.op) and (end is None or position <= end.op)
                    if is_here and position in scores:
                        outputs.append((entry, scores[position] * math.exp(-log_scale)))
                carried = self._stretch(outputs, start) if outputs else None
                top = float(carried.abs().max()) if carried is not None else 0.0
                if carried is not None and top > 0 and math.isfinite(top):
                    carried, log_scale = carried / top, log_scale + math.log(top)
        finally:
            self._see = None

    def _stretch(self, outputs: list[tuple[Any, Tensor]], start: _Cut | None) -> Tensor | None:
        inputs: list[Any] = [start.edge, *self._roots[start.root_count :]] if start is not None else self._roots
        edges, given = [edge for edge, _ in outputs], [scores for _, scores in outputs]
        found = torch.autograd.grad(edges, inputs, given, retain_graph=True, allow_unused=True)
        return found[0] if start is not None else None

    def _run(self, model: nn.Module) -> None:
        ops = self.graph.tape.ops[: max(p.op.index for p in self.finals)]
        fill = _Filler(model, self.graph, self._values, self._roots)
        last = _last_uses(ops, self.finals)
        watched: dict[int, list[Response]] = {}
        for response in self.responses:
            watched.setdefault(response.op, []).append(response)
        live: set[int] = set()
        for op in ops:
            self._enter(op.index, fill)
            outs = fill.result(op)
            for ref, tensor in zip(op.outs(), outs, strict=True):
                self._values[ref.number] = tensor
            if op.index in watched and is_live(outs[0]):
                self._hook(outs[0], watched[op.index])
            live |= {ref.number for ref in op.refs() + op.outs() if is_live(self._values.get(ref.number))}
            for number in [n for n in live if last.get(n, -1) <= op.index]:
                live.discard(number)
            for ref in [*op.refs(), *op.outs()]:
                if last.get(ref.number, -1) <= op.index:
                    self._values.pop(ref.number, None)
            if len(live) == 1 and (not self._cuts or op.index - self._cuts[-1].op >= APART):
                edge = get_gradient_edge(self._values[next(iter(live))])
                self._cuts.append(_Cut(op.index, edge, len(self._roots)))
        self._enter(len(ops), fill)
        self._values.clear()

    def _enter(self, position: int, fill: _Filler) -> None:
        """Note where scores enter: at the input of a final product, as it stands when the product runs."""
        for product in self.finals:
            if product.op.index == position:
                source = fill.value(product.source)
                if not is_live(source):
                    raise MethodError(
                        f"what {product.module or 'the model'} reads does not come from a layer: there is nothing to "
                        "pass scores to. Name another layer with classifier=."
                    )
                self._entries[position] = get_gradient_edge(source)

    def _hook(self, tensor: Tensor, responses: list[Response]) -> None:
        def seen(scores: Tensor) -> Tensor:
            for response in responses:
                if self._see is not None:
                    scores = self._see(response, scores)
            return scores

        tensor.register_hook(seen)


class _Filler:
    """Runs one operation of the tape after another on the shadow's tensors."""

    def __init__(self, model: nn.Module, graph: ChannelGraph, values: dict[int, Tensor], roots: list[Tensor]) -> None:
        self.state = dict(state_of(model, shared=True))
        self.names, self.values, self.roots = graph.tape.state, values, roots
        self.device = device_of(model)
        self.static: set[int] = set()

    def value(self, ref: Ref) -> Tensor:
        """Return a tensor of the tape: a parameter, an earlier result, or an input."""
        if ref.number in self.values:
            return self.values[ref.number]
        if ref.number in self.names:
            found = self.state[self.names[ref.number]].detach()
            self.static.add(ref.number)
            self.values[ref.number] = own = found.to(_wide(found.dtype), copy=True)  # the forward may write into it
            return own
        self.values[ref.number] = made = self._root(ref)
        return made

    def _root(self, ref: Ref) -> Tensor:
        """Return an input of the model: its values do not matter, scores end there."""
        if not ref.dtype.is_floating_point:
            return torch.zeros(ref.shape, dtype=ref.dtype, device=self.device)
        root = torch.zeros(ref.shape, dtype=torch.float64, device=self.device, requires_grad=True)
        self.roots.append(root)
        return root.clone()

    def result(self, op: Op) -> list[Tensor]:
        """Run one operation; return its results, (as many as on the tape)."""
        args, kwargs = self._filled(op.args), self._filled(op.kwargs)
        if kwargs.get("device") is not None:
            kwargs["device"] = self.device
        if all(ref.number in self.static for ref in op.refs()):
            self.static |= {ref.number for ref in op.outs()}
        elif "embedding" in op.name:
            return [self._root(ref) for ref in op.outs()]
        try:
            if any(is_live(t) for t in tensors((args, kwargs))):
                outs = tensors(run(op, args, kwargs))
            else:
                outs = tensors(exact(op.func, args, kwargs))
        except (RuntimeError, TypeError, ValueError, IndexError) as error:
            raise MethodError(
                f"the shadow of {op.func} in {op.module or 'the model'} cannot be run: {error}. Name a layer before it "
                "with classifier=, or use another method for this model."
            ) from error
        return [t.to(_wide(t.dtype)) for t in outs]

    def _filled(self, value: Any) -> Any:
        if isinstance(value, Ref):
            return self.value(value)
        if isinstance(value, dict):
            return {key: self._filled(item) for key, item in value.items()}
        return type(value)([self._filled(item) for item in value]) if isinstance(value, (list, tuple)) else value


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype.is_floating_point else dtype


def _last_uses(ops: Sequence[Op], finals: Sequence[Product]) -> dict[int, int]:
    last = {ref.number: op.index for op in ops for ref in op.refs()}
    for product in finals:
        number = product.source.number
        last[number] = max(last.get(number, -1), product.op.index)
    return last


def final_products(graph: ChannelGraph) -> list[Product]:
    """Return the products from which an output is reached without another product, in the order of the forward pass."""
    known = {p.op.index: p for p in products(graph)}
    wanted = {ref.number for ref in graph.tape.outputs}
    found = []
    for op in reversed(graph.tape.ops):
        if not any(ref.number in wanted for ref in op.outs()):
            continue
        if op.index in known:
            found.append(known[op.index])
            continue
        wanted |= {ref.number for ref in op.refs()}
    return found[::-1]


def responses_of(graph: ChannelGraph, names: Sequence[str]) -> list[Response]:
    """Return where on the tape the channels of these groups are made, in the order of the forward pass."""
    origins: dict[int, set[str]] = {number: {name} for number, name in graph.tape.state.items()}
    makers: dict[str, list[str]] = {}
    for name in names:
        for member in producers(graph, graph.groups[name]):
            makers.setdefault(member.tensor, []).append(name)
    uses = _uses(graph.tape.ops)
    found = []
    for op in graph.tape.ops:
        refs = op.refs()
        if refs and all(ref.number in origins for ref in refs):
            own = set().union(*(origins[ref.number] for ref in refs))
            origins.update((ref.number, own) for ref in op.outs())
            continue
        tensors_used = {t for ref in refs for t in origins.get(ref.number, ())}
        for name in dict.fromkeys(n for t in sorted(tensors_used) for n in makers.get(t, ())):
            if response := _response(graph, name, op, uses):
                found.append(response)
    return found


def _response(graph: ChannelGraph, name: str, maker: Op, uses: Mapping[int, list[Op]]) -> Response | None:
    """Return where the channels stand after the normalisation that belongs to a layer; None if it makes none."""
    normed = next((op for op in _followers(maker, uses) if op.name in NORMS), None)
    for op in (normed, maker):
        if op is None:
            continue
        places = _places(graph, name, op)
        if places:
            return Response(name, op.index, places)
    return None


def _followers(op: Op, uses: Mapping[int, list[Op]]) -> Iterator[Op]:
    """Yield what follows an operation while nothing else reads its result, up to the first that is no mere movement."""
    outs = op.outs()
    while len(outs) == 1 and len(uses.get(outs[0].number, [])) == 1:
        op = uses[outs[0].number][0]
        yield op
        if op.name not in WALKED:
            return
        outs = op.outs()


def _uses(ops: Sequence[Op]) -> dict[int, list[Op]]:
    uses: dict[int, list[Op]] = {}
    for op in ops:
        for number in {ref.number for ref in op.refs()}:
            uses.setdefault(number, []).append(op)
    return uses


def _places(graph: ChannelGraph, name: str, op: Op) -> tuple[Array, ...]:
    position = np.full(int(graph.component.max(initial=0)) + 1, -1)
    position[graph.groups[name].channels] = np.arange(graph.groups[name].width)
    found = [position[graph.component[compact(layer).numpy()]] for layer in graph.op_layers[op.index][0] if axes(layer)]
    return tuple(places for places in found if (places >= 0).any())
