"""Give a fresh model weights under which a wrong cut shows.

A freshly initialised network hides mistakes: batch norms are the identity, biases are zero, layer scales of 1e-6 and
zero-initialised last layers switch whole branches off, and linear weights of standard deviation 0.02 make attention
uniform. `randomise_` replaces every such constant, and `calibrate_` sets the batch-norm statistics near those of
one batch so that activations neither vanish nor explode on the way.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

_SMALL = 1e-2  # constants up to this size switch a branch off or are biases; larger ones are gains


def randomise_(model: nn.Module, seed: int) -> None:
    """Replace constant parameters and batch-norm statistics by random values, and raise timid linear weights.

    Shared parameters stay shared and are changed once; torch's global random state is not touched.
    """
    generator = torch.Generator().manual_seed(seed)
    seen: set[int] = set()
    with torch.no_grad():
        for module in model.modules():
            for name, parameter in module.named_parameters(recurse=False):
                if id(parameter) not in seen and parameter.is_floating_point() and parameter.numel():
                    seen.add(id(parameter))
                    _randomise_parameter(module, name, parameter, generator)
            _randomise_statistics(module, generator)


def calibrate_(model: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any], *, seed: int) -> None:
    """Set each batch norm's statistics near those of its input in one forward pass, each channel a little off."""
    generator = torch.Generator().manual_seed(seed)

    def observe(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        values = inputs[0].detach().float().transpose(0, 1).flatten(start_dim=1)  # (channels, batch and positions)
        if values.shape[0] != module.running_mean.shape[0] or values.shape[1] < 2 or module in done:
            return
        done.add(module)
        variance, mean = torch.var_mean(values, dim=1)
        deviation = variance.sqrt().clamp(min=1e-3 + 1e-2 * variance.sqrt().mean())
        module.running_mean.copy_(mean + 0.2 * deviation * torch.randn(mean.shape, generator=generator))
        module.running_var.copy_((deviation * _uniform(mean.shape, 0.7, 1.4, generator)) ** 2)

    done: set[nn.Module] = set()
    handles = [m.register_forward_pre_hook(observe) for m in model.modules() if _has_statistics(m)]
    if not handles:
        return
    try:
        with torch.no_grad():
            model(*args, **kwargs)
    finally:
        for handle in handles:
            handle.remove()


def _has_statistics(module: nn.Module) -> bool:
    return all(isinstance(getattr(module, name, None), Tensor) for name in ("running_mean", "running_var"))


def _uniform(shape: Sequence[int], low: float, high: float, generator: torch.Generator) -> Tensor:
    return torch.rand(tuple(shape), generator=generator) * (high - low) + low


def _randomise_statistics(module: nn.Module, generator: torch.Generator) -> None:
    if not _has_statistics(module):
        return
    shape = module.running_mean.shape
    module.running_mean.copy_(0.1 * torch.randn(shape, generator=generator))
    module.running_var.copy_(_uniform(shape, 0.5, 1.5, generator))
    for name, low, high in (("weight", 0.5, 1.5), ("bias", -0.2, 0.2)):  # frozen batch norms keep these as buffers
        value = module._buffers.get(name)
        if value is not None:
            value.copy_(_uniform(shape, low, high, generator))


def _randomise_parameter(module: nn.Module, name: str, parameter: Tensor, generator: torch.Generator) -> None:
    first = float(parameter.flatten()[0])
    if bool((parameter == first).all()):
        parameter.copy_(_instead_of_constant(module, name, parameter, first, generator))
        return
    fan_in = _fan_in(module, parameter)
    if fan_in is not None:
        deviation = float(parameter.std())
        if deviation * math.sqrt(fan_in) < 0.5:
            parameter.mul_(1.0 / (deviation * math.sqrt(fan_in)))


def _instead_of_constant(
    module: nn.Module, name: str, parameter: Tensor, constant: float, generator: torch.Generator
) -> Tensor:
    shape = parameter.shape
    if _has_statistics(module) and name == "weight":
        return _uniform(shape, 0.5, 1.5, generator)
    if abs(constant) > _SMALL:  # norm weights, gates, temperatures: keep the size and the sign
        spread = 0.5 if constant == 1.0 else 0.1
        return constant * _uniform(shape, 1 - spread, 1 + spread, generator)
    fan_in = _fan_in(module, parameter)
    if fan_in is not None:
        return torch.randn(shape, generator=generator) / math.sqrt(fan_in)
    if "bias" in name:
        return 0.1 * torch.randn(shape, generator=generator)
    sign = torch.randint(0, 2, tuple(shape), generator=generator) * 2 - 1
    return sign * _uniform(shape, 0.1, 0.4, generator)  # layer scales, skip gains, tokens, position tables


def _fan_in(module: nn.Module, parameter: Tensor) -> int | None:
    if parameter.dim() < 2 or isinstance(module, nn.Embedding | nn.EmbeddingBag):
        return None
    if isinstance(module, nn.modules.conv._ConvNd):
        return parameter[0].numel()
    if isinstance(module, nn.Linear | nn.MultiheadAttention) or type(module).__name__ == "Conv1D":
        return parameter.shape[1]
    if parameter.dim() == 3 and "Expert" in type(module).__name__:
        return parameter.shape[2]
    return None
