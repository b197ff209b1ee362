"""Look at a running model and leave no trace."""

from __future__ import annotations

import contextlib
import random
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from .memoised import remembering_nothing
from .walk import modules_of

CONTAINERS = frozenset((dict, list, set, OrderedDict, defaultdict, Counter, deque))
ATOMS = frozenset((int, float, bool, str, type(None)))


@contextlib.contextmanager
def untouched(model: nn.Module) -> Iterator[None]:
    """Put everything of the model, and the random generators, back as it was when the block ends.

    Flags, hooks, attributes, parameters and buffers of every module; lists, sets and dictionaries in attributes at any
    depth; values of tensors that are plain attributes. Functions beside the model start and end without the tensors
    that they remember (``functools.lru_cache``). Values of parameters and buffers are not copied: swap them, or
    run on a copy, if the forward pass may write into them.
    """
    modules = list(modules_of(model).values())
    plain = [dict(module.__dict__) for module in modules]
    held = _Held()
    for attributes in plain:
        for name, value in attributes.items():
            if type(value) not in ATOMS:
                held.see(value, tensors=name not in ("_parameters", "_buffers"))
    generators = _generators()
    try:
        with remembering_nothing(modules):
            yield
    finally:
        for module, attributes in zip(modules, plain, strict=True):
            module.__dict__.clear()
            module.__dict__.update(attributes)
        held.restore()
        _set_generators(*generators)


class _Held:
    """Copies of everything that can change in place."""

    def __init__(self) -> None:
        self.containers: list[tuple[Any, Any]] = []
        self.empty: list[Any] = []  # most are: the hooks of every module
        self.tensors: list[tuple[Tensor, int, Tensor]] = []
        self.seen: set[int] = set()

    def see(self, value: Any, *, tensors: bool) -> None:
        if type(value) in CONTAINERS and not value:
            self.empty.append(value)
        elif id(value) in self.seen:
            return
        elif isinstance(value, Tensor) and tensors and not isinstance(value, nn.Parameter):
            self.seen.add(id(value))
            self.tensors.append((value, _version(value), value.detach().clone()))
        elif type(value) in CONTAINERS:
            self.seen.add(id(value))
            self.containers.append((value, value.copy()))
            for item in value.values() if isinstance(value, dict) else value:
                if type(item) not in ATOMS:
                    self.see(item, tensors=tensors)

    def restore(self) -> None:
        for value in self.empty:
            if value:
                value.clear()
        for value, copy in self.containers:
            value.clear()
            if isinstance(value, (list, deque)):
                value.extend(copy)
            else:
                value.update(copy)
        with torch.no_grad():
            for tensor, version, content in self.tensors:
                if _version(tensor) != version:
                    tensor.detach().copy_(content)


def _version(tensor: Tensor) -> int:
    """How often a tensor was written into; tensors made in inference mode do not count."""
    return 0 if tensor.is_inference() else tensor._version


def _generators() -> tuple[Any, Any, Tensor, list[Tensor] | None]:
    is_cuda = torch.cuda.is_available() and torch.cuda.is_initialized()
    cuda = torch.cuda.get_rng_state_all() if is_cuda else None
    return random.getstate(), np.random.get_state(), torch.get_rng_state(), cuda


def _set_generators(python: Any, numpy: Any, cpu: Tensor, cuda: list[Tensor] | None) -> None:
    random.setstate(python)
    np.random.set_state(numpy)
    torch.set_rng_state(cpu)
    if cuda is not None:
        torch.cuda.set_rng_state_all(cuda)
