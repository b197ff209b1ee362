import dataclasses

import pytest
import torch

from secateur.data.augment import Augmentation
from secateur.data.images import ImageData, channel_statistics
from secateur.errors import DataError


def tiny(train_count=40, test_count=6):
    generator = torch.Generator().manual_seed(0)

    def images(count):
        return torch.randint(0, 256, (count, 3, 8, 8), generator=generator, dtype=torch.uint8)

    return ImageData(
        name="tiny",
        train_images=images(train_count),
        train_labels=torch.arange(train_count) % 4,
        test_images=images(test_count),
        test_labels=torch.arange(test_count) % 4,
        class_names=("a", "b", "c", "d"),
        mean=(0.5, 0.5, 0.5),
        std=(0.25, 0.25, 0.25),
        augmentation=Augmentation(pad=2),
    )


def test_it_says_what_it_holds():
    data = tiny()
    assert repr(data) == "ImageData('tiny': 40 to train, 6 to test, 3x8x8, 4 classes)"
    assert data.image_shape == (3, 8, 8)
    assert data.class_count == 4


def test_test_batches_are_in_order_and_never_augmented():
    data = tiny()
    images, labels = (torch.cat(column) for column in zip(*data.loaders(4).test, strict=True))
    assert torch.equal(images, data.normalise(data.test_images))
    assert torch.equal(labels, data.test_labels)


def test_train_batches_are_augmented_only_if_asked():
    data = tiny()
    stored = {tuple(image.flatten().tolist()) for image in data.normalise(data.train_images)}
    plain = torch.cat([images for images, _ in data.loaders(8, augment=False).train])
    moved = torch.cat([images for images, _ in data.loaders(8, augment=True).train])
    assert all(tuple(image.flatten().tolist()) in stored for image in plain)
    assert sum(tuple(image.flatten().tolist()) in stored for image in moved) < 10


def test_the_seed_decides_the_order():
    data = tiny()
    first, again, other = (
        torch.cat([labels for _, labels in data.loaders(8, seed=seed).train]).tolist() for seed in (0, 0, 1)
    )
    assert first == again
    assert first != other


def test_batches_come_out_on_the_device_asked_for():
    loaders = tiny().loaders(8, device="meta")
    assert loaders.test.dataset[0][0].device.type == "meta"


def test_validation_images_come_from_the_training_images_alone():
    data = tiny()
    tuned = data.split_validation(fraction=0.2, seed=3)
    train = {tuple(image.flatten().tolist()) for image in data.train_images}
    stay = {tuple(image.flatten().tolist()) for image in tuned.train_images}
    held = {tuple(image.flatten().tolist()) for image in tuned.test_images}
    assert stay | held == train
    assert not stay & held
    assert torch.bincount(tuned.test_labels).tolist() == [2, 2, 2, 2]
    assert tuned.name == "tiny validation"
    assert len(data.train_labels) == 40, "the data set itself was changed"


def test_the_seed_decides_what_is_held_out():
    data = tiny()
    first, again, other = (data.split_validation(fraction=0.2, seed=seed).test_images for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_statistics_are_those_of_all_pixels_of_a_channel():
    images = tiny(train_count=5000).train_images
    mean, std = channel_statistics(images)
    pixels = images.double().transpose(0, 1).flatten(1) / 255
    assert mean == pytest.approx(pixels.mean(dim=1).tolist(), abs=1e-12)
    assert std == pytest.approx(pixels.std(dim=1, correction=0).tolist(), abs=1e-12)


def test_a_constant_channel_can_be_divided_by_its_deviation():
    assert channel_statistics(torch.zeros(3, 1, 2, 2, dtype=torch.uint8)) == ((0.0,), (1 / 255,))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"test_images": torch.zeros(6, 3, 8, 8)},
            r"test images are torch\.float32 \(6, 3, 8, 8\); expected torch\.uint8",
        ),
        ({"test_images": torch.zeros(6, 1, 8, 8, dtype=torch.uint8)}, "the same shape in both parts"),
        ({"train_labels": torch.zeros(39, dtype=torch.int64)}, r"train labels are torch\.int64 \(39,\) for 40 images"),
        ({"train_labels": torch.full((40,), 4)}, "train labels go from 4 to 4; expected 0 to 3 for 4 classes"),
        ({"mean": (0.5,)}, "1 means and 3 deviations for images of 3 channels"),
        ({"std": (0.1, 0.0, 0.1)}, "expected numbers above 0"),
    ],
)
def test_what_does_not_fit_together_is_an_error(change, message):
    with pytest.raises(DataError, match=message):
        dataclasses.replace(tiny(), **change)


def test_a_batch_size_of_zero_is_an_error():
    with pytest.raises(DataError, match="batch_size=0: expected at least 1"):
        tiny().loaders(0)
