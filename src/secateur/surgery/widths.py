"""The widths that torch's own layers remember, read back off their tensors after a cut."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from ..errors import SurgeryError
from .record import AttributeChange

Widths = dict[str, Any]
HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_forward_hooks_with_kwargs", "_forward_pre_hooks_with_kwargs",
         "_forward_hooks_always_called", "_backward_hooks", "_backward_pre_hooks")  # fmt: skip


def _linear(layer: Any, _old: Any) -> Widths:
    return {"out_features": layer.weight.shape[0], "in_features": layer.weight.shape[1]}


def _conv(layer: Any, old: Any) -> Widths:
    weight = layer.weight.shape
    per_out, per_in = old.out_channels // old.groups, old.in_channels // old.groups
    groups = old.groups
    if groups > 1 and min(per_out, per_in) == 1:  # whole groups went
        groups = weight[0] // (per_in if old.transposed else per_out)
    first, second = weight[0], weight[1] * groups
    ins, outs = (first, second) if old.transposed else (second, first)
    return {"in_channels": ins, "out_channels": outs, "groups": groups}


def _features(layer: Any, _old: Any) -> Widths:
    tensor = next((t for t in (layer.weight, layer.running_mean) if t is not None), None)
    return {} if tensor is None else {"num_features": tensor.shape[0]}


def _normalized(layer: Any, _old: Any) -> Widths:
    return {} if layer.weight is None else {"normalized_shape": tuple(layer.weight.shape)}


def _group_norm(layer: Any, _old: Any) -> Widths:
    return {} if layer.weight is None else {"num_channels": layer.weight.shape[0]}


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


NAMES: list[tuple[type | tuple[type, ...], tuple[str, ...]]] = [
    (nn.Linear, ("in_features", "out_features")),
    (nn.modules.conv._ConvNd, ("in_channels", "out_channels", "groups")),
    ((nn.modules.batchnorm._BatchNorm, nn.modules.instancenorm._InstanceNorm), ("num_features",)),
    (nn.Bilinear, ("in1_features", "in2_features", "out_features")),
    ((nn.Embedding, nn.EmbeddingBag), ("num_embeddings", "embedding_dim")),
    ((nn.RNNBase, nn.RNNCellBase), ("input_size", "hidden_size", "proj_size")),
    (nn.PReLU, ("num_parameters",)),
]


def apply_native_(small: nn.Module, model: nn.Module) -> list[AttributeChange]:
    """Set the widths of torch's own layers from their tensors, in place; return what changed."""
    originals = dict(model.named_modules())
    changes = []
    for path, layer in small.named_modules():
        old = originals[path]
        for kinds, widths in TABLE:
            if isinstance(layer, kinds):
                for name, after in widths(layer, old).items():
                    before = getattr(old, name, after)
                    if before != after:
                        layer.__dict__[name] = after
                        changes.append(AttributeChange(path, name, before, after))
        if isinstance(layer, nn.RNNBase):
            layer.__dict__["_flat_weights"] = [getattr(layer, n, None) for n in layer._flat_weights_names]
    return changes


def native_widths(layer: nn.Module) -> set[str]:
    """Names of the attributes that `apply_native_` sets on a layer of this kind."""
    return {name for kinds, names in NAMES for name in names if isinstance(layer, kinds)}


def needs_dropin(small: nn.Module, model: nn.Module) -> list[str]:
    """Paths of attention modules whose new widths ``nn.MultiheadAttention`` cannot express."""
    found = []
    originals = dict(model.named_modules())
    for path, layer in small.named_modules():
        if type(layer) is nn.MultiheadAttention:
            old = originals[path]
            if any(t.shape != o.shape for t, o in zip(layer.parameters(), old.parameters(), strict=True)):
                found.append(path)
    return found


def swap_attention_(small: nn.Module, model: nn.Module, graph: Any, path: str, cuts: dict[str, Any]) -> dict[str, Any]:
    """Replace a cut ``nn.MultiheadAttention`` by its drop-in, in place; return the drop-in's settings."""
    from .attention import SlimMultiheadAttention

    old = model.get_submodule(path)
    layer = small.get_submodule(path)
    assert isinstance(old, nn.MultiheadAttention)
    kept = kept_heads(old, path, cuts)
    tensors: dict[str, Tensor] = dict(layer.named_parameters())
    new = SlimMultiheadAttention.from_multihead_attention(old, head_count=len(kept), tensors=tensors, kept_heads=kept)
    new.train(layer.training)
    for name in HOOKS:
        new.__dict__[name] = layer.__dict__[name]
    parent, _, leaf = path.rpartition(".")
    setattr(small.get_submodule(parent) if parent else small, leaf, new)
    return {"kind": "SlimMultiheadAttention", **dataclasses.asdict(new.shape)}


def kept_heads(old: nn.MultiheadAttention, path: str, cuts: dict[str, Any]) -> tuple[int, ...]:
    """Return which heads are left, from how the output projection's columns were cut."""
    cut = dict(cuts.get(f"{path}.out_proj.weight" if path else "out_proj.weight", []))
    if 1 not in cut:
        return tuple(range(old.num_heads))
    columns = cut[1].tolist()
    heads = sorted({c // old.head_dim for c in columns})
    if len(columns) != len(heads) * old.head_dim:
        raise SurgeryError(f"{path}: attention can only lose whole heads of {old.head_dim} dimensions.")
    return tuple(heads)
