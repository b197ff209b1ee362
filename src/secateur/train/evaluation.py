"""The metric of a model over a data set, leaving no trace."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from secateur.errors import TrainingError
from secateur.train.batches import batches_in, device_of, explained, same_modes_after, to_device
from secateur.train.progress import ProgressBar
from secateur.train.randomness import same_loader_after, same_randomness_after
from secateur.train.task import Inputs, Task


def evaluate(
    model: nn.Module,
    loader: Iterable[Any],
    task: Task,
    *,
    precision: str = "fp32",
    progress: bool | None = None,
) -> float:
    """Return the task's metric over the whole loader, every sample weighing the same.

    The model runs in eval mode without gradients, where it is. Its flags and statistics, the global random numbers
    and the loader's generators are afterwards as they were, also after an exception.

    Args:
        model: any network.
        loader: batches, as the task understands them.
        task: how to feed a batch, and the metric.
        precision: "fp32" (as the weights are), or "bf16" for autocast.
        progress: True or False to force the progress bar; None = where there is a terminal.

    Raises:
        TrainingError: the loader gives no sample, a batch cannot be run, or the task's metric is not one score per
            sample.

    >>> from secateur.train.task import ClassificationTask
    >>> batches = [(torch.eye(2), torch.tensor([0, 1])), (torch.eye(2)[:1], torch.tensor([1]))]
    >>> round(evaluate(nn.Identity(), batches, ClassificationTask()), 4)
    0.6667
    """
    total = batches_in(loader)
    with ProgressBar("evaluating", total, visible=progress) as bar:
        score_sum, score_count = score_sums(model, loader, task, precision=precision, bar=bar)
    return mean_score(score_sum, score_count)


def score_sums(
    model: nn.Module,
    loader: Iterable[Any],
    task: Task,
    *,
    precision: str = "fp32",
    bar: ProgressBar | None = None,
) -> tuple[float, int]:
    """Return the sum of the task's scores over the loader and their count, leaving no trace (see `evaluate`)."""
    device = device_of(model)
    score_sum, score_count = 0.0, 0
    with same_modes_after(model), same_randomness_after(device), same_loader_after(loader), torch.no_grad():
        model.eval()
        for batch in loader:
            batch = to_device(batch, device)
            with explained("the loader"):
                scores = task.metric(forward(model, task.to_inputs(batch), precision), batch)
            if scores.ndim != 1:
                raise TrainingError(
                    f"the metric {task.name!r} gave a tensor of shape {tuple(scores.shape)}; "
                    "expected one score per sample, (samples,), so that uneven batches average exactly."
                )
            score_sum += float(scores.detach().to("cpu", torch.float64).sum())
            score_count += len(scores)
            if bar is not None:
                bar.advance()
    return score_sum, score_count


def mean_score(score_sum: float, score_count: int) -> float:
    """Return the mean, or say that there was nothing to average.

    Raises:
        TrainingError: no score was given.
    """
    if score_count == 0:
        raise TrainingError("the loader gave no sample to evaluate; a generator can be read once only, pass a list.")
    return score_sum / score_count


def forward(model: nn.Module, inputs: Inputs, precision: str, *, channels_last: bool = False) -> Any:
    """Run the model on a task's inputs in `precision`; what it computed in bf16 is returned in fp32."""
    args, kwargs = inputs
    if channels_last:
        args = tuple(_channels_last(value) for value in args)
        kwargs = {name: _channels_last(value) for name, value in kwargs.items()}
    with torch.autocast(device_of(model).type, dtype=torch.bfloat16, enabled=precision == "bf16"):
        output = model(*args, **kwargs)
    return _to_fp32(output) if precision == "bf16" else output


def _channels_last(value: Any) -> Any:
    if isinstance(value, Tensor) and value.ndim == 4:
        return value.contiguous(memory_format=torch.channels_last)
    return value


def _to_fp32(output: Any) -> Any:
    if isinstance(output, Tensor):
        return output.float() if output.dtype is torch.bfloat16 else output
    if isinstance(output, dict):
        for name, value in output.items():
            output[name] = _to_fp32(value)
        return output
    if isinstance(output, tuple) and hasattr(output, "_fields"):
        return type(output)(*(_to_fp32(value) for value in output))
    if isinstance(output, (tuple, list)):
        return type(output)(_to_fp32(value) for value in output)
    return output
