"""Everything of a model and of the process that a method could change, as values that compare."""

from __future__ import annotations

import random
from collections.abc import Iterable
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks", "_state_dict_hooks")


def of_model(model: nn.Module) -> dict[str, Any]:
    """What the model is: every tensor bit for bit and the very same object, gradients, flags, hooks, attributes."""
    seen: dict[str, Any] = {}
    for name, tensor in [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]:
        seen[f"{name} is the same tensor"] = (id(tensor), tensor.data_ptr())
        seen[f"{name}"] = _bits(tensor)
        seen[f"{name}.grad"] = None if tensor.grad is None else _bits(tensor.grad)
        seen[f"{name}.requires_grad"] = tensor.requires_grad
    for path, module in model.named_modules():
        seen[f"{path}: training mode"] = module.training
        seen[f"{path}: attributes"] = sorted(module.__dict__)
        seen[f"{path}: submodules"] = [(name, id(child)) for name, child in module.named_children()]
        seen[f"{path}: hooks"] = [(kind, list(getattr(module, kind))) for kind in HOOKS]
        seen[f"{path}: settings"] = repr(module)
    return seen


def of_process() -> dict[str, Any]:
    """What all code shares: random numbers, modes and switches."""
    name, keys, *rest = np.random.get_state()
    return {
        "torch random numbers": torch.get_rng_state().tolist(),
        "NumPy random numbers": (name, keys.tolist(), *rest),
        "Python random numbers": random.getstate(),
        "gradients are on": torch.is_grad_enabled(),
        "default dtype": torch.get_default_dtype(),
        "deterministic algorithms": torch.are_deterministic_algorithms_enabled(),
        "thread count": torch.get_num_threads(),
        "attention fast path": torch.backends.mha.get_fastpath_enabled(),
    }


def of_batches(batches: Iterable[tuple[Tensor, Tensor]]) -> dict[str, Any]:
    """The data, bit for bit."""
    return {f"batch {k}": tuple(_bits(tensor) for tensor in batch) for k, batch in enumerate(batches)}


def differences(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    """Names of what is no longer as it was."""
    return sorted(name for name in before.keys() | after.keys() if before.get(name) != after.get(name))


def _bits(tensor: Tensor) -> tuple[Any, ...]:
    kind = tensor.dtype, str(tensor.device), tuple(tensor.shape), tensor.stride()
    if tensor.device.type == "meta":
        return kind
    return *kind, tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()


@contextmanager
def fresh_randomness(seed: int):
    """Start the shared random numbers from a seed of this block's own, and put them back after it."""
    kept = torch.get_rng_state(), np.random.get_state(), random.getstate()
    torch.manual_seed(seed)
    np.random.seed(seed)
    random.seed(seed)
    try:
        yield
    finally:
        torch.set_rng_state(kept[0])
        np.random.set_state(kept[1])
        random.setstate(kept[2])
