"""CIFAR-10: 50,000 + 10,000 colour images of 32x32 pixels in 10 classes.

Source: Krizhevsky 2009, "Learning Multiple Layers of Features from Tiny Images", technical report, section 3.
"""

from __future__ import annotations

import os

from .images import ImageData
from .parquet import Columns, read_parts

HUB_ID = "uoft-cs/cifar10"
CLASS_NAMES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
# What the pruning papers normalise with. The deviations are means over single images, so a little below those of
# all pixels together (0.247, 0.243, 0.262); kept so that figures compare.
MEAN = (0.4914, 0.4822, 0.4465)
STD = (0.2023, 0.1994, 0.2010)


def cifar10(
    source: str | os.PathLike[str] | None = None,
    *,
    limit: int | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
) -> ImageData:
    """Load CIFAR-10 with the papers' normalisation and augmentation (pad 4, crop, flip).

    Args:
        source: a hub id, a folder with parquet files or a pattern that matches them, with the columns `img` and
            `label`; None for the hub's own copy.
        limit: read only that many images of each part, the first ones.
        cache_dir: keep what is downloaded here; None for keeping nothing.

    Raises:
        MissingExtra: `datasets` or Pillow is not installed.
        DataError: nothing is found there, or it is no data set of this kind.
    """
    place = HUB_ID if source is None else os.fspath(source)
    train, test = read_parts(place, Columns("img", "label"), limit=limit, cache_dir=cache_dir)
    return ImageData(
        name="cifar10",
        train_images=train.images,
        train_labels=train.labels,
        test_images=test.images,
        test_labels=test.labels,
        class_names=train.class_names or CLASS_NAMES,
        mean=MEAN,
        std=STD,
    )
