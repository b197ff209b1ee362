"""Estimate batch-normalisation statistics anew: after a cut they describe a network that is gone.

The running statistics of the cut network are averaged over batches in train mode, without gradients and without
labels. It is the cheapest recovery there is, and the one to do before any accuracy of a candidate is read.

Source: Li et al. 2020, "EagleEye: Fast Sub-net Evaluation for Efficient Neural Network Pruning", arXiv:2007.02491,
section 3.3.

Where we differ: the paper leaves the whole network in train mode; here only batch normalisation is, so dropout does
not add noise that inference lacks. Batches are weighted by their size, so that a short last batch counts for what it
is; with equal batches this is the plain average (`momentum=None`).
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from secateur.errors import TrainingError
from secateur.train.batches import device_of, same_modes_after, to_device
from secateur.train.progress import ProgressBar
from secateur.train.randomness import same_loader_after, same_randomness_after
from secateur.train.task import Task

logger = logging.getLogger(__name__)


def reestimate_batchnorm(
    model: nn.Module, loader: Iterable[Any], task: Task, *, batch_count: int = 100, progress: bool | None = None
) -> nn.Module:
    """Return a copy of the model whose batch-norm statistics are those of the data; see `reestimate_batchnorm_`.

    >>> from secateur.train.task import ClassificationTask
    >>> model, images = nn.BatchNorm1d(1), torch.tensor([[1.0], [3.0]])
    >>> reestimate_batchnorm(model, [images], ClassificationTask()).running_mean
    tensor([2.])
    >>> model.running_mean
    tensor([0.])
    """
    changed = copy.deepcopy(model)
    reestimate_batchnorm_(changed, loader, task, batch_count=batch_count, progress=progress)
    return changed


def reestimate_batchnorm_(
    model: nn.Module, loader: Iterable[Any], task: Task, *, batch_count: int = 100, progress: bool | None = None
) -> None:
    """Replace the running statistics of every batch-norm layer by their mean over batches, IN PLACE.

    Everything but `running_mean`, `running_var` and `num_batches_tracked` is afterwards as it was: flags, momentum,
    hooks, the global random numbers and the loader's generators. After an exception these three are, too. Layers
    that keep no statistics, and layers that no batch reached, are left alone. A model without any is not run.

    Args:
        model: runs where it is, in eval mode but for its batch-norm layers.
        loader: batches as the task feeds them; labels are not read. At least 1,000 images are advised.
        task: how to feed a batch.
        batch_count: how many batches to use; fewer if the loader has fewer.
        progress: True or False to force the progress bar; None = where there is a terminal.

    Raises:
        TrainingError: `batch_count` is below 1, or the loader gave no batch.
    """
    if batch_count < 1:
        raise TrainingError(f"batch_count={batch_count}: expected a whole number >= 1.")
    layers = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, _BatchNorm) and module.track_running_stats
    }
    if not layers:
        logger.debug("no batch-norm layer with running statistics; nothing to estimate")
        return
    before = {name: [buffer.clone() for buffer in _statistics(layer)] for name, layer in layers.items()}
    try:
        reached = _estimate_(model, layers, loader, task, batch_count, progress)
    except BaseException:
        _put_back_(layers, before)
        raise
    unreached = {name: before[name] for name in layers if name not in reached}
    if unreached:
        logger.warning("no batch reached %s; left as before", ", ".join(unreached))
        _put_back_(layers, unreached)


def _estimate_(
    model: nn.Module,
    layers: dict[str, _BatchNorm],
    loader: Iterable[Any],
    task: Task,
    batch_count: int,
    progress: bool | None,
) -> set[str]:
    """Do it; return the names of the layers that a batch reached."""
    device = device_of(model)
    with (
        same_modes_after(model),
        same_randomness_after(device),
        same_loader_after(loader),
        _weighted_by_batch_size(layers) as sizes,
        ProgressBar("estimating batch-norm statistics", batch_count, visible=progress) as bar,
        torch.no_grad(),
    ):
        model.eval()
        for layer in layers.values():
            layer.reset_running_stats()
            layer.training = True
        for batch in islice(loader, batch_count):
            args, kwargs = task.to_inputs(to_device(batch, device))
            model(*args, **kwargs)
            bar.advance()
    if not sizes:
        raise TrainingError("no batch reached a batch-norm layer; the loader must give at least one batch.")
    return set(sizes)


@contextmanager
def _weighted_by_batch_size(layers: dict[str, _BatchNorm]) -> Iterator[dict[str, float]]:
    """Make running averages plain means over all that a layer sees; gives the values per channel each has seen."""
    sizes: dict[str, float] = {}
    momenta = {name: layer.momentum for name, layer in layers.items()}

    def weigh(name: str, layer: _BatchNorm, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        given: Tensor = args[0] if args else kwargs["input"]
        size = given.numel() / layer.num_features
        sizes[name] = sizes.get(name, 0.0) + size
        layer.momentum = size / sizes[name]

    handles = [
        layer.register_forward_pre_hook(partial(weigh, name), with_kwargs=True) for name, layer in layers.items()
    ]
    try:
        yield sizes
    finally:
        for handle in handles:
            handle.remove()
        for name, layer in layers.items():
            layer.momentum = momenta[name]


def _statistics(layer: _BatchNorm) -> list[Tensor]:
    found = layer.running_mean, layer.running_var, layer.num_batches_tracked
    return [buffer for buffer in found if buffer is not None]


def _put_back_(layers: dict[str, _BatchNorm], before: dict[str, list[Tensor]]) -> None:
    for name, buffers in before.items():
        for now, then in zip(_statistics(layers[name]), buffers, strict=True):
            now.copy_(then)
