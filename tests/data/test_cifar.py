import io

import numpy as np
import pytest
import torch

from secateur import data
from secateur.errors import DataError

from .shared import FOLDER, needs_cifar10

pytest.importorskip("datasets")
pyarrow = pytest.importorskip("pyarrow")
parquet = pytest.importorskip("pyarrow.parquet")
Image = pytest.importorskip("PIL.Image")


def png(pixels):
    buffer = io.BytesIO()
    Image.fromarray(np.asarray(pixels, dtype=np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def colour(value, size=4):
    return np.full((size, size, 3), (value, value + 1, value + 2))


def write(path, encoded, labels, column="img"):
    rows = [item and {"bytes": item, "path": f"{number}.png"} for number, item in enumerate(encoded)]
    parquet.write_table(pyarrow.table({column: rows, "label": labels}), path)


@pytest.fixture
def folder(tmp_path):
    write(tmp_path / "train-00000-of-00002.parquet", [png(colour(v)) for v in (10, 20)], [3, 4])
    write(tmp_path / "train-00001-of-00002.parquet", [png(colour(v)) for v in (30,)], [5])
    write(tmp_path / "test-00000-of-00001.parquet", [png(colour(40))], [6])
    return tmp_path


def test_files_of_a_folder_are_read_in_the_order_of_their_names(folder):
    cifar = data.cifar10(folder)
    assert cifar.train_images[:, :, 0, 0].tolist() == [[10, 11, 12], [20, 21, 22], [30, 31, 32]]
    assert cifar.train_labels.tolist() == [3, 4, 5]
    assert cifar.test_images[:, 0, 0, 0].tolist() == [40]
    assert cifar.class_names[3] == "cat"


def test_a_pattern_chooses_files(folder):
    cifar = data.cifar10(f"{folder}/*-00000-*.parquet")
    assert cifar.train_labels.tolist() == [3, 4]
    assert cifar.test_labels.tolist() == [6]


def test_a_folders_name_tells_the_part_where_the_files_does_not(folder, tmp_path):
    for part in ("train", "test"):
        (tmp_path / "by_part" / part).mkdir(parents=True)
        write(tmp_path / "by_part" / part / "0.parquet", [png(colour(1))], [len(part)])
    cifar = data.cifar10(tmp_path / "by_part")
    assert (cifar.train_labels.tolist(), cifar.test_labels.tolist()) == ([5], [4])


def test_a_limit_takes_the_first_of_each_part(folder):
    assert data.cifar10(folder, limit=2).train_labels.tolist() == [3, 4]


def test_a_limit_of_zero_is_an_error(folder):
    with pytest.raises(DataError, match="limit=0: expected at least 1"):
        data.cifar10(folder, limit=0)


def test_a_corrupt_image_is_named(folder):
    write(folder / "train-00001-of-00002.parquet", [png(colour(1)), b"no image"], [0, 0])
    with pytest.raises(DataError, match=r"train row 3 \(1\.png\) is no readable image"):
        data.cifar10(folder)


def test_a_truncated_image_is_named(folder):
    write(
        folder / "train-00001-of-00002.parquet", [png(np.random.default_rng(0).integers(0, 256, (9, 9, 3)))[:-40]], [0]
    )
    with pytest.raises(DataError, match=r"train row 2 \(0\.png\) is no readable image"):
        data.cifar10(folder)


def test_images_of_two_sizes_are_an_error(folder):
    write(folder / "train-00001-of-00002.parquet", [png(colour(1, size=5))], [0])
    with pytest.raises(DataError, match=r"has the shape \(3, 5, 5\); the images before it have \(3, 4, 4\)"):
        data.cifar10(folder)


def test_a_row_without_an_image_is_named(folder):
    write(folder / "train-00001-of-00002.parquet", [png(colour(1)), None], [0, 0])
    with pytest.raises(DataError, match="train row 3 has no image"):
        data.cifar10(folder)


def test_a_row_without_a_label_is_an_error(folder):
    write(folder / "train-00001-of-00002.parquet", [png(colour(1))] * 2, [0, None])
    with pytest.raises(DataError, match="train has rows without a label"):
        data.cifar10(folder)


def test_labels_beyond_the_classes_are_an_error(folder):
    write(folder / "train-00001-of-00002.parquet", [png(colour(1))], [10])
    with pytest.raises(DataError, match="train labels go from 3 to 10; expected 0 to 9"):
        data.cifar10(folder)


def test_a_corrupt_file_is_an_error(folder):
    (folder / "train-00000-of-00002.parquet").write_bytes(b"no parquet")
    with pytest.raises(DataError, match=f"{folder}"):
        data.cifar10(folder)


def test_a_missing_column_is_named(folder):
    for part in ("train", "test"):
        for file in folder.glob(f"{part}-*"):
            write(file, [png(colour(1))], [0], column="image")
    with pytest.raises(DataError, match="train has the columns image, label; img is needed"):
        data.cifar10(folder)


def test_a_folder_without_a_test_part_says_what_it_found(folder):
    (folder / "test-00000-of-00001.parquet").unlink()
    with pytest.raises(DataError, match=r"train-00000-of-00002\.parquet.* no file has test in its name"):
        data.cifar10(folder)


@pytest.mark.parametrize("source", ["./nowhere", "/nowhere/at/all", "nowhere/*.parquet", "a/b/c", "nowhere.parquet"])
def test_a_place_without_files_is_named(source):
    with pytest.raises(DataError, match="no parquet file matches"):
        data.cifar10(source)


def test_a_hub_that_cannot_be_reached_is_an_error_that_says_what_to_give():
    with pytest.raises(DataError, match=r"'uoft-cs/cifar10' cannot be read .* Give a folder or a pattern of parquet"):
        data.cifar10()


@needs_cifar10
def test_the_real_images_have_the_known_classes_and_brightness():
    cifar = data.cifar10(FOLDER, limit=1000)
    assert cifar.image_shape == (3, 32, 32)
    assert cifar.class_names == (
        "airplane",
        "automobile",
        "bird",
        "cat",
        "deer",
        "dog",
        "frog",
        "horse",
        "ship",
        "truck",
    )
    assert min(torch.bincount(cifar.train_labels, minlength=10)) > 60
    mean, _ = data.channel_statistics(cifar.train_images)
    assert mean == pytest.approx(cifar.mean, abs=0.02)


@needs_cifar10
@pytest.mark.slow
def test_all_real_images_are_read_and_each_class_is_equally_frequent():
    cifar = data.cifar10(FOLDER)
    assert torch.bincount(cifar.train_labels).tolist() == [5000] * 10
    assert torch.bincount(cifar.test_labels).tolist() == [1000] * 10
    assert data.channel_statistics(cifar.train_images)[0] == pytest.approx(cifar.mean, abs=0.001)
    assert torch.bincount(cifar.split_validation(fraction=0.1).test_labels).tolist() == [500] * 10
