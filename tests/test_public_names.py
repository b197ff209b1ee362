"""What `import secateur` offers, and what it costs."""

import ast
import subprocess
import sys
from pathlib import Path
from types import FunctionType

import pytest

import secateur


def test_every_public_name_is_there_and_sorted():
    assert secateur.__all__ == sorted(secateur.__all__)
    for name in secateur.__all__:
        assert getattr(secateur, name) is not None
    assert set(secateur.__all__) <= set(dir(secateur))


def test_type_checkers_see_the_names_that_are_imported_at_run_time():
    tree = ast.parse(Path(secateur.__file__).read_text())
    (guarded,) = [node for node in tree.body if isinstance(node, ast.If)]
    seen = {alias.name: node.module for node in guarded.body for alias in node.names}
    assert sorted(seen) == secateur.__all__
    assert {name: home for name, home in seen.items() if home} == secateur._HOMES


def test_the_module_of_the_same_name_does_not_hide_the_function():
    code = "import secateur.prune, secateur; print(type(secateur.prune).__name__)"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == FunctionType.__name__


def test_importing_the_package_does_not_import_torch():
    code = "import sys, secateur, secateur.cli; print('torch' in sys.modules, 'numpy' in sys.modules)"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "False False"


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'prunes'"):
        _ = secateur.prunes
