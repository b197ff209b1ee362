import pytest
import torch

from secateur.data.augment import Augmentation
from secateur.data.batches import BatchedImages, EpochShuffle, loader, normalise

COUNT = 23
IMAGES = torch.randint(0, 256, (COUNT, 2, 6, 6), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
LABELS = torch.arange(COUNT)
MEAN, STD = (0.25, 0.5), (0.5, 0.125)


def dataset(augmentation=None, seed=0):
    return BatchedImages(IMAGES, LABELS, mean=MEAN, std=STD, augmentation=augmentation, seed=seed)


def by_example(batches):
    images, labels = (torch.cat(column) for column in zip(*batches, strict=True))
    return images[labels.argsort()]


def test_each_channel_is_normalised_with_its_own_numbers():
    image = torch.tensor([[[[51]], [[255]]]], dtype=torch.uint8)
    assert normalise(image, MEAN, STD).flatten().tolist() == pytest.approx([(0.2 - 0.25) / 0.5, (1 - 0.5) / 0.125])


def test_an_epoch_is_every_example_once_with_its_own_image():
    batches = list(loader(dataset(), 5, sampler=EpochShuffle(COUNT, seed=0)))
    assert [len(labels) for _, labels in batches] == [5, 5, 5, 5, 3]
    assert torch.cat([labels for _, labels in batches]).tolist() != list(range(COUNT))
    torch.testing.assert_close(by_example(batches), normalise(IMAGES, MEAN, STD))


def test_the_same_epoch_can_be_had_again_and_the_next_one_differs():
    train = loader(dataset(Augmentation(pad=2)), 5, sampler=EpochShuffle(COUNT, seed=0))
    first, second = list(train), list(train)
    train.sampler.set_epoch(1)
    for (images, labels), (again, labels_again) in zip(second, train, strict=True):
        assert torch.equal(images, again)
        assert torch.equal(labels, labels_again)
    assert not torch.equal(first[0][1], second[0][1])
    assert not torch.equal(by_example(first), by_example(second))


def test_augmentation_does_not_depend_on_the_batch_size():
    made = [
        by_example(loader(dataset(Augmentation(pad=2)), size, sampler=EpochShuffle(COUNT, seed=0))) for size in (4, 11)
    ]
    assert torch.equal(*made)


def test_two_passes_at_once_do_not_disturb_each_other():
    def fresh():
        return loader(dataset(Augmentation(pad=2)), 5, sampler=EpochShuffle(COUNT, seed=0))

    alone = fresh()
    expected = [list(alone), list(alone)]
    both = fresh()
    got = list(zip(both, both, strict=True))
    for number in range(2):
        for batch, pair in zip(expected[number], got, strict=True):
            assert torch.equal(batch[0], pair[number][0])


def test_the_global_random_state_is_neither_read_nor_changed():
    made = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        before = torch.get_rng_state()
        made.append(by_example(loader(dataset(Augmentation()), 5, sampler=EpochShuffle(COUNT, seed=0))))
        assert torch.equal(before, torch.get_rng_state())
    assert torch.equal(*made)


def test_an_example_asked_for_by_its_index_is_as_stored():
    image, label = dataset(Augmentation(pad=2))[3]
    assert torch.equal(image, normalise(IMAGES[3:4], MEAN, STD)[0])
    assert label == 3


def test_the_stored_images_are_never_written_to():
    before = IMAGES.clone()
    list(loader(dataset(Augmentation(pad=2)), 5, sampler=EpochShuffle(COUNT, seed=0)))
    assert torch.equal(before, IMAGES)


@pytest.fixture
def accelerator():
    accelerate = pytest.importorskip("accelerate")
    yield accelerate.Accelerator(cpu=True)
    # Accelerate keeps its settings in a class for the whole process; other tests want others.
    accelerate.state.AcceleratorState._reset_state(reset_partial_state=True)


def test_accelerate_gives_the_same_epochs(accelerator):
    plain = loader(dataset(Augmentation(pad=2)), 5, sampler=EpochShuffle(COUNT, seed=0))
    prepared = accelerator.prepare(loader(dataset(Augmentation(pad=2)), 5, sampler=EpochShuffle(COUNT, seed=0)))
    for _ in range(2):
        for ours, theirs in zip(plain, prepared, strict=True):
            assert torch.equal(ours[0], theirs[0])
            assert torch.equal(ours[1], theirs[1])
