"""Put channel selections behind norms, and take them away again.

A selection is a child of the norm that it stands behind, and runs as its forward hook: paths and names of everything
else stay as they are.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ..errors import SurgeryError
from ..graph.select import SELECT, ChannelSelect
from ..graph.walk import modules_of


def insert_(model: nn.Module, path: str, index: Tensor | None = None) -> None:
    """Put a selection behind a batch norm, in place; without an index it passes all channels on.

    Raises:
        SurgeryError: there is no batch norm without a selection at that path.
    """
    norm: Any = modules_of(model, shared=True).get(path)
    if not isinstance(norm, nn.modules.batchnorm._BatchNorm) or hasattr(norm, SELECT):
        found = "nothing" if norm is None else type(norm).__qualname__
        raise SurgeryError(
            f"the surgery puts a channel selection behind the batch norm {path!r}; in this model that is {found}"
            f"{' with a selection' if hasattr(norm, SELECT) else ''}. Give an instance of the class that was shrunk."
        )
    device = next((t.device for t in (*norm.parameters(), *norm.buffers())), None)
    every = torch.arange(norm.num_features) if index is None else index
    select = ChannelSelect(every.to(device)).train(norm.training)
    norm.add_module(SELECT, select)
    norm.register_forward_hook(_through)


def remove_(model: nn.Module, path: str) -> None:
    """Take a selection that passes all channels on away again, in place."""
    norm = modules_of(model, shared=True)[path]
    for number, hook in list(norm._forward_hooks.items()):
        if hook is _through:
            del norm._forward_hooks[number]
    delattr(norm, SELECT)


def _through(norm: nn.Module, _args: Any, output: Tensor) -> Tensor:
    chosen: Tensor = norm.get_submodule(SELECT)(output)
    return chosen
