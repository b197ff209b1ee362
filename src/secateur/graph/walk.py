"""The modules and tensors of a model by name.

The same names in the same order as torch's ``named_modules``, ``named_parameters`` and ``named_buffers``, which nest a
generator for every level: a graph asks a dozen times, and on deep models that was a tenth of its time.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn


def modules_of(model: nn.Module, *, shared: bool = False) -> dict[str, nn.Module]:
    """Return path -> module, the model itself at ``""``.

    Args:
        model: any module.
        shared: True = a module that is used twice comes under each of its paths, False = under the first.

    >>> relu = nn.ReLU()
    >>> list(modules_of(nn.Sequential(relu, nn.Linear(2, 2), relu)))
    ['', '0', '1']
    """
    found: dict[str, nn.Module] = {}
    seen: set[nn.Module] = set()

    def visit(module: nn.Module, path: str) -> None:
        if module in seen:
            return
        if not shared:
            seen.add(module)
        found[path] = module
        for name, child in module._modules.items():
            if child is not None:
                visit(child, f"{path}.{name}" if path else name)

    visit(model, "")
    return found


def parameters_of(model: nn.Module, *, shared: bool = False) -> dict[str, nn.Parameter]:
    """Return name -> parameter; tied ones under each of their names if `shared`, else under the first.

    >>> list(parameters_of(nn.Linear(2, 2)))
    ['weight', 'bias']
    """
    return _tensors_of(model, "_parameters", shared)


def buffers_of(model: nn.Module, *, shared: bool = False) -> dict[str, Tensor]:
    """Return name -> buffer, persistent or not; tied ones under each of their names if `shared`, else the first.

    >>> list(buffers_of(nn.BatchNorm1d(2)))
    ['running_mean', 'running_var', 'num_batches_tracked']
    """
    return _tensors_of(model, "_buffers", shared)


def state_of(model: nn.Module, *, shared: bool = False) -> dict[str, Tensor]:
    """Return name -> tensor of every parameter, then of every buffer."""
    return {**parameters_of(model, shared=shared), **buffers_of(model, shared=shared)}


def _tensors_of(model: nn.Module, table: str, shared: bool) -> dict[str, Any]:
    found: dict[str, Any] = {}
    seen: set[int] = set()
    for path, module in modules_of(model, shared=shared).items():
        for name, tensor in getattr(module, table).items():
            if tensor is None or id(tensor) in seen:
                continue
            if not shared:
                seen.add(id(tensor))
            found[f"{path}.{name}" if path else name] = tensor
    return found
