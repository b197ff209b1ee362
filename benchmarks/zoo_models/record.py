"""One entry of the zoo, and the two things every entry's build needs: a seed and images."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from .randomise import calibrate_, randomise_

Built = tuple[nn.Module, tuple[Any, ...], dict[str, Any]]


@dataclass(frozen=True)
class ZooModel:
    """A model the benchmark runs.

    Attributes:
        name: source and architecture, e.g. "timm:resnet18". Unique.
        source: "torchvision", "timm" or "transformers".
        family: the architecture family, e.g. "resnet".
        kind: what it does: "image", "video", "text", "audio", "segmentation", "detection", "detection-heads", ...
        make: () -> (model, args, kwargs), as the library initialises it. Use `build`.
    """

    name: str
    source: str
    family: str
    kind: str
    make: Callable[[], Built] = field(repr=False, compare=False)

    def build(self, seed: int = 0) -> Built:
        """The model in eval mode with telling random weights, and the arguments of one forward pass.

        The same seed gives the same model and inputs; torch's global random state is left as it was.
        """
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            torch.manual_seed(seed)
            model, args, kwargs = self.make()
            model.float().eval()
            randomise_(model, seed)
            calibrate_(model, args, kwargs, seed=seed)
        return model, args, kwargs


def images(batch_count: int, *size: int) -> Tensor:
    """Random images (batch_count, 3, *size); one number in `size` means square ones."""
    return torch.randn(batch_count, 3, *(size * 2 if len(size) == 1 else size))


def numeric_inputs(value: Any, dtype: torch.dtype = torch.float64) -> Any:
    """Copy nested inputs with the floating tensors in `dtype`; token ids and masks stay as they are.

    >>> numeric_inputs({"ids": torch.tensor([1]), "x": [torch.zeros(1)]})
    {'ids': tensor([1]), 'x': [tensor([0.], dtype=torch.float64)]}
    """
    if isinstance(value, Tensor):
        return value.to(dtype) if value.is_floating_point() else value.clone()
    if isinstance(value, dict):
        return {key: numeric_inputs(item, dtype) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(numeric_inputs(item, dtype) for item in value)
    return value
