"""How much the layers that read a group suffer when some of its channels are masked, each layer on its own.

What a layer gives is linear in what it reads, so the masked channels' share is computed and taken off; nothing else of
the network sees the mask. What follows the layer directly (batch norm with the statistics of its own batch, activation)
is applied to both.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from ..errors import MethodError
from ..graph.groups import ChannelGraph
from ..graph.products import Product, Site, products, readers
from ..graph.tape import Op, Ref
from ..graph.walk import state_of
from ..train.task import Inputs
from ..train.watching import Seen, watch
from ._shadow_rules import LIPSCHITZ, NORMS

VIEWS = frozenset(("view", "_unsafe_view"))
AFTER = LIPSCHITZ - {"_to_copy"}


def relative_damage(base: Tensor, scored: Tensor) -> float:
    """Return ``||base - scored||^2 / ||base||^2``; lower = the mask costs less. 0 where nothing changes.

    Source: Ding et al. 2019, section 3.3.

    Args:
        base: any shape: what a layer gives.
        scored: what it gives under the mask.

    >>> relative_damage(torch.tensor([3.0, 4.0]), torch.tensor([3.0, 2.0]))
    0.16
    """
    change = float((base - scored).double().square().sum())
    size = float(base.double().square().sum())
    if change == 0:
        return 0.0
    return change / size if size else torch.inf


@dataclass(frozen=True, eq=False)
class Consumer:
    """A layer that reads a group.

    Attributes:
        product: the layer.
        columns: group -> (columns,) which of its channels each column is, -1 = none.
        after: operations that follow it directly, up to the first that needs more than its result.
        source: number of the tensor that goes into each of them.
    """

    product: Product
    columns: dict[str, Tensor]
    after: tuple[tuple[Op, int], ...]

    def response(self, out: Tensor, state: Mapping[str, Tensor], names: Mapping[int, str]) -> Tensor:
        """Return what the layer gives after norm and activation."""
        for op, number in self.after:
            if "batch_norm" in op.name or "group_norm" in op.name:
                gamma, beta = (state[names[r.number]] if isinstance(r, Ref) else None for r in op.args[1:3])
                if "group_norm" in op.name:
                    out = torch.group_norm(out, op.args[6], gamma, beta, op.args[7])
                else:
                    out = torch.batch_norm(out, gamma, beta, None, None, True, 0.0, op.args[-1], False)
                continue
            args = [_filled(value, number, out, state, names) for value in op.args]
            found = op.func(*args, **op.kwargs)
            out = found if isinstance(found, Tensor) else found[0]
        return out

    def share(self, seen: Seen, masked: Tensor) -> Tensor:
        """Return what masked columns contribute to the layer's result; `masked` is (columns,) bool."""
        source, weight = seen.source, seen.weight
        if not seen.is_convolution:
            axis = -2 if seen.is_weight_first else -1
            part = _only(source, masked, axis)
            return torch.matmul(weight, part) if seen.is_weight_first else torch.matmul(part, weight)
        return torch.convolution(_only(source, masked, 1), weight, None, *seen.args[3:9])


def _only(source: Tensor, masked: Tensor, axis: int) -> Tensor:
    view = [1] * source.ndim
    view[axis] = -1
    return source.masked_fill(~masked.to(source.device).view(view), 0.0)


def _filled(value: object, number: int, out: Tensor, state: Mapping[str, Tensor], names: Mapping[int, str]) -> object:
    if not isinstance(value, Ref):
        return value
    return out if value.number == number else state[names[value.number]]


@dataclass(eq=False)
class Damages:
    """Measures damages on batches.

    Attributes:
        graph: the channel graph.
        consumers: every layer that reads one of the groups.
    """

    graph: ChannelGraph
    consumers: Sequence[Consumer] = field(default_factory=list)

    @classmethod
    def of(cls, graph: ChannelGraph, names: Sequence[str]) -> Damages:
        """Find the layers that read these groups."""
        found: dict[Site, Consumer] = {}
        every = products(graph)
        uses: dict[int, list[Op]] = {}
        for op in graph.tape.ops:
            for number in {ref.number for ref in op.refs()}:
                uses.setdefault(number, []).append(op)
        for name in names:
            for product in readers(graph, graph.groups[name], every):
                if product.site not in found:
                    found[product.site] = Consumer(product, {}, _after(graph, product, uses))
                channels = product.channels_of(graph, graph.groups[name])
                own = channels.reshape(-1) if product.is_convolution or product.groups == 1 else channels[0]
                found[product.site].columns[name] = torch.from_numpy(own)
        return cls(graph, list(found.values()))

    @property
    def names(self) -> set[str]:
        """Groups that some layer reads."""
        return {name for consumer in self.consumers for name in consumer.columns}

    def measure(self, model: nn.Module, inputs: Inputs, masks: Mapping[str, Tensor]) -> dict[str, float]:
        """Return group -> damage of its mask, summed over the layers that read it.

        Args:
            model: runs in evaluation mode, without gradients; nothing of it changes.
            inputs: positional and keyword inputs.
            masks: group -> (width,) bool, True = masked.

        Raises:
            MethodError: a layer reads NaN or infinite values.
            TrainingError: a layer is not reached on these inputs.
        """
        state = dict(state_of(model, shared=True))
        total = dict.fromkeys(masks, 0.0)
        own = [consumer for consumer in self.consumers if consumer.columns.keys() & masks.keys()]

        def looking(consumer: Consumer) -> Callable[[Seen], None]:
            def see(seen: Seen) -> None:
                for name, damage in self._damages(consumer, seen, masks, state).items():
                    total[name] += damage

            return see

        watch(model, inputs, {consumer.product.site: looking(consumer) for consumer in own})
        return total

    def _damages(
        self, consumer: Consumer, seen: Seen, masks: Mapping[str, Tensor], state: Mapping[str, Tensor]
    ) -> dict[str, float]:
        if not bool(torch.isfinite(seen.out).all()):
            raise MethodError(
                f"{consumer.product.module or 'the model'} gives NaN or infinite values on a batch of data=: nothing "
                "can be scored. Look for bad values in the data, or lower the learning rate."
            )
        names = self.graph.tape.state
        base = consumer.response(seen.out.clone(), state, names)
        found = {}
        for name, columns in consumer.columns.items():
            if name in masks:
                padded = torch.cat([masks[name], torch.zeros(1, dtype=torch.bool)])  # -1 = none is the last one
                scored = seen.out - consumer.share(seen, padded[columns])
                found[name] = relative_damage(base, consumer.response(scored, state, names))
        return found


def _after(graph: ChannelGraph, product: Product, uses: Mapping[int, Sequence[Op]]) -> tuple[tuple[Op, int], ...]:
    """Return the operations that follow a product directly and need nothing but its result and parameters."""
    found: list[tuple[Op, int]] = []
    ref, is_viewed = product.op.outs()[0], False
    waiting = list(uses.get(ref.number, []))
    while waiting:
        op, out = waiting[0], waiting[0].outs()[0]
        is_in_place = out.number == ref.number
        others = {other.number for other in op.refs()} - {ref.number}
        if (len(waiting) > 1 and not is_in_place) or not others <= graph.tape.state.keys():
            break
        if op.name in VIEWS and not product.is_convolution and out.shape[-1:] == ref.shape[-1:]:
            is_viewed = True  # rows are laid out anew: what works on each row, or number, does not mind
        elif op.name in AFTER or (op.name in NORMS and not (is_viewed and "layer" not in op.name)):
            found.append((op, ref.number))
        else:
            break
        waiting = waiting[1:] if is_in_place else list(uses.get(out.number, []))
        ref = out
    return tuple(found)
