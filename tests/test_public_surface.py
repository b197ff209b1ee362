"""What each package offers: `__all__` is sorted, is what it re-exports, and every name of it is described."""

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
def test_all_is_what_the_package_reexports(package):
    """``from .budget import Budget as Budget`` is how type checkers tell a public name from a borrowed one."""
    path = SOURCE.joinpath(*package.split(".")[1:], "__init__.py")
    tree = ast.parse(path.read_text(encoding="utf-8"))
    aliases = [alias for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) for alias in node.names]
    renamed = [alias.name for alias in aliases if alias.asname not in (None, alias.name)]
    assert not renamed, f"{package} renames {renamed}"
    own = {node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.ClassDef)}
    reexported = {alias.name for alias in aliases if alias.asname == alias.name}
    names = set(importlib.import_module(package).__all__)
    assert reexported | {name for name in own if not name.startswith("_")} | (names & constants(tree)) == names


def constants(tree: ast.Module) -> set[str]:
    """Names that the module assigns itself."""
    targets = [t for node in tree.body if isinstance(node, ast.Assign) for t in node.targets]
    return {target.id for target in targets if isinstance(target, ast.Name)}


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
