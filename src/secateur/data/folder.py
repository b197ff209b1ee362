"""Image files in one folder per class."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..errors import DataError
from .augment import Augmentation
from .decoding import decode
from .images import ImageData, channel_statistics
from .split import stratified_split

SUFFIXES = frozenset({".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"})
TEST_FOLDERS = ("test", "val", "validation")


def image_folder(
    path: str | os.PathLike[str], *, size: int = 64, channels: int = 3, test_fraction: float = 0.2, seed: int = 0
) -> ImageData:
    """Load `path/CLASS/…` or `path/train/CLASS/…` with `path/test/CLASS/…` (or val, validation).

    Args:
        path: the folder. Classes are its sub-folders in alphabetical order; files may lie deeper.
        size: height and width that every image is brought to: shorter side scaled, longer side cropped.
        channels: 3 for colour, 1 for grey.
        test_fraction: share held out for testing, class by class; for a folder without a test part.
        seed: decides which are held out.

    Raises:
        DataError: no such folder, a class without images, a test class that is not trained, or a file that is no
            readable image (it is named).
        MissingExtra: Pillow is not installed.
    """
    root = Path(path).expanduser()
    if not root.is_dir():
        raise DataError(f"there is no folder {str(path)!r} (from {Path.cwd()}).")
    if size < 1 or channels not in (1, 3):
        raise DataError(f"size={size}, channels={channels}: expected a size of at least 1, and 1 or 3 channels.")
    trained = root / "train" if (root / "train").is_dir() else root
    tested = next((root / name for name in TEST_FOLDERS if (root / name).is_dir()), None) if trained != root else None
    classes = _classes(trained)
    images, labels = _load(trained, classes, size=size, channels=channels)
    if tested is not None:
        held_images, held_labels = _load(tested, classes, size=size, channels=channels)
    else:
        stay, held = stratified_split(labels, fraction=test_fraction, seed=seed)
        images, labels, held_images, held_labels = images[stay], labels[stay], images[held], labels[held]
    mean, std = channel_statistics(images)
    return ImageData(
        name=root.resolve().name,
        train_images=images,
        train_labels=labels,
        test_images=held_images,
        test_labels=held_labels,
        class_names=tuple(classes),
        mean=mean,
        std=std,
        augmentation=Augmentation(pad=size // 8),
    )


def _classes(folder: Path) -> list[str]:
    names = sorted(entry.name for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    if not names:
        raise DataError(f"{folder} has no sub-folders; expected one per class, with the images in it.")
    return names


def _load(folder: Path, classes: list[str], *, size: int, channels: int) -> tuple[Tensor, Tensor]:
    if strange := sorted(set(_classes(folder)) - set(classes)):
        raise DataError(f"{folder} has the classes {', '.join(strange)}, which the training part lacks.")
    images, labels = [], []
    for label, name in enumerate(classes):
        files = sorted(file for file in (folder / name).rglob("*") if _is_image(file))
        if not files and (folder / name).is_dir():
            raise DataError(f"{folder / name} holds no image; known endings: {', '.join(sorted(SUFFIXES))}.")
        images += [decode(file, channels=channels, size=size) for file in files]
        labels += [label] * len(files)
    return torch.from_numpy(np.stack(images)), torch.tensor(labels)


def _is_image(file: Path) -> bool:
    return file.suffix.lower() in SUFFIXES and not file.name.startswith(".") and file.is_file()
