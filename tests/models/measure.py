"""Counts of a network without computing anything."""

from collections.abc import Callable

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode


def counts(build: Callable[..., nn.Module], image: tuple[int, ...] = (3, 32, 32), **kwargs) -> tuple[int, int]:
    """Return (parameters, MACs of one image) of `build(**kwargs)`."""
    with torch.device("meta"), torch.no_grad(), FlopCounterMode(display=False) as counter:
        model = build(**kwargs).eval()
        model(torch.empty(1, *image))
    return sum(p.numel() for p in model.parameters()), counter.get_total_flops() // 2
