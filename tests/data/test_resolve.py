import importlib

import pytest

from secateur import data
from secateur.errors import DataError, MissingExtra, UnknownName

from .shared import FOLDER, needs_cifar10


def test_options_reach_the_loader():
    pytest.importorskip("sklearn")
    assert len(data.resolve("digits", test_fraction=0.5).test_labels) == 898


@needs_cifar10
def test_a_place_follows_the_colon():
    pytest.importorskip("datasets")
    assert len(data.resolve(f"cifar10:{FOLDER}", limit=50).train_labels) == 50


def test_a_folder_follows_the_colon(tmp_path):
    image = pytest.importorskip("PIL.Image")
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        for number in range(2):
            image.new("RGB", (4, 4)).save(tmp_path / name / f"{number}.png")
    assert data.resolve(f"folder:{tmp_path}", size=4, test_fraction=0.5).class_names == ("a", "b")


def test_a_misspelt_name_gets_a_suggestion():
    with pytest.raises(UnknownName, match=r"no data set is called 'cifer10'; did you mean 'cifar10'"):
        data.resolve("cifer10:somewhere")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("folder", r"'folder' cannot be loaded: missing a required argument: 'path'"),
        ("digits:somewhere", r"'digits:somewhere' cannot be loaded: too many positional arguments"),
        ("cifar10:", r"'cifar10:': nothing follows the colon"),
        ("folder:nowhere", "there is no folder 'nowhere'"),
    ],
)
def test_a_place_that_is_missing_or_not_wanted_is_an_error(name, message):
    with pytest.raises(DataError, match=message):
        data.resolve(name)


def test_an_unknown_option_is_an_error():
    with pytest.raises(DataError, match="got an unexpected keyword argument 'colour'"):
        data.resolve("digits", colour=True)


def test_a_missing_library_names_the_extra_to_install(monkeypatch):
    def without(wanted, *args):
        raise ModuleNotFoundError("No module named 'sklearn'", name="sklearn")

    monkeypatch.setattr(importlib, "import_module", without)
    with pytest.raises(MissingExtra, match=r'digits needs sklearn.*: pip install "secateur\[train\]"'):
        data.digits()
