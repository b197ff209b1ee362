"""An image data set in memory: the one type that every source of this package gives."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from ..errors import DataError
from .augment import Augmentation
from .batches import BatchedImages, EpochShuffle, Loaders, loader, normalise
from .split import stratified_split


@dataclass(frozen=True, eq=False, repr=False)
class ImageData:
    """Images and labels to train on and to test on.

    Attributes:
        name: what to print beside figures.
        train_images: (N, C, H, W) uint8.
        train_labels: (N,) int64, an index into `class_names`.
        test_images: (M, C, H, W) uint8.
        test_labels: (M,) int64.
        class_names: one name per class.
        mean: of each channel of the training images, in units of 255.
        std: of each channel of the training images, in units of 255.
        augmentation: what suits these images while training.

    Raises:
        DataError: shapes, types or labels do not fit together.
    """

    name: str
    train_images: Tensor
    train_labels: Tensor
    test_images: Tensor
    test_labels: Tensor
    class_names: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    augmentation: Augmentation = field(default_factory=Augmentation)

    def __post_init__(self) -> None:
        self._check("train", self.train_images, self.train_labels)
        self._check("test", self.test_images, self.test_labels)
        if not len(self.mean) == len(self.std) == self.image_shape[0]:
            raise DataError(
                f"{self.name}: {len(self.mean)} means and {len(self.std)} deviations for images of "
                f"{self.image_shape[0]} channels; give one of each per channel."
            )
        if min(self.std) <= 0:
            raise DataError(f"{self.name}: std={self.std}: expected numbers above 0.")

    def _check(self, part: str, images: Tensor, labels: Tensor) -> None:
        if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1:] != self.train_images.shape[1:]:
            raise DataError(
                f"{self.name}: {part} images are {images.dtype} {tuple(images.shape)}; expected torch.uint8 "
                "(count, channels, height, width), the same shape in both parts."
            )
        if labels.dtype != torch.int64 or labels.shape != images.shape[:1] or not len(labels):
            raise DataError(
                f"{self.name}: {part} labels are {labels.dtype} {tuple(labels.shape)} for {len(images)} images; "
                "expected one torch.int64 per image, and at least one image."
            )
        if int(labels.min()) < 0 or int(labels.max()) >= self.class_count:
            raise DataError(
                f"{self.name}: {part} labels go from {int(labels.min())} to {int(labels.max())}; "
                f"expected 0 to {self.class_count - 1} for {self.class_count} classes."
            )

    @property
    def class_count(self) -> int:
        """Number of classes."""
        return len(self.class_names)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Shape of one image: channels, height, width."""
        channels, height, width = self.train_images.shape[1:]
        return channels, height, width

    def __repr__(self) -> str:
        shape = "x".join(str(size) for size in self.image_shape)
        return (
            f"ImageData({self.name!r}: {len(self.train_labels)} to train, {len(self.test_labels)} to test, "
            f"{shape}, {self.class_count} classes)"
        )

    def normalise(self, images: Tensor) -> Tensor:
        """Turn uint8 images (B, C, H, W) of this data set into the float32 images that a model sees."""
        return normalise(images, self.mean, self.std)

    def loaders(
        self, batch_size: int = 128, *, seed: int = 0, augment: bool = True, device: str | torch.device = "cpu"
    ) -> Loaders:
        """Return the loaders of normalised batches.

        What the n-th epoch gives depends on `seed` and n only, not on what ran before; the global random state is
        neither read nor changed. The last batch of an epoch may be smaller.

        Args:
            batch_size: images in a batch.
            seed: of the order and the augmentation of the training images.
            augment: apply `augmentation` to the training images.
            device: where the images are kept and the batches are made.

        Raises:
            DataError: the batch size is not positive.
        """
        if batch_size < 1:
            raise DataError(f"batch_size={batch_size}: expected at least 1.")
        train = BatchedImages(
            self.train_images.to(device),
            self.train_labels.to(device),
            mean=self.mean,
            std=self.std,
            augmentation=self.augmentation if augment else None,
            seed=seed,
        )
        test = BatchedImages(self.test_images.to(device), self.test_labels.to(device), mean=self.mean, std=self.std)
        return Loaders(
            train=loader(train, batch_size, sampler=EpochShuffle(len(train), seed=seed)),
            test=loader(test, batch_size, sampler=None),
        )

    def split_validation(self, *, fraction: float = 0.1, seed: int = 0) -> ImageData:
        """Return the training images alone, split in two: what `test` means there was held out of `train` here.

        Choose hyper-parameters, widths and epochs on that, and look at the test images of this object once, at the
        end. The result has none of them.

        Args:
            fraction: share of the training images that is held out, the same in every class.
            seed: decides which.

        Raises:
            DataError: the fraction is not between 0 and 1.
        """
        stay, held = stratified_split(self.train_labels.cpu(), fraction=fraction, seed=seed)
        stay, held = stay.to(self.train_images.device), held.to(self.train_images.device)
        return replace(
            self,
            name=f"{self.name} validation",
            train_images=self.train_images[stay],
            train_labels=self.train_labels[stay],
            test_images=self.train_images[held],
            test_labels=self.train_labels[held],
        )


def channel_statistics(images: Tensor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and standard deviation of each channel, in units of 255; exact sums in integers.

    A channel that is the same everywhere gets the deviation of one step, 1 / 255, so that it can be divided by.

    Args:
        images: (N, C, H, W) uint8.

    >>> channel_statistics(torch.tensor([[[[0, 255]]]], dtype=torch.uint8))
    ((0.5,), (0.5,))
    """
    means, stds = [], []
    for channel in range(images.shape[1]):
        counts = torch.zeros(256, dtype=torch.int64)
        for part in torch.split(images[:, channel], 4096):
            counts += torch.bincount(part.flatten().cpu(), minlength=256)
        values, weights = torch.arange(256, dtype=torch.float64) / 255, counts.double() / counts.sum()
        mean = (values * weights).sum()
        means.append(float(mean))
        stds.append(max(float(((values - mean).square() * weights).sum().sqrt()), 1 / 255))
    return tuple(means), tuple(stds)
