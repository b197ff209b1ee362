import numpy as np
import pytest

from secateur import data
from secateur.errors import DataError

Image = pytest.importorskip("PIL.Image")


def save(path, value=0, size=(6, 6), mode="RGB"):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, value if mode == "L" else (value,) * len(mode)).save(path)


@pytest.fixture
def folder(tmp_path):
    for number in range(10):
        save(tmp_path / "pets" / "cat" / f"{number}.png", value=number)
    for number in range(5):
        save(tmp_path / "pets" / "ant" / "deeper" / f"{number}.JPG", value=100 + number)
    return tmp_path / "pets"


def test_classes_are_the_folders_and_images_stay_with_theirs(folder):
    pets = data.image_folder(folder, size=6)
    assert pets.class_names == ("ant", "cat")
    assert pets.name == "pets"
    bright = pets.train_images[:, 0, 0, 0] > 50
    assert bright.tolist() == (pets.train_labels == 0).tolist()


def test_a_fifth_of_each_class_is_held_out(folder):
    pets = data.image_folder(folder, size=6)
    assert np.bincount(pets.train_labels).tolist() == [4, 8]
    assert np.bincount(pets.test_labels).tolist() == [1, 2]


@pytest.mark.parametrize("tested", ["test", "val"])
def test_given_parts_are_kept_apart(tmp_path, tested):
    for name in ("a", "b"):
        save(tmp_path / "train" / name / "0.png", value=1)
        save(tmp_path / "train" / name / "1.png", value=1)
        save(tmp_path / tested / name / "0.png", value=2)
    parts = data.image_folder(tmp_path, size=4)
    assert set(parts.train_images.flatten().tolist()) == {1}
    assert set(parts.test_images.flatten().tolist()) == {2}
    assert (len(parts.train_labels), len(parts.test_labels)) == (4, 2)


def test_an_oblong_image_is_cropped_around_its_middle_not_squashed(tmp_path):
    stripes = np.zeros((8, 24, 3), dtype=np.uint8)
    stripes[:, :8], stripes[:, 8:16], stripes[:, 16:] = 50, 150, 250
    for name in ("a", "b"):
        for number in range(2):
            (tmp_path / name).mkdir(exist_ok=True)
            Image.fromarray(stripes).save(tmp_path / name / f"{number}.png")
    images = data.image_folder(tmp_path, size=8, test_fraction=0.5).train_images
    assert set(images.flatten().tolist()) == {150}


def test_grey_and_transparent_images_become_colour_or_grey(tmp_path):
    for name, mode in (("a", "L"), ("b", "RGBA")):
        for number in range(2):
            save(tmp_path / name / f"{number}.png", value=7, mode=mode)
    assert data.image_folder(tmp_path, size=4, test_fraction=0.5).image_shape == (3, 4, 4)
    grey = data.image_folder(tmp_path, size=4, channels=1, test_fraction=0.5)
    assert grey.image_shape == (1, 4, 4)
    assert set(grey.train_images.flatten().tolist()) == {7}


def test_other_and_hidden_files_are_passed_over(folder):
    (folder / "cat" / "notes.txt").write_text("no image")
    (folder / "cat" / "._0.png").write_bytes(b"no image")
    (folder / ".cache").mkdir()
    assert len(data.image_folder(folder, size=6).train_labels) == 12


def test_a_corrupt_image_is_named(folder):
    (folder / "cat" / "3.png").write_bytes(b"\x89PNG\r\n\x1a\nrubbish")
    with pytest.raises(DataError, match=r"cat/3\.png is no readable image .*; repair or remove it"):
        data.image_folder(folder)


def test_a_missing_folder_is_named():
    with pytest.raises(DataError, match="there is no folder 'nowhere'"):
        data.image_folder("nowhere")


def test_a_folder_without_classes_is_an_error(tmp_path):
    save(tmp_path / "0.png")
    with pytest.raises(DataError, match="has no sub-folders; expected one per class"):
        data.image_folder(tmp_path)


def test_a_class_without_images_is_an_error(folder):
    (folder / "dog").mkdir()
    with pytest.raises(DataError, match="dog holds no image; known endings"):
        data.image_folder(folder)


def test_a_test_class_that_is_not_trained_is_an_error(tmp_path):
    save(tmp_path / "train" / "a" / "0.png")
    save(tmp_path / "test" / "b" / "0.png")
    with pytest.raises(DataError, match="test has the classes b, which the training part lacks"):
        data.image_folder(tmp_path)


@pytest.mark.parametrize("wrong", [{"size": 0}, {"channels": 2}])
def test_a_size_or_channel_count_that_makes_no_sense_is_an_error(folder, wrong):
    with pytest.raises(DataError, match="expected a size of at least 1, and 1 or 3 channels"):
        data.image_folder(folder, **wrong)
