"""Time a model where it runs, and two models against each other.

``torch.utils.benchmark`` does the timing: it warms up, waits for the accelerator and fixes the number of threads.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils import _pytree as pytree
from torch.utils.benchmark import Timer

from ._inference import as_call, evaluating, tensors_in

ROUNDS = 20  # blocks that a time budget is divided into when two models take turns (our choice)
FEWEST_ROUNDS = 5  # quartiles need some, however slow the models are (our choice)


@dataclass(frozen=True)
class Latency:
    """How long one forward pass takes.

    Attributes:
        median_ms: median over blocks of the time of one call, in milliseconds.
        iqr_ms: distance of the quartiles of the same, in milliseconds.
        threads: CPU threads within an operation.
        batch: length of the first axis of the first tensor given; 1 if there is none.
        device: where the model was, e.g. "cpu" or "cuda:0".
        runs: number of timed calls.

    >>> print(Latency(median_ms=12.34, iqr_ms=0.5, threads=1, batch=8, device="cpu", runs=40))
    12.3 ms (IQR 0.5 ms; batch 8, 1 thread, cpu, 40 runs)
    """

    median_ms: float
    iqr_ms: float
    threads: int
    batch: int
    device: str
    runs: int

    def __str__(self) -> str:
        threads = f"{self.threads} thread{'s' if self.threads > 1 else ''}"
        spread = f"IQR {self.iqr_ms:.3g} ms; batch {self.batch}, {threads}, {self.device}, {self.runs} runs"
        return f"{self.median_ms:.3g} ms ({spread})"


@dataclass(frozen=True)
class Comparison:
    """Two latencies taken in turns, and their quotient.

    Attributes:
        before: of the first model.
        after: of the second model.
        speed_up: median over rounds of time before / time after; 2.0 = twice as fast, below 1 = slower.
        speed_up_iqr: distance of the quartiles of the same.
    """

    before: Latency
    after: Latency
    speed_up: float
    speed_up_iqr: float

    def __str__(self) -> str:
        return f"{self.speed_up:.2f}x (IQR {self.speed_up_iqr:.2f}): {self.before} -> {self.after}"


def latency(
    model: nn.Module,
    args: Any,
    *,
    threads: int,
    kwargs: Mapping[str, Any] | None = None,
    device: torch.device | str | None = None,
    min_run_time_s: float = 1.0,
) -> Latency:
    """Time ``model(*args, **kwargs)`` in evaluation mode without gradients.

    Modes, random states and the number of threads are as before afterwards, also after an error.

    Args:
        model: any model.
        args: its positional arguments as a tuple or list, or one argument.
        threads: CPU threads within an operation; there is no default because no figure means anything without it.
        kwargs: its keyword arguments.
        device: time a copy of model and arguments there; None = time them where they are.
        min_run_time_s: time for so many seconds at least.

    Raises:
        ValueError: `threads` or `min_run_time_s` is not positive.

    >>> latency(nn.Linear(3, 2), torch.zeros(5, 3), threads=1, min_run_time_s=0.01).batch
    5
    """
    _check(threads, min_run_time_s)
    positional, named = as_call(args, kwargs)
    if device is not None:
        model = copy.deepcopy(model).to(device)
        positional, named = pytree.tree_map_only(Tensor, lambda tensor: tensor.to(device), (positional, named))
    with evaluating(model):
        measured = _timer(model, positional, named, threads).blocked_autorange(min_run_time=min_run_time_s)
    times_ms = np.asarray(measured.times) * 1e3
    runs = measured.number_per_run * len(times_ms)
    return _latency(times_ms, runs, threads, model, (positional, named))


def compare(
    before: nn.Module,
    after: nn.Module,
    args: Any,
    *,
    threads: int,
    kwargs: Mapping[str, Any] | None = None,
    min_run_time_s: float = 1.0,
) -> Comparison:
    """Time two models in turns, so that a machine that slows down slows down both.

    Each round times a block of calls of `before`, then one of `after`; the speed-up is taken within rounds. Models are
    timed where they are; modes, random states and the number of threads are as before afterwards, also after an error.

    Args:
        before: the first model.
        after: the second model; it takes the same arguments.
        args: their positional arguments as a tuple or list, or one argument.
        threads: CPU threads within an operation.
        kwargs: their keyword arguments.
        min_run_time_s: time each model for so many seconds at least.

    Raises:
        ValueError: `threads` or `min_run_time_s` is not positive.

    >>> wide, narrow = nn.Linear(256, 256), nn.Linear(256, 64)
    >>> compare(wide, narrow, torch.zeros(32, 256), threads=1, min_run_time_s=0.01).before.batch
    32
    """
    (first, second), rounds_ms = in_turns(
        (before, after), args, threads=threads, kwargs=kwargs, min_run_time_s=min_run_time_s
    )
    speed_up, speed_up_iqr = _median_and_iqr(rounds_ms[:, 0] / rounds_ms[:, 1])
    return Comparison(first, second, speed_up, speed_up_iqr)


def in_turns(
    models: Sequence[nn.Module],
    args: Any,
    *,
    threads: int,
    kwargs: Mapping[str, Any] | None = None,
    min_run_time_s: float = 1.0,
) -> tuple[list[Latency], NDArray[np.float64]]:
    """Time several models in turns, so that a machine that slows down slows down all; see `compare`.

    Returns:
        The latency of each, and (rounds, models) the time of one call in every round, in milliseconds.

    Raises:
        ValueError: `threads` or `min_run_time_s` is not positive.
    """
    _check(threads, min_run_time_s)
    positional, named = as_call(args, kwargs)
    with contextlib.ExitStack() as stack:
        for model in models:
            stack.enter_context(evaluating(model))
        timers = [_timer(model, positional, named, threads) for model in models]
        counts = [_calls_per_block(timer, min_run_time_s / ROUNDS) for timer in timers]
        rounds: list[list[float]] = []
        spent_s = np.zeros(len(timers))
        while len(rounds) < FEWEST_ROUNDS or spent_s.min() < min_run_time_s:
            per_call_s = [timer.timeit(count).mean for timer, count in zip(timers, counts, strict=True)]
            rounds.append(per_call_s)
            spent_s += np.multiply(per_call_s, counts)
    rounds_ms = np.asarray(rounds) * 1e3
    found = [
        _latency(rounds_ms[:, i], counts[i] * len(rounds), threads, model, (positional, named))
        for i, model in enumerate(models)
    ]
    return found, rounds_ms


def _check(threads: int, min_run_time_s: float) -> None:
    if threads < 1:
        raise ValueError(f"threads={threads}: expected 1 or more.")
    if not min_run_time_s > 0:
        raise ValueError(f"min_run_time_s={min_run_time_s}: expected a positive number of seconds.")


def _timer(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], threads: int) -> Timer:
    scope = {"model": model, "args": args, "kwargs": kwargs}
    return Timer("model(*args, **kwargs)", globals=scope, num_threads=threads)


def _calls_per_block(timer: Timer, block_s: float) -> int:
    """Return how many calls fill a block; the calls made to find out warm the model up."""
    per_call_s = timer.timeit(1).mean
    if per_call_s < block_s:
        per_call_s = timer.timeit(max(1, int(block_s / per_call_s / 4))).mean
    return max(1, round(block_s / per_call_s))


def _latency(times_ms: Any, runs: int, threads: int, model: nn.Module, inputs: Any) -> Latency:
    given = tensors_in(inputs)
    places = [*model.parameters(), *model.buffers(), *given]
    median_ms, iqr_ms = _median_and_iqr(times_ms)
    return Latency(
        median_ms=median_ms,
        iqr_ms=iqr_ms,
        threads=threads,
        batch=given[0].shape[0] if given and given[0].dim() else 1,
        device=str(places[0].device) if places else "cpu",
        runs=runs,
    )


def _median_and_iqr(values: Any) -> tuple[float, float]:
    low, median, high = np.quantile(values, [0.25, 0.5, 0.75])
    return float(median), float(high - low)
