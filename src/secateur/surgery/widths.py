"""The widths that torch's own layers remember, read back off their tensors after a cut."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from ..errors import SurgeryError
from ..graph.tape import set_training
from ..graph.walk import modules_of
from .attention import SlimMultiheadAttention
from .record import AttributeChange

Widths = dict[str, Any]
HOOKS = (
    "_forward_hooks", "_forward_hooks_with_kwargs", "_forward_hooks_always_called", "_forward_pre_hooks",
    "_forward_pre_hooks_with_kwargs", "_backward_hooks", "_backward_pre_hooks", "_is_full_backward_hook",
    "_state_dict_hooks", "_state_dict_pre_hooks", "_load_state_dict_pre_hooks", "_load_state_dict_post_hooks",
)  # fmt: skip


def _linear(layer: Any, _old: Any) -> Widths:
    return {"out_features": layer.weight.shape[0], "in_features": layer.weight.shape[1]}


def _conv(layer: Any, old: Any) -> Widths:
    weight = layer.weight.shape
    per_out, per_in = old.out_channels // old.groups, old.in_channels // old.groups
    groups = old.groups
    if groups > 1 and min(per_out, per_in) == 1:  # whole groups went
        groups = weight[0] // (per_in if old.transposed else per_out)
    return _conv_of(layer, groups)


def _conv_of(layer: Any, groups: int) -> Widths:
    first, second = layer.weight.shape[0], layer.weight.shape[1] * groups
    ins, outs = (first, second) if layer.transposed else (second, first)
    return {"in_channels": ins, "out_channels": outs, "groups": groups}


def _features(layer: Any, _old: Any) -> Widths:
    tensor = next((t for t in (layer.weight, layer.running_mean) if t is not None), None)
    return {} if tensor is None else {"num_features": tensor.shape[0]}


def _normalized(layer: Any, _old: Any) -> Widths:
    return {} if layer.weight is None else {"normalized_shape": tuple(layer.weight.shape)}


def _group_norm(layer: Any, old: Any) -> Widths:
    if layer.weight is None:
        return {}
    width = layer.weight.shape[0]
    return {"num_channels": width, "num_groups": width if old.num_groups == old.num_channels else old.num_groups}


def _embedding(layer: Any, _old: Any) -> Widths:
    return {"num_embeddings": layer.weight.shape[0], "embedding_dim": layer.weight.shape[1]}


def _prelu(layer: Any, _old: Any) -> Widths:
    return {"num_parameters": layer.weight.shape[0]}


def _bilinear(layer: Any, _old: Any) -> Widths:
    out, one, other = layer.weight.shape
    return {"out_features": out, "in1_features": one, "in2_features": other}


def _recurrent(layer: Any, _old: Any) -> Widths:
    widths = {"input_size": layer.weight_ih_l0.shape[1]}
    if layer.proj_size:
        return {**widths, "proj_size": layer.weight_hr_l0.shape[0], "hidden_size": layer.weight_hr_l0.shape[1]}
    return {**widths, "hidden_size": layer.weight_hh_l0.shape[1]}


def _cell(layer: Any, _old: Any) -> Widths:
    return {"input_size": layer.weight_ih.shape[1], "hidden_size": layer.weight_hh.shape[1]}


TABLE: list[tuple[type | tuple[type, ...], Callable[[Any, Any], Widths]]] = [
    (nn.Linear, _linear),
    (nn.modules.conv._ConvNd, _conv),
    ((nn.modules.batchnorm._BatchNorm, nn.modules.instancenorm._InstanceNorm), _features),
    ((nn.LayerNorm, nn.RMSNorm), _normalized),
    (nn.GroupNorm, _group_norm),
    ((nn.Embedding, nn.EmbeddingBag), _embedding),
    (nn.PReLU, _prelu),
    (nn.Bilinear, _bilinear),
    (nn.RNNBase, _recurrent),
    (nn.RNNCellBase, _cell),
]


def native_widths(layer: nn.Module, old: nn.Module | None = None, *, groups: int | None = None) -> Widths:
    """Return the widths that a layer of torch's own must have, read off its tensors; empty for any other module.

    Args:
        layer: the layer, its tensors cut.
        old: the layer before the cut; None = `layer` was not cut.
        groups: how many groups a convolution has left, which its tensors do not tell; None = as many as before, or one
            for each channel where it had one for each.

    >>> native_widths(nn.Linear(3, 5))
    {'out_features': 5, 'in_features': 3}
    """
    with _at_rest(layer):
        if groups is not None and isinstance(layer, nn.modules.conv._ConvNd):
            return _conv_of(layer, groups)
        return next((widths(layer, old or layer) for kinds, widths in TABLE if isinstance(layer, kinds)), {})


@contextlib.contextmanager
def _at_rest(layer: nn.Module) -> Iterator[None]:
    """Let a layer's weights be read as in evaluation: where spectral norm trains, a look at its weight changes it."""
    training = [module for module in modules_of(layer).values() if module.training]
    set_training(layer, False)
    try:
        yield
    finally:
        for module in training:
            module.__dict__["training"] = True


