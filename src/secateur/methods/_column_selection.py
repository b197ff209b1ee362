"""Greedy selection of the channels that consumers read, by the gradient of a loss with respect to their weights."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..errors import MethodError, TrainingError
from ..graph.groups import ChannelGraph, ChannelGroup
from ..graph.products import Product, Site, readers, weight_view
from ..train.batches import sample_count
from ..train.task import Inputs
from ..train.watching import Seen, kernel_of, watch
from ._filters import positions_in

log = logging.getLogger(__name__)
Batches = Callable[[], Iterator[tuple[Inputs, Any]]]


@dataclass(frozen=True, eq=False)
class Reading:
    """How one product reads a group.

    Attributes:
        product: which.
        parameter: name of the parameter that its weight is, or is computed from.
        places: (width, elements) where the columns of each channel lie in the flattened parameter.
        layout: shape, strides and offset by which the product takes the parameter; None if it computes its weight.
    """

    product: Product
    parameter: str
    places: Tensor
    layout: tuple[Any, Any, int] | None

    @classmethod
    def of(cls, model: nn.Module, graph: ChannelGraph, group: ChannelGroup, product: Product) -> Reading | None:
        """Find the columns; None if no parameter has them."""
        parameters = dict(model.named_parameters())
        view = weight_view(model, graph, product) if product.site.weight in parameters else None
        if view is None:
            return cls._computed(parameters, graph, group, product)
        parameter = parameters[product.site.weight]
        layout = (view.size(), view.stride(), int(view.storage_offset()) - int(parameter.storage_offset()))
        numbers = torch.empty_strided(parameter.size(), parameter.stride(), dtype=torch.long)
        numbers.copy_(torch.arange(parameter.numel()).view(parameter.shape))
        is_transposed = product.is_convolution and bool(product.op.args[6])
        kernel = kernel_of(
            numbers.as_strided(*layout),
            product.groups,
            transposed=is_transposed,
            is_convolution=product.is_convolution,
            is_weight_first=product.is_weight_first,
        )
        channels = product.channels_of(graph, group)
        columns = kernel.unflatten(2, (channels.shape[1], -1)).transpose(1, 2)  # (groups, in, out, taps)
        own = [columns[torch.from_numpy(channels == i)].reshape(-1) for i in range(group.width)]
        return cls(product, product.site.weight, torch.stack(own), layout)

    @classmethod
    def _computed(
        cls, parameters: Mapping[str, Tensor], graph: ChannelGraph, group: ChannelGroup, product: Product
    ) -> Reading | None:
        """Find the columns in what the weight is computed from."""
        for member in group.members:
            if member.module == product.module and member.role not in ("out", "0") and member.tensor in parameters:
                log.warning("%r is computed: its reconstruction error is left out", product.site.weight)
                return cls(product, member.tensor, positions_in(graph, group, member.tensor, member.axis), None)
        return None

    def output(self, seen: Seen, parameter: Tensor) -> Tensor:
        """Return what the product gives for what it read, with gradients for the parameter."""
        assert self.layout is not None
        weight, source = parameter.as_strided(*self.layout), seen.source
        if seen.is_convolution:
            bias = None if seen.args[2] is None else seen.args[2].detach()
            out: Tensor = torch.ops.aten.convolution(source, weight, bias, *seen.args[3:])
            return out
        product = weight @ source if seen.is_weight_first else source @ weight
        return product if len(seen.args) == 2 else product + seen.args[0].detach()


def readings(model: nn.Module, graph: ChannelGraph, name: str, known: Sequence[Product]) -> list[Reading]:
    """Return how every product whose weight is or comes from a parameter reads a group.

    Raises:
        MethodError: none does.
    """
    group = graph.groups[name]
    own = [Reading.of(model, graph, group, product) for product in readers(graph, group, known)]
    found = [read for read in own if read is not None]
    if not found:
        raise MethodError(
            f"no layer reads the channels of {name!r}, so none can be selected for it: protect=[{name!r}]."
        )
    return found


@dataclass(frozen=True)
class SubProblem:
    """How the weights of selected channels are trained after each step.

    Attributes:
        epochs: passes over the batches.
        lr: learning rate.
        momentum: Nesterov momentum.
        weight_decay: of SGD.
    """

    epochs: int
    lr: float
    momentum: float
    weight_decay: float

    def optimizer(self, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
        """Return a fresh optimizer."""
        return torch.optim.SGD(
            parameters,
            lr=self.lr,
            momentum=self.momentum,
            weight_decay=self.weight_decay,
            nesterov=self.momentum > 0,
        )


class Selection:
    """One group's consumers, which start from no channel and take up one after another, IN PLACE."""

    def __init__(
        self,
        model: nn.Module,
        base: nn.Module,
        reads: Sequence[Reading],
        *,
        batches: Batches,
        guide: Callable[[Inputs, Any], Tensor] | None,
    ) -> None:
        """Begin with every column of the group at zero.

        Args:
            model: the working copy, in eval mode; what its consumers read comes from here.
            base: the network as it was; what its consumers give is the target.
            reads: how the consumers read the group.
            batches: gives inputs and batch, from the beginning at each call.
            guide: the loss that is added to the reconstruction error, with its weight; None = nothing.
        """
        self.model, self.base, self.reads, self._batches, self._guide = model, base, reads, batches, guide
        self.parameters = {read.parameter: model.get_parameter(read.parameter) for read in reads}
        self.columns = _columns(reads)
        self._warm = {name: p.detach().clone() for name, p in self.parameters.items()}
        self._free = [name for name, p in self.parameters.items() if p.requires_grad]
        self.selected: list[int] = []
        for name, places in self.columns:
            _write_(self.parameters[name], places, torch.zeros(()))

    @property
    def width(self) -> int:
        """Number of channels of the group."""
        return len(self.reads[0].places)

    def gradient(self) -> tuple[float, Tensor]:
        """Return the loss over all batches, and (width,) the sum over consumers of ||dL / dW_j||, float64."""
        total, count = 0.0, 0
        sums = {name: torch.zeros_like(p, dtype=torch.float64) for name, p in self.parameters.items()}
        for inputs, batch in self._batches():
            loss, grads = self._grads(inputs, batch)
            size = sample_count(*inputs)
            for name, grad in grads.items():
                sums[name] += grad.double() * size
            total, count = total + loss * size, count + size
        if not count:
            raise TrainingError("data= gave no batch; a generator can be read once only, pass a list or a loader.")
        norms = torch.zeros(self.width, dtype=torch.float64)
        for name, places in self.columns:
            own = sums[name].reshape(-1)[places.to(sums[name].device)]
            norms += torch.linalg.vector_norm(own, dim=1).cpu() / count
        return total / count, norms

    def best(self, norms: Tensor, count: int) -> list[int]:
        """Return the channels that join next: the largest norms, of equals the larger former weights, then the first.

        A channel that is 0 on all data (a ReLU that never opens) has no gradient, and only its weights tell it apart.
        """
        weights = torch.zeros(self.width, dtype=torch.float64)
        for name, places in self.columns:
            own = self._warm[name].reshape(-1)[places.to(self._warm[name].device)]
            weights += torch.linalg.vector_norm(own.double(), dim=1).cpu()
        taken = set(self.selected)
        order = np.lexsort((-weights.numpy(), -norms.numpy()))
        return [int(i) for i in order if int(i) not in taken][:count]

    def add(self, channels: Sequence[int]) -> None:
        """Take up channels with the weights that they had."""
        for name, places in self.columns:
            index = places[list(channels)]
            warm = self._warm[name]
            _write_(self.parameters[name], index, warm.reshape(-1)[index.to(warm.device)])
        self.selected += channels

    def train_(self, how: SubProblem) -> None:
        """Train the weights of selected channels; all others stay, those of channels left out at zero."""
        if not self._free or not self.selected:
            return
        parameters = {name: self.parameters[name] for name in self._free}
        masks = self._masks()
        optimizer = how.optimizer(parameters.values())
        for _ in range(how.epochs):
            for inputs, batch in self._batches():
                _, grads = self._grads(inputs, batch)
                before = {name: p.detach().clone() for name, p in parameters.items()}
                for name, parameter in parameters.items():
                    parameter.grad = (grads[name] * masks[name]).to(parameter.dtype)
                optimizer.step()
                for name, parameter in parameters.items():
                    parameter.grad = None
                    with torch.no_grad():  # weight decay reaches what has no gradient
                        parameter.copy_(torch.where(masks[name], parameter, before[name]))

    def _masks(self) -> dict[str, Tensor]:
        """Return for each parameter which of its places belong to a selected channel."""
        masks = {name: torch.zeros_like(p, dtype=torch.bool) for name, p in self.parameters.items()}
        for name, places in self.columns:
            _write_(masks[name], places[self.selected], torch.ones((), dtype=torch.bool))
        return masks

    def _grads(self, inputs: Inputs, batch: Any) -> tuple[float, dict[str, Tensor]]:
        """Return the loss of one batch and its gradient with respect to each consumer's parameter."""
        flags = [(parameter, parameter.requires_grad) for parameter in self.model.parameters()]
        targets, sources = self._seen(self.base, inputs), self._seen(self.model, inputs)
        try:
            for parameter, _ in flags:
                parameter.requires_grad_(False)
            for parameter in self.parameters.values():
                parameter.requires_grad_(True)
            loss = self._loss(inputs, batch, sources, targets)
            if not bool(loss.isfinite()):
                raise TrainingError(
                    f"the loss of a selection became {loss.item()}: lower its lr, or look at the data. "
                    "A weight that is normalised by its own length has no value at zero: remove that first."
                )
            names = list(self.parameters)
            found = torch.autograd.grad(loss, [self.parameters[name] for name in names], allow_unused=True)
        finally:
            for parameter, flag in flags:
                parameter.requires_grad_(flag)
        zeros = {name: torch.zeros_like(self.parameters[name]) for name in names}
        return float(loss.detach()), {n: zeros[n] if g is None else g for n, g in zip(names, found, strict=True)}

    def _loss(self, inputs: Inputs, batch: Any, sources: dict[Site, Seen], targets: dict[Site, Seen]) -> Tensor:
        parts = []
        for read in self.reads:
            if read.layout is not None:
                made = read.output(sources[read.product.site], self.parameters[read.parameter])
                parts.append(reconstruction_loss(made, targets[read.product.site].out))
        if self._guide is not None:
            parts.append(self._guide(inputs, batch))
        if not parts:
            raise MethodError(
                "consumers whose weights are computed have no reconstruction error, and penalty=0 leaves no other "
                "loss: use penalty > 0."
            )
        return torch.stack([part.to(parts[0]) for part in parts]).sum()

    def _seen(self, model: nn.Module, inputs: Inputs) -> dict[Site, Seen]:
        seen: dict[Site, Seen] = {}

        def keep(found: Seen) -> None:
            seen[found.site] = replace(found, source=found.source.clone(), out=found.out.detach().clone())

        watch(model, inputs, {read.product.site: keep for read in self.reads if read.layout is not None})
        return seen


def reconstruction_loss(output: Tensor, target: Tensor) -> Tensor:
    """Return 1 / (2 Q) ||target - output||^2 with Q the number of elements, in float32 or better.

    Source: Zhuang et al. 2018, section 3.2.

    >>> float(reconstruction_loss(torch.tensor([1.0, 2.0]), torch.tensor([1.0, 4.0])))
    1.0
    """
    dtype = torch.promote_types(output.dtype, torch.float32)
    return (output.to(dtype) - target.to(dtype)).square().mean() / 2


def _columns(reads: Sequence[Reading]) -> list[tuple[str, Tensor]]:
    """Return (parameter, places) of every consumer, once where a parameter is used several times."""
    found: list[tuple[str, Tensor]] = []
    for read in reads:
        if not any(name == read.parameter and torch.equal(places, read.places) for name, places in found):
            found.append((read.parameter, read.places))
    return found


def _write_(tensor: Tensor, places: Tensor, values: Tensor) -> None:
    """Write values at places of the flattened tensor, in place, whatever its memory format."""
    flat = tensor.detach().reshape(-1).clone()
    flat[places.to(flat.device)] = values.to(flat.device, flat.dtype)
    tensor.detach().copy_(flat.view(tensor.shape))
