"""The public surface: `__all__` is sorted, is what is visible, and every name of it is described."""

from __future__ import annotations

import ast
import importlib
import inspect
import re
import types
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src" / "secateur"
PACKAGES = sorted(
    ".".join(("secateur", *path.parent.relative_to(SOURCE).parts))
    for path in SOURCE.rglob("__init__.py")
    if "__all__" in path.read_text(encoding="utf-8")
)


def sort_key(name: str) -> tuple[int, list[tuple[int, int | str]]]:
    """Constants, then classes, then the rest; numbers in a name count as numbers."""
    kind = 0 if name.isupper() else 1 if name[0].isupper() else 2
    return kind, [(0, int(part)) if part.isdigit() else (1, part) for part in re.split(r"(\d+)", name) if part]


def public_members(package: str) -> list[tuple[str, object]]:
    module = importlib.import_module(package)
    return [(f"{package}.{name}", getattr(module, name)) for name in module.__all__]


@pytest.mark.parametrize("package", PACKAGES)
def test_all_is_sorted_and_without_doubles(package):
    names = importlib.import_module(package).__all__
    assert names == sorted(set(names), key=sort_key)


@pytest.mark.parametrize("package", PACKAGES)
def test_all_is_what_is_visible(package):
    module = importlib.import_module(package)
    visible = {
        name
        for name, value in vars(module).items()
        if not name.startswith("_") and not isinstance(value, types.ModuleType) and name != "annotations"
    }
    modules = {name for name in module.__all__ if isinstance(getattr(module, name), types.ModuleType)}
    assert visible | modules == set(module.__all__)


@pytest.mark.parametrize("package", PACKAGES)
def test_reexports_keep_their_names(package):
    path = SOURCE.joinpath(*package.split(".")[1:], "__init__.py")
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.level:
            renamed = [a.name for a in node.names if a.asname is not None and a.asname != a.name]
            assert not renamed, f"{package} renames {renamed}"


@pytest.mark.parametrize("package", PACKAGES)
def test_every_public_object_is_described(package):
    for name, value in public_members(package):
        if inspect.isclass(value) or inspect.isroutine(value) or inspect.ismodule(value):
            text = inspect.getdoc(value) or ""
            assert text, f"{name} has no docstring"
            assert not text.startswith(f"{name.rpartition('.')[2]}("), f"{name} has only its signature as docstring"


@pytest.mark.parametrize("package", PACKAGES)
def test_every_public_method_is_described(package):
    for name, value in public_members(package):
        if inspect.isclass(value) and value.__module__.startswith("secateur"):
            own = [(n, m) for n, m in vars(value).items() if not n.startswith("_")]
            bare = [n for n, m in own if isinstance(m, types.FunctionType | property) and not inspect.getdoc(m)]
            assert not bare, f"{name}: {bare} have no docstring"