def apply_native_(small: nn.Module, model: nn.Module, groups: Mapping[str, int]) -> list[AttributeChange]:
    """Set the widths of torch's own layers from their tensors, in place; return what changed.

    Args:
        small: the cut model.
        model: the model before the cut.
        groups: path of each convolution that lost whole groups -> how many are left.
    """
    originals = modules_of(model)
    changes = []
    for path, layer in modules_of(small).items():
        old = originals[path]
        for name, after in native_widths(layer, old, groups=groups.get(path)).items():
            before = getattr(old, name, after)
            if before != after:
                layer.__dict__[name] = after
                changes.append(AttributeChange(path, name, before, after))
        _check_projection(path, layer)
    relink_recurrent_(small)
    return changes


def _check_projection(path: str, layer: nn.Module) -> None:
    if isinstance(layer, nn.RNNBase) and layer.proj_size and layer.proj_size >= layer.hidden_size:
        raise SurgeryError(
            f"{path!r}: the plan leaves {layer.hidden_size} cells and projects them to {layer.proj_size}; "
            "an nn.LSTM has to project to fewer than it has. Keep more cells, or fewer projections."
        )


def needs_dropin(small: nn.Module, model: nn.Module) -> list[str]:
    """Paths of attention modules that lost something, which ``nn.MultiheadAttention`` cannot express."""
    found = []
    originals = modules_of(model)
    for path, layer in modules_of(small).items():
        if type(layer) in (nn.MultiheadAttention, SlimMultiheadAttention):
            old = originals[path]
            if any(t.shape != o.shape for t, o in zip(layer.parameters(), old.parameters(), strict=True)):
                found.append(path)
    return found


def swap_attention_(
    small: nn.Module, path: str, old: nn.MultiheadAttention | SlimMultiheadAttention, kept_heads: Sequence[int]
) -> dict[str, Any]:
    """Replace a cut attention by its drop-in, in place, wherever it is used; return the drop-in's settings.

    Args:
        small: the cut model.
        path: of the attention in it.
        old: the attention at that path before the cut.
        kept_heads: which heads of `old` are left.
    """
    layer = small.get_submodule(path)
    new = SlimMultiheadAttention.from_multihead_attention(
        old,
        head_count=len(kept_heads),
        tensors=dict(layer.named_parameters(remove_duplicate=False)),
        kept_heads=kept_heads,
    )
    new.train(layer.training)
    new.out_proj.train(layer.get_submodule("out_proj").training)
    for one, other in ((new, layer), (new.out_proj, layer.get_submodule("out_proj"))):
        for name in HOOKS:
            one.__dict__[name] = other.__dict__[name]
    for parent in modules_of(small).values():
        for leaf, child in parent._modules.items():
            if child is layer:
                parent._modules[leaf] = new
    return {"kind": "SlimMultiheadAttention", **dataclasses.asdict(new.shape)}


def kept_heads(
    old: nn.MultiheadAttention | SlimMultiheadAttention, path: str, cuts: Mapping[str, Any]
) -> tuple[int, ...]:
    """Return which heads are left, from how the output projection's columns were cut."""
    cut = dict(cuts.get(f"{path}.out_proj.weight" if path else "out_proj.weight", []))
    if 1 not in cut:
        return tuple(range(old.num_heads))
    columns = cut[1].tolist()
    heads = sorted({c // old.head_dim for c in columns})
    if len(columns) != len(heads) * old.head_dim:
        raise SurgeryError(f"{path}: attention can only lose whole heads of {old.head_dim} dimensions.")
    return tuple(heads)


def without_nested_tensors_(small: nn.Module, swapped: Iterable[str]) -> list[AttributeChange]:
    """Tell each ``nn.TransformerEncoder`` around a swapped attention not to make nested tensors, in place.

    Its shortcut reads the first layer's attention as if all widths were equal.
    """
    changes = []
    for path, module in modules_of(small).items():
        holds = any(inner.startswith(f"{path}." if path else "") for inner in swapped)
        if isinstance(module, nn.TransformerEncoder) and holds and getattr(module, "use_nested_tensor", False):
            module.use_nested_tensor = False
            changes.append(AttributeChange(path, "use_nested_tensor", True, False))
    return changes


def relink_recurrent_(model: nn.Module) -> None:
    """Let each recurrent layer's list of flat weights hold its parameters, in one block on a GPU, in place."""
    for layer in modules_of(model).values():
        if isinstance(layer, nn.RNNBase):
            layer.__dict__["_flat_weights"] = [getattr(layer, name, None) for name in layer._flat_weights_names]
            layer.flatten_parameters()


def recompute_weights_(model: nn.Module) -> None:
    """Compute the weights again that old-style ``weight_norm`` and ``spectral_norm`` keep as plain attributes."""
    with torch.no_grad():
        for module in modules_of(model).values():
            for hook in module._forward_pre_hooks.values():
                if isinstance(hook, WeightNorm):
                    setattr(module, hook.name, hook.compute_weight(module))
                elif isinstance(hook, SpectralNorm):
                    setattr(module, hook.name, hook.compute_weight(module, do_power_iteration=False))
