import numpy as np
import pytest
import torch

from secateur import data

sklearn_datasets = pytest.importorskip("sklearn.datasets")


def test_all_digits_are_there_once():
    digits = data.digits()
    raw = sklearn_datasets.load_digits()
    ours = torch.cat([digits.train_images, digits.test_images]).flatten(1).numpy()
    stored = np.rint(raw.images.reshape(len(raw.images), -1) * 255 / 16).astype(np.uint8)
    assert sorted(map(bytes, ours)) == sorted(map(bytes, stored))


def test_labels_stay_with_their_images():
    digits = data.digits()
    raw = sklearn_datasets.load_digits()
    labels = {bytes(image.astype(np.uint8)): label for image, label in zip(raw.images, raw.target, strict=True)}
    for image, label in zip(digits.test_images, digits.test_labels, strict=True):
        assert labels[bytes((image[0].numpy() / 255 * 16).round().astype(np.uint8))] == label


def test_the_split_is_fixed_and_even():
    first, again = data.digits(), data.digits()
    assert torch.equal(first.test_images, again.test_images)
    assert len(first.test_labels) == 359
    shares = torch.bincount(first.test_labels) / torch.bincount(torch.cat([first.train_labels, first.test_labels]))
    assert all(abs(share - 0.2) < 0.006 for share in shares.tolist())


def test_another_seed_is_another_split():
    assert not torch.equal(data.digits(seed=0).test_images, data.digits(seed=1).test_images)


def test_digits_are_not_mirrored():
    assert data.digits().augmentation == data.Augmentation(pad=1, flip=False)


def test_training_batches_are_normalised():
    images = torch.cat([images for images, _ in data.digits().loaders(256, augment=False).train])
    assert images.mean().item() == pytest.approx(0, abs=1e-5)
    assert images.std().item() == pytest.approx(1, abs=1e-3)
