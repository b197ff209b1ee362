"""Turn the masks of ``torch.nn.utils.prune`` into plain weights with zeros.

That package keeps a pruned weight in two halves, ``weight_orig`` and ``weight_mask``, and multiplies them before each
forward pass. Weights that `secateur.sparsify` set to zero need nothing of the kind.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn.utils.prune import BasePruningMethod

from ..errors import MethodError
from ..graph.tape import check_module
from ..graph.walk import modules_of
from ..weight_plan import mark_masked_
from .shrink import copy_with


def finalize(model: nn.Module) -> nn.Module:
    """Return a copy with plain dense weights in place of the masks of ``torch.nn.utils.prune``, hooks removed.

    It computes the same; masked weights are exactly zero, and `secateur.WeightPlan.of` tells which they are. A model
    without such masks comes back as a plain copy.

    Args:
        model: any module; nothing of it changes.

    >>> from torch.nn.utils import prune
    >>> layer = prune.l1_unstructured(nn.Linear(4, 1, bias=False), "weight", amount=2)
    >>> plain = finalize(layer)
    >>> [name for name, _ in plain.named_parameters()], int((plain.weight == 0).sum())
    (['weight'], 2)
    """
    plain = copy_with(model, lambda _, tensor: tensor.detach().clone(memory_format=torch.preserve_format))
    made: dict[tuple[int, bytes], nn.Parameter] = {}
    names = []
    for path, key, hook in list(_masks(plain)):
        module, name = modules_of(plain)[path], hook._tensor_name
        original, mask = module._parameters[f"{name}_orig"], module._buffers[f"{name}_mask"]
        assert original is not None
        assert mask is not None
        kept = (mask != 0).cpu()
        same = id(original), kept.numpy().tobytes()
        if same not in made:  # tied weights under equal masks stay tied
            made[same] = nn.Parameter(_masked(original.detach(), mask), requires_grad=original.requires_grad)
        del module._forward_pre_hooks[key], module._parameters[f"{name}_orig"], module._buffers[f"{name}_mask"]
        module.__dict__.pop(name, None)
        module.register_parameter(name, made[same])
        names.append(f"{path}.{name}" if path else name)
    mark_masked_(plain, names)
    return plain


def check_plain(model: nn.Module) -> None:
    """Refuse a model whose weights are not plain parameters.

    Raises:
        MethodError: one is masked by ``torch.nn.utils.prune``.
        TraceError: one is of a module that torch.jit compiled, or the model is no module.
    """
    check_module(model)
    for path, _, hook in _masks(model):
        where = f"module {path!r}" if path else "the model"
        raise MethodError(
            f"{hook._tensor_name!r} of {where} is masked by torch.nn.utils.prune, so that its parameter is not what "
            "the model computes with: call secateur.finalize(model) first, which returns plain weights with zeros."
        )


def _masks(model: nn.Module) -> Iterator[tuple[str, int, BasePruningMethod]]:
    for path, module in modules_of(model).items():
        for key, hook in module._forward_pre_hooks.items():
            if isinstance(hook, BasePruningMethod):
                yield path, key, hook


def _masked(original: Tensor, mask: Tensor) -> Tensor:
    return (original * mask.to(original.dtype)).masked_fill(mask == 0, 0.0)
