"""Plain versions of fused kernels that refuse some precisions or tensors without data."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

aten = torch.ops.aten


def grouped_mm(x: Tensor, weight: Tensor, offs: Tensor | None = None, *rest: Any, **named: Any) -> Tensor:
    """Multiply runs of rows by one matrix each (routed experts), in any precision.

    Args:
        x: (rows, in), sorted by expert.
        weight: (experts, in, out).
        offs: (experts,) end of each expert's run of rows.
        rest: what else the fused kernel takes; used only where that kernel is called.
        named: the same by name.

    Returns:
        (rows, out).
    """
    if x.ndim != 2 or weight.ndim != 3 or offs is None:
        return aten._grouped_mm.default(x, weight, offs, *rest, **named)  # type: ignore[no-any-return]
    out = x.new_empty(x.shape[0], weight.shape[2])
    if x.device.type == "meta" or type(x) is not Tensor:
        return out
    start = 0
    for expert, end in enumerate(offs.tolist()):
        out[start:end] = x[start:end] @ weight[expert]
        start = end
    return out


SUBSTITUTES: dict[Any, Callable[..., Any]] = (
    {aten._grouped_mm.default: grouped_mm} if hasattr(aten, "_grouped_mm") else {}
)


class PlainKernels(TorchDispatchMode):
    """Run the plain version of each fused kernel that has one."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return SUBSTITUTES.get(func, func)(*args, **(kwargs or {}))
