"""Evaluate a model with some channels gone, as often as one likes, on one working copy."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from ..errors import TrainingError
from ..graph.groups import ChannelGraph
from ..graph.labels import compact
from ..plan import Plan
from ..recovery.batchnorm import reestimate_batchnorm_
from ..surgery.mask import dead_places, neutral
from ..surgery.shrink import clone, shrink
from ..train.batches import device_of, explained, same_modes_after, sample_count, to_device
from ..train.loop import fit
from ..train.progress import ProgressBar
from ..train.randomness import same_loader_after, same_randomness_after
from ..train.schedules import Recipe
from ..train.task import Task


class Measured(NamedTuple):
    """The metric and the loss over a data set, and how many scores the metric is the mean of."""

    metric: float
    loss: float
    score_count: int


def measure(model: nn.Module, data: Iterable[Any], task: Task, bar: ProgressBar | None = None) -> Measured:
    """Return metric and loss of a model in eval mode over the data, leaving no trace.

    Raises:
        TrainingError: the data give no sample, a batch does not fit the model or the task, or the metric is not one
            score per sample.
    """
    device = device_of(model)
    score_sum, score_count, loss_sum, loss_count = 0.0, 0, 0.0, 0
    with same_modes_after(model), same_randomness_after(device), same_loader_after(data), torch.no_grad():
        model.eval()
        for batch in data:
            batch = to_device(batch, device)
            with explained():
                args, kwargs = task.to_inputs(batch)
                output = model(*args, **kwargs)
                scores, loss = task.metric(output, batch), float(task.loss(output, batch))
            size = sample_count(args, kwargs)
            if scores.ndim != 1:
                raise TrainingError(
                    f"the metric {task.name!r} gave a tensor of shape {tuple(scores.shape)}; expected one per sample."
                )
            score_sum += float(scores.double().sum())
            score_count += len(scores)
            loss_sum += loss * size
            loss_count += size
            if bar is not None:
                bar.advance()
    if not score_count or not loss_count:
        raise TrainingError("the data gave no sample to evaluate; pass a list or a loader that starts anew each time.")
    return Measured(score_sum / score_count, loss_sum / loss_count, score_count)


@dataclass(frozen=True)
class Treatment:
    """What happens to a cut model before it is evaluated.

    Attributes:
        retrain: train it so; None = not.
        retrain_scope: "local" trains the modules that the group's channels run through (the layer, its norms, its
            consumers), "all" everything.
        recalibrate: re-estimate batch-norm statistics on this many batches; None = not.
        train_data: batches for both.
    """

    retrain: Recipe | None = None
    retrain_scope: str = "local"
    recalibrate: int | None = None
    train_data: Iterable[Any] | None = None

    def __str__(self) -> str:
        parts = []
        if self.retrain is not None:
            what = "everything" if self.retrain_scope == "all" else "the layer and its consumers"
            parts.append(f"{what} retrained for {self.retrain.epochs - self.retrain.first_epoch} epochs")
        if self.recalibrate is not None:
            parts.append(f"batch-norm statistics of {self.recalibrate} batches")
        return ", ".join(parts) or "not retrained"

    def apply_(self, model: nn.Module, task: Task, names: set[str] | None = None) -> None:
        """Treat a model IN PLACE; with `names`, of its parameters only these are trained."""
        if self.retrain is not None and self.train_data is not None:
            for name, parameter in model.named_parameters():
                parameter.requires_grad_(parameter.requires_grad and (names is None or name in names))
            fit(model, self.train_data, task, self.retrain, progress=False)
        if self.recalibrate is not None and self.train_data is not None:
            reestimate_batchnorm_(model, self.train_data, task, batch_count=self.recalibrate, progress=False)


class Bench:
    """One working copy of a model on which channels go and come back."""

    def __init__(
        self, model: nn.Module, graph: ChannelGraph, data: Iterable[Any], task: Task, treatment: Treatment
    ) -> None:
        self.graph, self.data, self.task, self.treatment = graph, data, task, treatment
        self._copy = clone(model)
        self._in_statistics = groups_in_statistics(graph)

    def intact(self, bar: ProgressBar | None = None) -> Measured:
        """Measure the model with every channel, after the same treatment of the whole of it."""
        model = clone(self._copy)
        self.treatment.apply_(model, self.task)
        return measure(model, self.data, self.task, bar)

    def without(self, name: str, channels: Iterable[int], bar: ProgressBar | None = None) -> Measured:
        """Measure the model without these channels of one group: what `shrink` would give, to rounding.

        A masked copy is the shrunk model unless the channels enter a statistic over channels; and training would
        move masked weights. In both cases the model is really cut.
        """
        plan = Plan.from_removed({name: channels}, self.graph.widths)
        if self.treatment.retrain is None and name not in self._in_statistics:
            with zeroed_(self._copy, self.graph, plan):
                self.treatment.apply_(self._copy, self.task)
                return measure(self._copy, self.data, self.task, bar)
        small = shrink(self._copy, self.graph, plan)
        self.treatment.apply_(small, self.task, self._trained_with(small, name))
        return measure(small, self.data, self.task, bar)

    def _trained_with(self, small: nn.Module, name: str) -> set[str] | None:
        if self.treatment.retrain_scope == "all":
            return None
        modules = {member.module for member in self.graph.groups[name].members}
        return {n for n, _ in small.named_parameters() if _module_of(n) in modules}


def groups_in_statistics(graph: ChannelGraph) -> set[str]:
    """Names of the groups whose channels enter a statistic over channels: a mean, a norm, a softmax."""
    is_touched = np.zeros(int(graph.component.max(initial=0)) + 1, dtype=bool)
    for statistic in graph.labels.statistics:
        for layers in statistic.operands.values():
            for layer in layers:
                is_touched[graph.component[compact(layer).numpy()]] = True
    return {name for name, group in graph.groups.items() if is_touched[group.channels].any()}


@contextmanager
def zeroed_(model: nn.Module, graph: ChannelGraph, plan: Plan) -> Iterator[None]:
    """Mask a plan IN PLACE during the block; every tensor is afterwards as before, also after an exception.

    Running statistics of batch norm count as tensors: what the block re-estimates is put back too.
    """
    tensors: dict[str, Tensor] = dict(model.named_parameters(remove_duplicate=False))
    tensors.update(model.named_buffers(remove_duplicate=False))
    dead = {id(tensors[name]): (tensors[name], gone, neutral(name)) for name, gone in dead_places(graph, plan)}
    changing = [tensor for tensor, _, _ in dead.values()] + list(model.buffers())
    before = {id(tensor): (tensor, tensor.detach().clone()) for tensor in changing}
    try:
        with torch.no_grad():
            for tensor, gone, value in dead.values():
                tensor.masked_fill_(gone.to(tensor.device), value)
        yield
    finally:
        with torch.no_grad():
            for tensor, old in before.values():
                tensor.copy_(old)


def _module_of(parameter: str) -> str:
    return parameter.rpartition(".")[0].partition(".parametrizations")[0]
