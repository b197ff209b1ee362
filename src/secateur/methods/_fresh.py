"""A copy of a model as it would start training: variance-scaled weights."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from ..errors import MethodError
from ..graph.walk import modules_of
from ..surgery.shrink import cut_copy
from ..train.batches import device_of
from ..train.randomness import same_randomness_after, seed_
from ._weights import prunable_weights

TRUNCATED = 0.87962566103423978  # standard deviation of a normal distribution cut off at two of its own


def variance_scaled(model: nn.Module, seed: int, method: str) -> nn.Module:
    """Return a copy with weights drawn anew, variance 1 / inputs of an output, and biases of 0.

    Norms, embeddings and other layers of torch's kind start as their `reset_parameters` says.

    Source: Glorot & Bengio 2010; Lee et al. 2019, arXiv:1810.02340, section 4.

    Args:
        model: nothing of it changes.
        seed: of the draw.
        method: for messages.

    Raises:
        MethodError: a module holds parameters of its own, and nothing says how they start.
    """
    fresh = cut_copy(model, {})
    scaled = {id(weight.tensor): weight.tensor.numel() // weight.row_count for weight in prunable_weights(fresh)}
    with same_randomness_after(device_of(model)), torch.no_grad():
        seed_(seed)
        for path, module in modules_of(fresh).items():
            own = {name: tensor for name, tensor in module._parameters.items() if tensor is not None}
            if any(id(tensor) in scaled for tensor in own.values()):
                for tensor in own.values():
                    tensor.copy_(_drawn(tensor, scaled[id(tensor)])) if id(tensor) in scaled else tensor.zero_()
            elif callable(reset := getattr(module, "reset_parameters", None)):
                reset()
            elif own:
                raise MethodError(
                    f"{method}: parameter {'.'.join(filter(None, (path, next(iter(own)))))!r} belongs to "
                    f"{type(module).__name__}, and nothing says how it starts: build the model anew and use "
                    "start='given', or give the module a reset_parameters()."
                )
    return fresh


def _drawn(tensor: Tensor, inputs: int) -> Tensor:
    """Draw on the CPU, so that all devices start alike."""
    spread = math.sqrt(1 / max(inputs, 1)) / TRUNCATED
    drawn = torch.empty(tensor.shape, dtype=torch.float32)
    return nn.init.trunc_normal_(drawn, std=spread, a=-2 * spread, b=2 * spread)
