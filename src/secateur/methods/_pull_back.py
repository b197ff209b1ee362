"""Gradients of a loss at the outputs of chosen products, on any architecture.

A running model is watched below autograd, as `secateur.train.watching` does, but with autograd on: each product is the
autograd node made just before it is seen, so the gradient at its output can be asked for by node. No module hook is
needed, and functional calls, packed weights and computed weights are covered.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, nullcontext
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, Node

from ..errors import MethodError, TrainingError
from ..graph.products import Site
from ..graph.tape import plain_kernels, set_training, state_names
from ..surgery.shrink import copy_with
from ..train.batches import device_of, explained, sample_count, to_device
from ..train.randomness import Stream, same_loader_after, same_randomness_after
from ..train.task import Task
from ..train.watching import ProductWatch, Seen


def differentiable_copy(model: nn.Module) -> nn.Module:
    """Return a copy in eval mode that shares no tensor, and whose floating-point parameters all take gradients."""
    copied = copy_with(model, lambda _, tensor: tensor.detach().clone(memory_format=torch.preserve_format))
    set_training(copied, False)
    for parameter in copied.parameters():
        parameter.requires_grad_(parameter.is_floating_point())
    return copied


@contextmanager
def batches(
    data: Iterable[Any] | None, task: Task | None, model: nn.Module, who: str, *, seed: int = 0
) -> Iterator[Iterator[Any]]:
    """Give the batches on the model's device, in a block that takes gradients in the model's own precision.

    Random numbers inside follow from the seed; they and the loader are as before after the block.

    Raises:
        MethodError: data or task are missing, or there is no batch.
    """
    if data is None or task is None:
        missing = "data=" if data is None else "task="
        raise MethodError(f"{who} needs labelled batches, and {missing} is missing: give data= and task=.")
    device = device_of(model)
    with ExitStack() as stack:
        stack.enter_context(same_randomness_after(device))
        stack.enter_context(same_loader_after(data))
        stack.enter_context(Stream(seed))
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        stack.enter_context(torch.autocast(device.type, enabled=False))
        yield _moved(data, device, who)


def _moved(data: Iterable[Any], device: torch.device, who: str) -> Iterator[Any]:
    count = 0
    for batch in data:
        count += 1
        yield to_device(batch, device)
    if not count:
        raise MethodError(f"{who}: data= gave no batch; a generator can be read once only, pass a list or a loader.")


def loss_of(model: nn.Module, batch: Any, task: Task) -> tuple[Tensor, int]:
    """Return the mean loss of a batch, and of how many samples it is the mean.

    Raises:
        MethodError: there is no loss, or it is no finite number.
    """
    args, kwargs = task.to_inputs(batch)
    try:
        loss = task.loss(model(*args, **kwargs), batch)
    except TrainingError as error:
        raise MethodError(f"the task has no loss for the batches of data=: {error}") from error
    if loss.ndim or not bool(loss.isfinite()):
        raise MethodError(f"the task's loss is {loss.detach().flatten()[:3].tolist()}; expected one finite number.")
    return loss, sample_count(args, kwargs)


def singles(batch: Any, count: int) -> Iterator[Any]:
    """Yield a batch's samples as batches of one: every tensor of that many rows is cut, the rest is kept.

    >>> [one[0].tolist() for one in singles((torch.tensor([[1.0], [2.0]]), "kept"), 2)]
    [[[1.0]], [[2.0]]]
    """
    for n in range(count):
        yield _one(batch, n, count)


def _one(value: Any, n: int, count: int) -> Any:
    if isinstance(value, (Tensor, np.ndarray)):
        return value[n : n + 1] if value.ndim and len(value) == count else value
    if isinstance(value, dict):
        return {key: _one(item, n, count) for key, item in value.items()}
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(_one(item, n, count) for item in value))
    if isinstance(value, (tuple, list)):
        return type(value)(_one(item, n, count) for item in value)
    return value


@dataclasses.dataclass(frozen=True, eq=False)
class Pulled:
    """What reaches one product when a batch's loss is pulled back.

    Attributes:
        at_output: like what was seen of the product, with the gradient of the sum of the samples' losses as its output.
        weight: gradient of the mean loss for the weight as the operation takes it; None if it was not asked for.
    """

    at_output: Seen
    weight: Tensor | None


def pull_back(
    model: nn.Module,
    batch: Any,
    task: Task,
    *,
    see: Mapping[Site, Callable[[Seen], None]],
    of_weights: bool = False,
) -> dict[Site, Pulled]:
    """Run a batch forward and its loss back to these products.

    Args:
        model: as `differentiable_copy` returns.
        batch: on the model's device.
        task: how to read it.
        see: site -> what to call as its product happens; later its memory may be written into.
        of_weights: ask for the gradients of weights too.

    Returns:
        What reaches each product that ran and that the loss depends on.

    Raises:
        MethodError: the loss is no finite number, or a product of these weights never ran.
    """
    mode = _Following(state_names(model), see)
    # packed recurrent kernels hide their products; elsewhere the fast kernels do as well
    with plain_kernels() if any(isinstance(m, nn.RNNBase) for m in model.modules()) else nullcontext():
        with mode, explained():
            loss, count = loss_of(model, batch, task)
        ran = {site.weight for site in mode.found}
        if unused := sorted({site.weight for site in see} - ran):
            raise MethodError(
                f"the model did not use {unused[0]!r} on this batch, though it did on the example input: its control "
                "flow follows the data. Protect that layer, or give data that take the same way."
            )
        nodes = _nodes(loss)
        reached = {site: nodes[number] for site, (_, number) in mode.found.items() if number in nodes}
        edges = [GradientEdge(node, 0) for node in reached.values()]
        own = [_weight_edge(node, mode.found[site][0]) for site, node in reached.items()] if of_weights else []
        found = torch.autograd.grad(loss, [*edges, *own]) if edges else ()
    seen = {
        site: dataclasses.replace(whole(mode.found[site][0]), out=found[k] * count) for k, site in enumerate(reached)
    }
    weights = found[len(edges) :] if of_weights else [None] * len(edges)
    return {site: Pulled(seen[site], own) for site, own in zip(reached, weights, strict=True)}


def whole(seen: Seen) -> Seen:
    """Return the same product with its bias forgotten, so that `outputs` gives what is there, with bias or gradient."""
    args = (*seen.args[:2], None, *seen.args[3:]) if seen.is_convolution else seen.args[-2:]
    return dataclasses.replace(seen, args=args)


class _Following(ProductWatch):
    def __init__(self, names: dict[int, str], see: Mapping[Site, Callable[[Seen], None]]) -> None:
        super().__init__(names)
        self.see = see
        self.found: dict[Site, tuple[Seen, int]] = {}  # and the number of its autograd node

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        number = torch._C._autograd._get_sequence_nr() - 1
        out = func(*args, **(kwargs or {}))
        seen = self.seen(func, args, kwargs, out, self.see) if func.namespace != "prim" else None
        if seen is not None:
            self.see[seen.site](seen)
            self.found[seen.site] = seen, number
        return out


def _nodes(loss: Tensor) -> dict[int, Node]:
    """Return every autograd node behind a loss by its number."""
    found: dict[int, Node] = {}
    waiting = [loss.grad_fn]
    while waiting:
        node = waiting.pop()
        if node is None or "AccumulateGrad" in node.name() or node._sequence_nr() in found:
            continue
        found[node._sequence_nr()] = node
        waiting += [following for following, _ in node.next_functions]
    return found


def _weight_edge(node: Node, seen: Seen) -> GradientEdge:
    """Return the edge that leads from a product to its weight."""
    # A convolution's inputs are (activation, weight, bias); a matrix product's last two are its factors.
    following = node.next_functions
    where = 1 if seen.is_convolution else len(following) - (2 if seen.is_weight_first else 1)
    target, number = following[where]
    assert target is not None
    return GradientEdge(target, number)
