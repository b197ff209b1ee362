"""Put channel selections behind norms or in front of layers, and take them away again.

A selection is a child of the module that it stands at, and runs as its hook: behind a batch norm on what the norm
gives, in front of a convolution or linear layer on what that is given. Paths and names of everything else stay as they
are.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ..errors import SurgeryError
from ..graph.select import SELECT, ChannelSelect
from ..graph.walk import modules_of

LAYERS = (nn.Linear, nn.modules.conv._ConvNd)  # in front of these; behind batch norms


def insert_(model: nn.Module, path: str, index: Tensor | None = None) -> None:
    """Put a selection behind a batch norm or in front of a layer, in place; without an index it passes all channels on.

    Raises:
        SurgeryError: there is no batch norm, convolution or linear layer without a selection at that path.
    """
    owner: Any = modules_of(model, shared=True).get(path)
    if not isinstance(owner, (nn.modules.batchnorm._BatchNorm, *LAYERS)) or hasattr(owner, SELECT):
        found = "nothing" if owner is None else type(owner).__qualname__
        raise SurgeryError(
            "the surgery puts a channel selection behind the batch norm, or in front of the layer, "
            f"{path!r}; in this model that is {found}{' with a selection' if hasattr(owner, SELECT) else ''}. "
            "Give an instance of the class that was shrunk."
        )
    device = next((t.device for t in (*owner.parameters(), *owner.buffers())), None)
    width, axis = _channels(owner)
    every = torch.arange(width) if index is None else index
    owner.add_module(SELECT, ChannelSelect(every.to(device), axis=axis).train(owner.training))
    if isinstance(owner, LAYERS):
        owner.register_forward_pre_hook(_before, with_kwargs=True)
    else:
        owner.register_forward_hook(_through)


def remove_(model: nn.Module, path: str) -> None:
    """Take a selection that passes all channels on away again, in place."""
    owner = modules_of(model, shared=True)[path]
    for hooks, own in ((owner._forward_hooks, _through), (owner._forward_pre_hooks, _before)):
        for number, hook in list(hooks.items()):
            if hook is own:
                del hooks[number]
                owner._forward_pre_hooks_with_kwargs.pop(number, None)
    delattr(owner, SELECT)


def _channels(owner: Any) -> tuple[int, int]:
    """Return how many channels a module gives or is given, and along which axis."""
    if isinstance(owner, nn.Linear):
        return owner.in_features, -1
    if isinstance(owner, nn.modules.conv._ConvNd):
        return owner.in_channels, -1 - len(owner.kernel_size)
    return owner.num_features, 1


def _through(norm: nn.Module, _args: Any, output: Tensor) -> Tensor:
    chosen: Tensor = norm.get_submodule(SELECT)(output)
    return chosen


def _before(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    select = layer.get_submodule(SELECT)
    if args:
        return (select(args[0]), *args[1:]), kwargs
    return args, {**kwargs, "input": select(kwargs["input"])}
