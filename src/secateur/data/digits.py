"""Real hand-written digits that need no download: 1,797 grey images of 8x8 pixels.

Source: Alpaydin & Kaynak 1998, "Optical Recognition of Handwritten Digits", UCI Machine Learning Repository, as
shipped with scikit-learn.
"""

from __future__ import annotations

import torch

from ..extras import require
from .augment import Augmentation
from .images import ImageData, channel_statistics
from .split import stratified_split


def digits(*, test_fraction: float = 0.2, seed: int = 0) -> ImageData:
    """Load the digits, split class by class.

    A digit fills its 8x8 pixels and is none when mirrored, so the augmentation moves it by one pixel at most.

    Args:
        test_fraction: share of all images that is held out for testing.
        seed: decides which; the default split is the one to quote figures on.

    Raises:
        MissingExtra: scikit-learn is not installed.
        DataError: the fraction is not between 0 and 1.

    >>> digits()
    ImageData('digits': 1438 to train, 359 to test, 1x8x8, 10 classes)
    """
    raw = require("sklearn.datasets", extra="train", purpose="digits").load_digits()
    # Grey values are counts from 0 to 16.
    images = (torch.from_numpy(raw.images) * (255 / 16)).round().to(torch.uint8).unsqueeze(1)
    labels = torch.from_numpy(raw.target).long()
    train, test = stratified_split(labels, fraction=test_fraction, seed=seed)
    mean, std = channel_statistics(images[train])
    return ImageData(
        name="digits",
        train_images=images[train],
        train_labels=labels[train],
        test_images=images[test],
        test_labels=labels[test],
        class_names=tuple(str(digit) for digit in raw.target_names),
        mean=mean,
        std=std,
        augmentation=Augmentation(pad=1, flip=False),
    )
