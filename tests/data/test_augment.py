import torch

from secateur.data.augment import Augmentation, Draws, epoch_generator

IMAGES = torch.arange(1, 1 + 2 * 2 * 3 * 3, dtype=torch.uint8).reshape(2, 2, 3, 3)


def draws(pad, top, left, mirrored):
    return Draws(pad, torch.tensor(top), torch.tensor(left), torch.tensor(mirrored))


def test_the_middle_crop_unmirrored_is_the_image():
    same = draws(4, [4, 4], [4, 4], [False, False]).apply(IMAGES, torch.tensor([0, 1]))
    assert torch.equal(same, IMAGES)


def test_top_moves_rows_and_left_moves_columns():
    moved = draws(1, [0, 2], [1, 1], [False, False]).apply(IMAGES, torch.tensor([0, 1]))
    assert moved[0, 0].tolist() == [[0, 0, 0], [1, 2, 3], [4, 5, 6]]
    assert moved[1, 0].tolist() == [[22, 23, 24], [25, 26, 27], [0, 0, 0]]
    sideways = draws(1, [1, 1], [0, 2], [False, False]).apply(IMAGES, torch.tensor([0, 1]))
    assert sideways[0, 0].tolist() == [[0, 1, 2], [0, 4, 5], [0, 7, 8]]


def test_mirroring_turns_columns_of_that_image_only():
    out = draws(0, [0, 0], [0, 0], [True, False]).apply(IMAGES, torch.tensor([0, 1]))
    assert out[0, 0].tolist() == [[3, 2, 1], [6, 5, 4], [9, 8, 7]]
    assert torch.equal(out[1], IMAGES[1])


def test_the_draw_belongs_to_the_example_not_to_its_place_in_the_batch():
    drawn = Augmentation(pad=1).draw(2, seed=0, epoch=3)
    together = drawn.apply(IMAGES, torch.tensor([0, 1]))
    alone = drawn.apply(IMAGES[1:], torch.tensor([1]))
    assert torch.equal(together[1:], alone)


def test_seed_and_epoch_decide():
    def shifts(seed, epoch):
        return Augmentation(pad=4).draw(50, seed=seed, epoch=epoch).top.tolist()

    assert shifts(0, 1) == shifts(0, 1)
    assert shifts(0, 1) != shifts(1, 0), "seed and epoch were added up"
    assert shifts(0, 1) != shifts(0, 2)


def test_every_shift_is_drawn_and_about_half_are_mirrored():
    drawn = Augmentation(pad=4, flip=True).draw(2000, seed=0, epoch=0)
    assert set(drawn.top.tolist()) == set(drawn.left.tolist()) == set(range(9))
    assert not torch.equal(drawn.top, drawn.left)
    assert 900 < int(drawn.mirrored.sum()) < 1100


def test_without_flip_nothing_is_mirrored_and_the_shifts_are_the_same():
    with_flip, without = (Augmentation(pad=2, flip=flip).draw(50, seed=0, epoch=0) for flip in (True, False))
    assert not without.mirrored.any()
    assert torch.equal(with_flip.top, without.top)


def test_order_and_augmentation_come_from_unrelated_streams():
    drawn = [torch.rand(4, generator=epoch_generator(0, 0, purpose=purpose)).tolist() for purpose in (0, 1)]
    assert drawn[0] != drawn[1]
