"""Build a model with a function of the user's own file."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import nn

from ..arguments import misfit
from ..errors import ModelError, UnknownName


def from_file(name: str, **kwargs: Any) -> nn.Module:
    """Run the file, call the function and return the model that it builds.

    The file may import its neighbours. `sys.path` is afterwards as before, and neither the file nor its neighbours
    stay in `sys.modules`, so two files may well have neighbours of the same name.

    Args:
        name: `FILE.py:FUNCTION`.
        kwargs: arguments of the function.

    Raises:
        ModelError: no such file, the file or the function fails, or something else than a module is returned.
        UnknownName: the file has no function of that name.
    """
    path_text, _, function = name.rpartition(":")
    if not path_text.endswith(".py"):
        path_text, function = name, ""
    path = Path(path_text).expanduser()
    if not path.is_file():
        raise ModelError(f"{name!r}: there is no file {path_text!r}; give FILE.py:FUNCTION, from {Path.cwd()}.")
    with _importing_beside(path):
        module = _run(path)
        factory = _function(module, function, path)
        return _call(factory, f"{path.name}:{function}", kwargs)


@contextmanager
def _importing_beside(path: Path) -> Iterator[None]:
    """Let the block import what lies beside `path`; forget those modules after it."""
    folder = path.resolve().parent
    search_before, loaded_before = list(sys.path), set(sys.modules)
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        sys.path[:] = search_before
        new = set(sys.modules) - loaded_before
        local = {name for name in new if "." not in name and _lies_in(sys.modules[name], folder)}
        for name in new:
            if name.partition(".")[0] in local:
                del sys.modules[name]


def _lies_in(module: ModuleType, folder: Path) -> bool:
    """Whether a top-level module is `folder/NAME.py` or `folder/NAME/__init__.py`; an installed one never is."""
    origin = getattr(module, "__file__", None)
    if origin is None:
        return any(Path(entry).resolve().parent == folder for entry in getattr(module, "__path__", ()))
    file = Path(origin).resolve()
    return file.parent == folder or (file.stem == "__init__" and file.parent.parent == folder)


def _run(path: Path) -> ModuleType:
    # The name is made so that it cannot hide a module that is already loaded, nor one that the file imports.
    spec = importlib.util.spec_from_file_location(f"_secateur_file_{path.stem}", path.resolve())
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise ModelError(f"{path} cannot be run: {type(error).__name__}: {error}.") from error
    return module


def _function(module: ModuleType, name: str, path: Path) -> Any:
    own = [key for key, value in vars(module).items() if callable(value) and value.__module__ == module.__name__]
    if not name:
        raise ModelError(f"{str(path)!r} names no function; give {path}:FUNCTION, with one of {', '.join(own)}.")
    found = getattr(module, name, None)
    if not callable(found):
        raise UnknownName(f"function of {path}", name, own)
    return found


def _call(factory: Any, label: str, kwargs: dict[str, Any]) -> nn.Module:
    if reason := misfit(factory, **kwargs):
        raise ModelError(f"{label} was called with {kwargs}: {reason}.")
    try:
        model = factory(**kwargs)
    except Exception as error:
        raise ModelError(f"{label} failed: {type(error).__name__}: {error}.") from error
    if not isinstance(model, nn.Module):
        raise ModelError(f"{label} returned {type(model).__name__}; expected a torch.nn.Module.")
    return model
