"""Recurrent layers: torch's modules hold one hidden width for every layer and direction."""

from __future__ import annotations

from typing import Any

from torch import nn

from ..labels import Labels, axes


def tie_recurrent(labels: Labels, modules: dict[str, Any]) -> None:
    """Tie the j-th hidden unit of every layer and direction of an ``nn.RNN``, ``nn.LSTM`` or ``nn.GRU``.

    The gates themselves need no rule: off the fused kernels a recurrent layer is products, splits and element-wise ops.
    """
    for path, module in modules.items():
        if isinstance(module, nn.RNNBase):
            prefix = f"{path}." if path else ""
            for leaf, axis in (("weight_hh", 1), ("weight_hr", 0)):
                found = [
                    layer
                    for name, (_, layers) in labels.params.items()
                    if name.startswith(prefix + leaf)
                    for layer in layers
                    if axes(layer) == {axis}
                ]
                slots = [layer.select(1 - axis, 0) for layer in found]
                for other in slots[1:]:
                    labels.tie(slots[0], other)
