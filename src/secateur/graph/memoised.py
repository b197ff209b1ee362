"""Tensors that functions beside a model remember between calls (``functools.lru_cache``).

Such a memory belongs to the process, not to the model. A pass on tensors without data would leave them in it for the
model's next call, and a second pass would show other operations than the first.
"""

from __future__ import annotations

import contextlib
import functools
import gc
import sys
from collections.abc import Iterable, Iterator
from typing import Any
from weakref import WeakKeyDictionary

from torch import Tensor, nn

Memory = type(functools.cache(len))
_known: WeakKeyDictionary[type, tuple[Any, ...]] = WeakKeyDictionary()


@contextlib.contextmanager
def remembering_nothing(modules: Iterable[nn.Module]) -> Iterator[None]:
    """Start and end the block without remembered tensors, see `forget_tensors`."""
    own = list(modules)
    forget_tensors(own)
    try:
        yield
    finally:
        forget_tensors(own)


def forget_tensors(modules: Iterable[nn.Module]) -> None:
    """Empty every memory that holds tensors, of functions in the modules' classes and in the files that define them.

    Only time is lost: what was remembered is computed again. Memories without tensors are left alone.

    >>> @functools.cache
    ... def table(size):
    ...     return torch.arange(size)
    >>> import torch
    >>> class Net(nn.Module):
    ...     table = staticmethod(table)
    >>> _ = table(3)
    >>> forget_tensors([Net()])
    >>> table.cache_info().currsize
    0
    """
    seen: set[int] = set()
    for kind in {type(module) for module in modules}:
        for memory in _memories(kind):
            if id(memory) not in seen:
                seen.add(id(memory))
                if memory.cache_info().currsize and _holds_tensor(gc.get_referents(memory), depth=3):
                    memory.cache_clear()


def _memories(kind: type) -> tuple[Any, ...]:
    """Memories in a class, in those it inherits from, and in their files; torch's own have none."""
    if kind not in _known:
        own = [base for base in kind.__mro__ if base is not object and not base.__module__.startswith("torch.")]
        files = [sys.modules[name] for name in {base.__module__ for base in own} if name in sys.modules]
        found = [memory for held in (*own, *files) for value in list(vars(held).values()) for memory in _inside(value)]
        _known[kind] = tuple(found)
    return _known[kind]


def _inside(value: Any) -> Iterator[Any]:
    """Yield the memory of a function: itself, or what it wraps."""
    if isinstance(value, (staticmethod, classmethod)):
        value = value.__func__
    if isinstance(value, property):
        value = value.fget
    if isinstance(value, Memory):
        yield value
    for cell in getattr(value, "__closure__", None) or ():
        try:
            held = cell.cell_contents
        except ValueError:  # not filled yet
            continue
        if isinstance(held, Memory):
            yield held


def _holds_tensor(value: Any, depth: int) -> bool:
    if isinstance(value, Tensor):
        return True
    if depth and isinstance(value, (list, tuple, dict)):
        items = value.values() if isinstance(value, dict) else value
        return any(_holds_tensor(item, depth - 1) for item in items)
    return False
