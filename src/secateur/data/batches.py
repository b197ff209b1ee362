"""Feed images that lie in memory as normalised batches, reproducibly from a seed and an epoch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from .augment import Augmentation, Draws, epoch_generator

Key = int | tuple[int, int]  # the index of an example, or (epoch, index)


class Loaders(NamedTuple):
    """The loaders of one data set; each batch is (images float32 (B, C, H, W), labels int64 (B,)).

    Attributes:
        train: shuffled anew each pass; `train.sampler.set_epoch(n)` makes the next pass the n-th.
        test: in the stored order, never augmented.
    """

    train: DataLoader[tuple[Tensor, Tensor]]
    test: DataLoader[tuple[Tensor, Tensor]]


class EpochShuffle(Sampler[tuple[int, int]]):
    """Hand out (epoch, index) in an order that depends on the seed and the epoch only.

    Every pass is an epoch of its own. The epoch travels with the index, so the data set needs no state and two
    passes may be under way at once.

    Attributes:
        epoch: the epoch of the next pass, from 0.

    >>> order = EpochShuffle(4, seed=0)
    >>> first, second = list(order), list(order)
    >>> order.set_epoch(0)
    >>> list(order) == first, sorted(i for _, i in second), {epoch for epoch, _ in second}
    (True, [0, 1, 2, 3], {1})
    """

    def __init__(self, count: int, *, seed: int) -> None:
        self.epoch = 0
        self._count = count
        self._seed = seed

    def set_epoch(self, epoch: int) -> None:
        """Make the next pass the given epoch, e.g. when a killed run goes on."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[tuple[int, int]]:
        epoch, self.epoch = self.epoch, self.epoch + 1
        order = torch.randperm(self._count, generator=epoch_generator(self._seed, epoch, purpose=0))
        return iter([(epoch, index) for index in order.tolist()])


class BatchedImages(Dataset[tuple[Tensor, Tensor]]):
    """Images that are fetched, augmented and normalised a whole batch at a time.

    Args:
        images: (N, C, H, W) uint8; batches come out on its device.
        labels: (N,) int64.
        mean: of each channel, in units of 255.
        std: of each channel, in units of 255.
        augmentation: applied to examples that are asked for by (epoch, index); None for none.
        seed: of the augmentation.
    """

    def __init__(
        self,
        images: Tensor,
        labels: Tensor,
        *,
        mean: Sequence[float],
        std: Sequence[float],
        augmentation: Augmentation | None = None,
        seed: int = 0,
    ) -> None:
        self._images = images
        self._labels = labels
        self._mean, self._std = mean, std
        self._augmentation = augmentation
        self._seed = seed
        self._drawn: tuple[int, Draws] | None = None

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, key: Key) -> tuple[Tensor, Tensor]:
        images, labels = self.__getitems__([key])
        return images[0], labels[0]

    def __getitems__(self, keys: Sequence[Key]) -> tuple[Tensor, Tensor]:
        """Return the batch of these examples; a data loader asks for all of a batch at once."""
        index = torch.tensor([key if isinstance(key, int) else key[1] for key in keys])
        images = self._images[index.to(self._images.device)]
        if self._augmentation is not None and not isinstance(keys[0], int):
            images = self._draws(self._augmentation, keys[0][0]).apply(images, index)
        return normalise(images, self._mean, self._std), self._labels[index.to(self._labels.device)]

    def _draws(self, augmentation: Augmentation, epoch: int) -> Draws:
        if self._drawn is None or self._drawn[0] != epoch:
            self._drawn = epoch, augmentation.draw(len(self), seed=self._seed, epoch=epoch)
        return self._drawn[1]


def normalise(images: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Turn bytes into (byte / 255 - mean) / std, channel by channel.

    Args:
        images: (B, C, H, W) uint8.
        mean: C numbers.
        std: C numbers, > 0.

    Returns:
        (B, C, H, W) float32.

    >>> normalise(torch.tensor([[[[0, 255]]]], dtype=torch.uint8), [0.5], [0.25]).tolist()
    [[[[-2.0, 2.0]]]]
    """
    means, stds = (torch.tensor(v, dtype=torch.float32, device=images.device).view(1, -1, 1, 1) for v in (mean, std))
    return images.float().div_(255).sub_(means).div_(stds)


def loader(dataset: BatchedImages, batch_size: int, *, sampler: Sampler[Any] | None) -> DataLoader[Any]:
    """Build a data loader that takes whole batches from `dataset` and leaves the global random state alone."""
    return DataLoader(
        dataset, batch_size=batch_size, sampler=sampler, collate_fn=_as_it_is, generator=torch.Generator()
    )


def _as_it_is(batch: Any) -> Any:
    return batch
