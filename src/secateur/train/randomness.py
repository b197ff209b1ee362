"""Random numbers that a run can put back: where they stood, and two streams that do not disturb each other.

A training run draws from the global generators of torch, NumPy and Python in two places: the data (shuffling,
augmentation) and the model (dropout). They get a stream each. The data stream is seeded anew for every epoch, so the
order of the data follows from (seed, epoch) alone; the model stream runs through and is part of a checkpoint.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

# numpy's stubs lack these two.
_get_bit_generator: Callable[[], Any] = np.random.get_bit_generator  # type: ignore[attr-defined]
_set_bit_generator: Callable[[Any], None] = np.random.set_bit_generator  # type: ignore[attr-defined]


def epoch_seed(seed: int, epoch: int) -> int:
    """Mix a seed and an epoch into one 63-bit seed, so that neighbouring seeds share no epoch.

    >>> epoch_seed(0, 1) == epoch_seed(1, 0)
    False
    """
    return int(np.random.SeedSequence([seed, epoch]).generate_state(1, np.uint64)[0] >> np.uint64(1))


def seed_(seed: int) -> None:
    """Seed the global generators of torch (every device), Python and NumPy."""
    torch.manual_seed(seed)
    random.seed(seed)
    _set_bit_generator(np.random.MT19937(seed))


def random_state(device: torch.device) -> dict[str, Any]:
    """Return where the global generators stand since `seed_`, as tensors and plain values (saved without pickle)."""
    numpy_state: dict[str, Any] = dict(_get_bit_generator().state["state"])
    state = {
        "torch": torch.get_rng_state(),
        "python": random.getstate(),
        "numpy": ([int(key) for key in numpy_state["key"]], int(numpy_state["pos"])),
    }
    if device.type != "cpu":
        state["device"] = _device_state(device)
    return state


def set_random_state_(state: dict[str, Any], device: torch.device) -> None:
    """Put the global generators where `random_state` found them."""
    key, position = state["numpy"]
    generator = np.random.MT19937()
    generator.state = {
        "bit_generator": "MT19937",
        "state": {"key": np.array(key, dtype=np.uint32), "pos": position},
    }
    _set_bit_generator(generator)
    torch.set_rng_state(state["torch"])
    random.setstate(state["python"])
    if device.type != "cpu":
        _set_device_state_(device, state["device"])


@contextmanager
def same_randomness_after(device: torch.device) -> Iterator[None]:
    """Leave the global generators after the block as they were before it, also after an exception."""
    numpy_generator, numpy_state = _get_bit_generator(), np.random.get_state(legacy=False)
    torch_state, python_state = torch.get_rng_state(), random.getstate()
    device_state = None if device.type == "cpu" else _device_state(device)
    try:
        yield
    finally:
        if _get_bit_generator() is not numpy_generator:
            _set_bit_generator(numpy_generator)
        np.random.set_state(numpy_state)
        torch.set_rng_state(torch_state)
        random.setstate(python_state)
        if device_state is not None:
            _set_device_state_(device, device_state)


class Stream:
    """Global random numbers of their own for the blocks run under `with stream:`.

    >>> stream, outer = Stream(seed=1), torch.get_rng_state()
    >>> with stream:
    ...     first = torch.rand(1)
    >>> with stream:
    ...     second = torch.rand(1)
    >>> bool(first == second), torch.equal(torch.get_rng_state(), outer)
    (False, True)
    """

    def __init__(self, seed: int) -> None:
        self._torch = torch.Generator().manual_seed(seed).get_state()
        self._python = random.Random(seed).getstate()
        self._numpy: Any = np.random.MT19937(seed)

    def _swap(self) -> None:
        here = torch.get_rng_state(), random.getstate(), _get_bit_generator()
        torch.set_rng_state(self._torch)
        random.setstate(self._python)
        _set_bit_generator(self._numpy)
        self._torch, self._python, self._numpy = here

    def __enter__(self) -> Stream:
        self._swap()
        return self

    def __exit__(self, *_: object) -> None:
        self._swap()


def generators_of(loader: Iterable[Any]) -> list[torch.Generator]:
    """Return each `torch.Generator` that a data loader, its samplers or its data set carries, once."""
    found: list[torch.Generator] = []
    for part in _parts(loader):
        generator = getattr(part, "generator", None)
        if isinstance(generator, torch.Generator) and not any(generator is known for known in found):
            found.append(generator)
    return found


def seed_loader_(loader: Iterable[Any], seed: int, epoch: int) -> None:
    """Tell a loader which epoch comes: its generators are seeded, and `set_epoch` is called where there is one."""
    for generator in generators_of(loader):
        generator.manual_seed(epoch_seed(seed, epoch))
    for part in _parts(loader):
        if callable(getattr(part, "set_epoch", None)):
            part.set_epoch(epoch)


@contextmanager
def same_loader_after(loader: Iterable[Any] | None) -> Iterator[None]:
    """Leave the generators and the epoch counter of a data loader after the block as they were before it."""
    parts = [] if loader is None else _parts(loader)
    kept = [
        (part, name, getattr(part, name)) for part in parts for name in ("generator", "epoch") if hasattr(part, name)
    ]
    states = [] if loader is None else [(generator, generator.get_state()) for generator in generators_of(loader)]
    try:
        yield
    finally:
        for generator, state in states:
            generator.set_state(state)
        for part, name, value in kept:
            if getattr(part, name) is not value:
                setattr(part, name, value)


def _device_state(device: torch.device) -> torch.Tensor:
    # MPS has one generator and takes no device.
    state = torch.mps.get_rng_state() if device.type == "mps" else torch.get_device_module(device).get_rng_state(device)
    assert isinstance(state, torch.Tensor)
    return state


def _set_device_state_(device: torch.device, state: torch.Tensor) -> None:
    if device.type == "mps":
        torch.mps.set_rng_state(state)
    else:
        torch.get_device_module(device).set_rng_state(state, device)


def _parts(loader: Any) -> list[Any]:
    parts: list[Any] = []
    waiting = [loader]
    while waiting:
        part = waiting.pop(0)
        if part is None or any(part is known for known in parts):
            continue
        parts.append(part)
        waiting += [getattr(part, name, None) for name in ("sampler", "batch_sampler", "dataset")]
    return parts
