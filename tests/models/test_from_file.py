import copy
import sys

import pytest
import torch

from secateur import models
from secateur.errors import ModelError, UnknownName

PLAIN = """
from torch import nn
def make(class_count=10, in_channels=3):
    return nn.Linear(in_channels, class_count)
def not_a_model():
    return {"weights": 1}
def fails():
    raise RuntimeError("no such block")
"""


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "my_models.py"
    path.write_text(PLAIN)
    return path


def test_the_function_is_called_with_what_was_given(file):
    model = models.resolve(f"{file}:make", class_count=4, in_channels=2)
    assert (model.in_features, model.out_features) == (2, 4)


def test_what_was_not_given_keeps_the_functions_own_default(file):
    assert models.resolve(f"{file}:make").out_features == 10


def test_a_home_folder_is_expanded(file, monkeypatch):
    monkeypatch.setenv("HOME", str(file.parent))
    assert models.resolve("~/my_models.py:make").in_features == 3


def test_neighbours_can_be_imported_and_nothing_stays_loaded(tmp_path):
    made = []
    for width in (3, 5):
        folder = tmp_path / f"net{width}"
        (folder / "parts").mkdir(parents=True)
        (folder / "parts" / "__init__.py").write_text("from .inner import WIDTH")
        (folder / "parts" / "inner.py").write_text(f"WIDTH = {width}")
        (folder / "net.py").write_text(
            "import parts\nfrom torch import nn\n"
            "def make():\n    import parts.inner\n    return nn.Linear(1, parts.inner.WIDTH)"
        )
        modules, search = set(sys.modules), list(sys.path)
        made.append(models.resolve(f"{folder / 'net.py'}:make").out_features)
        assert set(sys.modules) == modules
        assert sys.path == search
    assert made == [3, 5], "the second file got the first one's neighbour"


def test_nothing_stays_loaded_after_a_failure_either(file):
    modules, search = set(sys.modules), list(sys.path)
    with pytest.raises(ModelError):
        models.resolve(f"{file}:fails")
    assert set(sys.modules) == modules
    assert sys.path == search


def test_a_model_whose_file_is_not_loaded_any_more_still_copies_and_runs(tmp_path):
    path = tmp_path / "net.py"
    path.write_text(
        "from dataclasses import dataclass\nfrom torch import nn\n"
        "@dataclass\nclass Width:\n    n: int = 2\n"
        "class Net(nn.Linear):\n    def forward(self, x):\n        return super().forward(x) + 1\n"
        "def make():\n    return Net(Width().n, 2)"
    )
    model = models.resolve(f"{path}:make")
    x = torch.randn(3, 2)
    assert torch.equal(copy.deepcopy(model)(x), model(x))


def test_a_missing_file_is_named():
    with pytest.raises(ModelError, match=r"there is no file 'nowhere/net\.py'; give FILE\.py:FUNCTION"):
        models.resolve("nowhere/net.py:make")


def test_a_missing_function_gets_a_suggestion(file):
    with pytest.raises(UnknownName, match=r"no function of .*my_models\.py is called 'mak'; did you mean 'make'"):
        models.resolve(f"{file}:mak")


@pytest.mark.parametrize("ending", ["", ":"])
def test_a_file_without_a_function_lists_its_functions(file, ending):
    with pytest.raises(ModelError, match=r"names no function; .* one of make, not_a_model, fails"):
        models.resolve(f"{file}{ending}")


def test_something_else_than_a_module_is_an_error(file):
    with pytest.raises(ModelError, match=r"my_models\.py:not_a_model returned dict; expected a torch\.nn\.Module"):
        models.resolve(f"{file}:not_a_model")


def test_an_argument_that_the_function_does_not_take_is_an_error(file):
    with pytest.raises(ModelError, match=r"unexpected keyword argument 'depth'; it takes \(class_count=10"):
        models.resolve(f"{file}:make", depth=3)


def test_a_callable_that_does_not_tell_its_arguments_is_called(tmp_path):
    path = tmp_path / "builtin.py"
    path.write_text("make = type")
    with pytest.raises(ModelError, match="make failed: TypeError"):
        models.resolve(f"{path}:make", class_count=1)


def test_an_error_inside_the_function_keeps_its_cause(file):
    with pytest.raises(ModelError, match="fails failed: RuntimeError: no such block") as caught:
        models.resolve(f"{file}:fails")
    assert isinstance(caught.value.__cause__, RuntimeError)


def test_a_file_that_does_not_run_is_an_error(tmp_path):
    path = tmp_path / "broken.py"
    path.write_text("import nowhere_to_be_found\n")
    with pytest.raises(ModelError, match=r"broken\.py cannot be run: ModuleNotFoundError"):
        models.resolve(f"{path}:make")
