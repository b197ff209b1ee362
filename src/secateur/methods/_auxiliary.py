"""Auxiliary classifiers on intermediate activations: where they go, what they compute, how their input is caught."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..errors import MethodError
from ..graph.products import Product
from ..train.batches import device_of, to_device
from ..train.task import RegressionTask, Task, logits_of


class AuxiliaryHead(nn.Module):
    """Classify by softmax(theta * AvgPool(ReLU(BN(O)))) of one activation O.

    Its weights start at zero, so that nothing depends on the order of channels; the loss is convex in them.

    Source: Zhuang et al. 2018, section 3.2.

    Args:
        width: channels of O.
        class_count: number of logits.
        axis: where the channels are; samples are along axis 0, and all else is averaged.

    >>> AuxiliaryHead(4, 3, axis=1)(torch.randn(2, 4, 5, 5)).shape
    torch.Size([2, 3])
    """

    def __init__(self, width: int, class_count: int, *, axis: int) -> None:
        super().__init__()
        self.axis = axis
        self.norm, self.linear = nn.BatchNorm1d(width), nn.Linear(width, class_count)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def forward(self, activation: Tensor) -> Tensor:
        """Return (samples, classes) logits."""
        rows = activation.movedim(self.axis, -1).to(self.linear.weight.dtype)
        flat, norm = rows.reshape(-1, rows.shape[-1]), self.norm
        # A single row has no variance: it is normalised by what was seen before.
        is_batch = self.training and len(flat) > 1
        normal = F.batch_norm(
            flat, norm.running_mean, norm.running_var, norm.weight, norm.bias, is_batch, norm.momentum or 0.1, norm.eps
        )
        logits: Tensor = self.linear(F.relu(normal).view(len(rows), -1, rows.shape[-1]).mean(dim=1))
        return logits


@dataclass(frozen=True, eq=False)
class Socket:
    """A place where a head can sit: the output of a module that is the output of one product.

    Attributes:
        position: of the product on the tape.
        module: path of the module.
        width: channels.
        axis: where they are.
    """

    position: int
    module: str
    width: int
    axis: int

    def head(self, class_count: int, like: Tensor) -> AuxiliaryHead:
        """Return a fresh head on the device of a tensor, in its precision, float32 at the least."""
        dtype = torch.float64 if like.dtype == torch.float64 else torch.float32
        return AuxiliaryHead(self.width, class_count, axis=self.axis).to(like.device, dtype)

    @contextmanager
    def caught(self, model: nn.Module) -> Iterator[list[Tensor]]:
        """Give a list that holds the activation after a forward pass inside the block."""
        found: list[Tensor] = []
        handle = model.get_submodule(self.module).register_forward_hook(lambda _, __, out: found.append(out))
        try:
            yield found
        finally:
            handle.remove()


def sockets(model: nn.Module, products: Sequence[Product], task: Task, batch: Any) -> tuple[list[Socket], int]:
    """Return every place for a head, in the order of the forward pass, and the number of classes.

    A place is the output of a module that runs one product, once, with the samples along its first axis.

    Args:
        model: a working copy, in eval mode.
        products: of its graph.
        task: what the model is for.
        batch: one batch of data.

    Raises:
        MethodError: the model does not classify.
    """
    outputs: dict[str, list[Any]] = {}

    def note(path: str) -> Any:
        return lambda _, __, out: outputs.setdefault(path, []).append(out)

    owners = {product.site.weight.rpartition(".")[0]: product for product in products if product.module}
    owners = {path: product for path, product in owners.items() if path == product.module}
    handles = [model.get_submodule(path).register_forward_hook(note(path)) for path in owners]
    batch = to_device(batch, device_of(model))
    args, kwargs = task.to_inputs(batch)
    try:
        with torch.no_grad():
            logits = _logits(model(*args, **kwargs), task)
    finally:
        for handle in handles:
            handle.remove()
    found = []
    for path, product in owners.items():
        made, axis = outputs.get(path, []), 1 if product.is_convolution else -1
        if len(made) == 1 and isinstance(made[0], Tensor) and made[0].ndim > 1 and len(made[0]) == len(logits):
            found.append(Socket(product.op.index, path, made[0].shape[axis], axis))
    return sorted(found, key=lambda socket: socket.position), logits.shape[1]


def _logits(output: Any, task: Task) -> Tensor:
    logits = logits_of(output)
    if isinstance(task, RegressionTask) or logits.ndim != 2 or logits.shape[1] < 2:
        raise MethodError(
            f"dcp puts classifiers on intermediate layers, so the task has to be a classification with logits of shape "
            f"(samples, classes); found {type(task).__name__} and an output of shape {tuple(logits.shape)}."
        )
    return logits


def evenly(places: Sequence[Socket], positions: Sequence[int], count: int) -> list[Socket]:
    """Choose up to `count` places that cut the layers at these positions into equal stages, as far as there are places.

    >>> places = [Socket(position, "", 1, 1) for position in range(8)]
    >>> [socket.position for socket in evenly(places, range(8), 3)]
    [1, 3, 5]
    """
    chosen: dict[int, Socket] = {}
    for k in range(1, count + 1):
        wanted = positions[max(0, round(k * len(positions) / (count + 1)) - 1)]
        before = [place for place in places if place.position < positions[-1]]
        if before:
            nearest = min(before, key=lambda place: (abs(place.position - wanted), place.position))
            chosen[nearest.position] = nearest
    return [chosen[position] for position in sorted(chosen)]
