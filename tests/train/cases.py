"""A tiny network with everything that can go wrong on a resume, and data for it."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from secateur.train import Attachment, Moment


class Noisy(Dataset):
    """40 samples, each read with noise from torch, NumPy and Python: an augmentation that must come back."""

    def __len__(self) -> int:
        return 40

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        generator = torch.Generator().manual_seed(index)
        image = torch.randn(3, 4, 4, generator=generator)
        noise = 0.1 * torch.randn(3, 4, 4) + float(np.random.normal()) * 0.01 + random.random() * 0.01
        return image + noise, index % 3


def noisy_loader(**options: Any) -> DataLoader:
    return DataLoader(Noisy(), **{"batch_size": 8, "shuffle": True} | options)


def tiny_model() -> nn.Module:
    torch.manual_seed(7)
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1),
        nn.BatchNorm2d(6),
        nn.ReLU(),
        nn.Dropout(0.3),
        nn.Flatten(),
        nn.Linear(96, 3),
    )


class Killed(BaseException):
    """What a kill looks like from inside."""


class KillAt(Attachment):
    """Stops the run at one of the four points."""

    def __init__(self, point: str, step: int) -> None:
        self.point, self.step = point, step

    def _reach(self, point: str, moment: Moment) -> None:
        if (point, moment.step) == (self.point, self.step):
            raise Killed

    def extra_loss(self, moment: Moment) -> None:
        self._reach("extra_loss", moment)

    def after_backward(self, moment: Moment) -> None:
        self._reach("after_backward", moment)

    def after_step(self, moment: Moment) -> None:
        self._reach("after_step", moment)

    def after_epoch(self, moment: Moment) -> None:
        self._reach("after_epoch", moment)


class Remembers(Attachment):
    """Pulls the weights towards an average that it keeps: a resume without its state would differ."""

    def __init__(self) -> None:
        self.average: dict[str, Tensor] = {}
        self.calls = 0

    def extra_loss(self, moment: Moment) -> Tensor | None:
        if not self.average:
            return None
        named = moment.model.named_parameters()
        return 0.1 * sum((value - self.average[name]).square().sum() for name, value in named)

    def after_step(self, moment: Moment) -> None:
        self.calls += 1
        for name, value in moment.model.named_parameters():
            old = self.average.get(name, value.detach())
            self.average[name] = 0.9 * old + 0.1 * value.detach()

    def state_dict(self) -> dict[str, Any]:
        return {"average": self.average, "calls": self.calls}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.average, self.calls = state["average"], state["calls"]


def random_numbers() -> tuple[Any, ...]:
    """Where the global generators stand, as values that compare."""
    name, keys, *rest = np.random.get_state()
    return torch.get_rng_state().tolist(), random.getstate(), name, keys.tolist(), tuple(rest)


def batches_of(count: int) -> Iterator[tuple[Tensor, Tensor]]:
    for _ in range(count):
        yield torch.randn(4, 3, 4, 4), torch.randint(3, (4,))
