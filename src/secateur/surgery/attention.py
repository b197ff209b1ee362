"""Multi-head attention of any width: what ``nn.MultiheadAttention`` becomes when heads or its inputs are cut.

``nn.MultiheadAttention`` ties four widths together (query input = heads x head width = output) and derives the head
width by division. A pruned attention breaks each of these equalities, so it is swapped for
``SlimMultiheadAttention``: the same call, the same answers, the same parameter names, and every width its own.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..errors import SurgeryError

# Parameter -> what each of its axes runs over; "triple" is q, k and v one below the other.
AXES: dict[str, tuple[str, ...]] = {
    "in_proj_weight": ("triple", "query"),
    "q_proj_weight": ("inner", "query"),
    "k_proj_weight": ("inner", "key"),
    "v_proj_weight": ("inner", "value"),
    "in_proj_bias": ("triple",),
    "bias_k": ("one", "one", "inner"),
    "bias_v": ("one", "one", "inner"),
    "out_proj.weight": ("output", "inner"),
    "out_proj.bias": ("output",),
}


@dataclass(frozen=True, kw_only=True)
class AttentionShape:
    """The sizes of an attention, and which parameters it has.

    Attributes:
        num_heads: number of heads.
        head_dim: width of each head in q, k and v; attention scores are scaled by 1/sqrt(head_dim).
        query_dim: width of the query input.
        key_dim: width of the key input.
        value_dim: width of the value input.
        output_dim: width of the output.
        names: the parameters, a subset of `AXES`.
        kept_heads: which heads of the original these are, in order; None = not known.
        full_num_heads: number of heads of the original; None = not known.

    Raises:
        SurgeryError: a size is below 1, the heads contradict each other, or a packed weight meets unequal inputs.
    """

    num_heads: int
    head_dim: int
    query_dim: int
    key_dim: int
    value_dim: int
    output_dim: int
    names: tuple[str, ...] = ("in_proj_weight", "in_proj_bias", "out_proj.weight", "out_proj.bias")
    kept_heads: tuple[int, ...] | None = None
    full_num_heads: int | None = None

    def __post_init__(self) -> None:
        if unknown := set(self.names) - set(AXES):
            raise SurgeryError(f"an attention has the parameters {list(AXES)}; found also {sorted(unknown)}.")
        object.__setattr__(self, "names", tuple(name for name in AXES if name in self.names))
        for name in ("num_heads", "head_dim", "query_dim", "key_dim", "value_dim", "output_dim"):
            if getattr(self, name) < 1:
                raise SurgeryError(f"an attention needs {name} >= 1; found {getattr(self, name)}.")
        if self.is_packed and not self.query_dim == self.key_dim == self.value_dim:
            raise SurgeryError(
                f"in_proj_weight needs equal input widths; found query {self.query_dim}, key {self.key_dim}, "
                f"value {self.value_dim}: use q_proj_weight, k_proj_weight and v_proj_weight."
            )
        if self.kept_heads is not None:
            object.__setattr__(self, "kept_heads", tuple(int(head) for head in self.kept_heads))
            self._check_heads(self.kept_heads)

    def _check_heads(self, kept: tuple[int, ...]) -> None:
        full = self.full_num_heads or 0
        if len(kept) != self.num_heads or len(set(kept)) != len(kept) or not all(0 <= head < full for head in kept):
            raise SurgeryError(
                f"kept_heads must be {self.num_heads} different indices of the {full} original heads; "
                f"found {list(kept)}."
            )

    @property
    def is_packed(self) -> bool:
        """Whether the weights of q, k and v are one parameter."""
        return "in_proj_weight" in self.names

    @property
    def inner_dim(self) -> int:
        """Width of q, k and v: num_heads x head_dim."""
        return self.num_heads * self.head_dim

    @classmethod
    def of(cls, mha: nn.MultiheadAttention | SlimMultiheadAttention) -> AttentionShape:
        """Return the shape of an attention as it is.

        >>> AttentionShape.of(nn.MultiheadAttention(8, 2)).inner_dim
        8
        """
        if isinstance(mha, SlimMultiheadAttention):
            return mha.shape
        return cls(
            num_heads=mha.num_heads,
            head_dim=mha.head_dim,
            query_dim=mha.embed_dim,
            key_dim=mha.kdim,
            value_dim=mha.vdim,
            output_dim=mha.embed_dim,
            names=tuple(name for name, _ in mha.named_parameters(remove_duplicate=False)),
            kept_heads=tuple(range(mha.num_heads)),
            full_num_heads=mha.num_heads,
        )

    def parameter_shapes(self) -> dict[str, tuple[int, ...]]:
        """Return the shape of every parameter.

        >>> AttentionShape.of(nn.MultiheadAttention(4, 2, bias=False)).parameter_shapes()
        {'in_proj_weight': (12, 4), 'out_proj.weight': (4, 4)}
        """
        lengths = {
            "one": 1,
            "inner": self.inner_dim,
            "triple": 3 * self.inner_dim,
            "query": self.query_dim,
            "key": self.key_dim,
            "value": self.value_dim,
            "output": self.output_dim,
        }
        return {name: tuple(lengths[axis] for axis in AXES[name]) for name in self.names}


class SlimMultiheadAttention(nn.Module):
    """Multi-head attention with free widths; called like ``nn.MultiheadAttention``, answers like it.

    Parameters have the names of ``nn.MultiheadAttention`` and the same order of rows, so an original's tensors cut
    along their axes load directly. Averaged attention weights are the average over the heads that are left. A 3-D
    ``attn_mask`` may have the rows of the heads that are left, or of all original heads where `shape` names the kept.

    Args:
        shape: sizes, and which parameters there are.
        dropout: probability of dropping an attention weight in training, 0 <= dropout < 1.
        batch_first: batched inputs and outputs are (batch, length, width) instead of (length, batch, width).
        add_zero_attn: append a position of zeros to keys and values.
        device: where the parameters are.
        dtype: of the parameters.

    >>> shape = AttentionShape(num_heads=3, head_dim=4, query_dim=6, key_dim=6, value_dim=6, output_dim=6)
    >>> output, weights = SlimMultiheadAttention(shape)(*[torch.randn(5, 2, 6)] * 3)
    >>> output.shape, weights.shape
    (torch.Size([5, 2, 6]), torch.Size([2, 5, 5]))
    """

    # Read by nn.TransformerEncoder and its layers: False keeps them off fused kernels that assume equal widths.
    _qkv_same_embed_dim = False

    in_proj_weight: nn.Parameter | None
    q_proj_weight: nn.Parameter | None
    k_proj_weight: nn.Parameter | None
    v_proj_weight: nn.Parameter | None
    in_proj_bias: nn.Parameter | None
    bias_k: nn.Parameter | None
    bias_v: nn.Parameter | None

    def __init__(
        self,
        shape: AttentionShape,
        *,
        dropout: float = 0.0,
        batch_first: bool = False,
        add_zero_attn: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.shape = shape
        self.num_heads, self.head_dim = shape.num_heads, shape.head_dim
        self.embed_dim, self.kdim, self.vdim = shape.query_dim, shape.key_dim, shape.value_dim
        self.dropout, self.batch_first, self.add_zero_attn = dropout, batch_first, add_zero_attn
        sizes = shape.parameter_shapes()
        for name in AXES:
            if "." not in name:
                empty = nn.Parameter(torch.empty(sizes[name], device=device, dtype=dtype)) if name in sizes else None
                self.register_parameter(name, empty)
        has_out_bias = "out_proj.bias" in sizes
        self.out_proj = nn.Linear(shape.inner_dim, shape.output_dim, bias=has_out_bias, device=device, dtype=dtype)
        self.reset_parameters()

    @property
    def kept_heads(self) -> tuple[int, ...] | None:
        """Which heads of the original are left, in order; None = not known."""
        return self.shape.kept_heads

    def reset_parameters(self) -> None:
        """Draw new parameters as ``nn.MultiheadAttention`` does: Xavier weights, zero biases."""
        for weight in (self.in_proj_weight, self.q_proj_weight, self.k_proj_weight, self.v_proj_weight):
            if weight is not None:
                nn.init.xavier_uniform_(weight)
        for bias in (self.in_proj_bias, self.out_proj.bias):
            if bias is not None:
                nn.init.zeros_(bias)
        for position in (self.bias_k, self.bias_v):
            if position is not None:
                nn.init.xavier_normal_(position)

    @classmethod
    def from_multihead_attention(
        cls,
        mha: nn.MultiheadAttention | SlimMultiheadAttention,
        *,
        head_count: int,
        tensors: Mapping[str, Tensor],
        kept_heads: Sequence[int] | None = None,
    ) -> SlimMultiheadAttention:
        """Build the stand-in for `mha` from its tensors, already cut.

        Mode, dropout, ``batch_first`` and each parameter's ``requires_grad`` are those of `mha`; device and dtype are
        those of `tensors`. An ``nn.Parameter`` is taken over as it is, so that ties survive; another tensor is copied.

        Args:
            mha: the attention that was cut; it is not changed.
            head_count: number of heads that are left.
            tensors: name relative to `mha` -> cut tensor, for every parameter of `mha`.
            kept_heads: which heads of `mha` are left, needed where heads were removed and 3-D masks still have the
                original's rows, or `expand_state` is to be called.

        Raises:
            SurgeryError: tensors are missing, unknown or of shapes that contradict each other; or `mha` is of a
                subclass with a ``forward`` of its own.

        >>> mha = nn.MultiheadAttention(4, 2)
        >>> rows = torch.tensor([2, 3, 6, 7, 10, 11])  # head 1 of q, k and v
        >>> cut = {"in_proj_weight": mha.in_proj_weight[rows], "in_proj_bias": mha.in_proj_bias[rows],
        ...        "out_proj.weight": mha.out_proj.weight[:, 2:], "out_proj.bias": mha.out_proj.bias}
        >>> slim = SlimMultiheadAttention.from_multihead_attention(mha, head_count=1, tensors=cut, kept_heads=[1])
        >>> slim.num_heads, slim.head_dim, slim.embed_dim
        (1, 2, 4)
        """
        if type(mha).forward not in (nn.MultiheadAttention.forward, cls.forward):
            raise SurgeryError(
                f"{type(mha).__qualname__} has a forward of its own, so no stand-in can replace it: "
                "protect its channels with keep=[...]."
            )
        shape = _shape_of_cut(AttentionShape.of(mha), head_count, tensors, kept_heads)
        slim = cls(
            shape,
            dropout=mha.dropout,
            batch_first=mha.batch_first,
            add_zero_attn=mha.add_zero_attn,
            device="meta",
            dtype=tensors["out_proj.weight"].dtype,
        )
        for name, old in mha.named_parameters(remove_duplicate=False):
            owner = slim.out_proj if name.startswith("out_proj.") else slim
            setattr(owner, name.removeprefix("out_proj."), _as_parameter(tensors[name], old.requires_grad))
        return slim.train(mha.training)

    def forward(  # the signature is that of nn.MultiheadAttention
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """Attend; arguments, results and their shapes are those of ``nn.MultiheadAttention.forward``.

        Returns:
            The output, shaped like `query` but with width ``shape.output_dim``; and, if `need_weights`, the weights
            (batch, length, source length), or (batch, num_heads, length, source length) if they are not averaged.

        Raises:
            ValueError: the inputs and masks do not fit together.
        """
        if query.is_nested:
            return self._attend_nested(query, key, value, need_weights, average_attn_weights)
        if is_causal and attn_mask is None:
            raise ValueError("is_causal=True is a hint about attn_mask, and attn_mask=None: give both.")
        is_batched = query.dim() == 3
        is_length_first = is_batched and not self.batch_first
        q, k, v = self._project(query, key, value)  # (batch, length, inner) or (length, batch, inner)
        if not is_batched:
            q, k, v = q.unsqueeze(0), k.unsqueeze(0), v.unsqueeze(0)
            key_padding_mask = None if key_padding_mask is None else key_padding_mask.unsqueeze(0)
        elif is_length_first:
            q, k, v = q.transpose(0, 1), k.transpose(0, 1), v.transpose(0, 1)
        # torch's own shortcut: the hint replaces the mask where no other mask has to be added to it
        is_causal = is_causal and key_padding_mask is None and not need_weights
        mask = None if is_causal else self._merge_masks(attn_mask, key_padding_mask, (*q.shape[:2], k.shape[1]), query)
        mixed, weights = self._attend(*self._split_heads(q, k, v), mask, need_weights, is_causal)
        output = self.out_proj(mixed.transpose(1, 2).flatten(2))  # (batch, length, output)
        if weights is not None and average_attn_weights:
            weights = weights.mean(dim=1)
        if is_length_first:
            output = output.transpose(0, 1)
        if not is_batched:
            output, weights = output.squeeze(0), None if weights is None else weights.squeeze(0)
        return output, weights

    def _project(self, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return q, k and v, each (..., inner)."""
        if self.in_proj_weight is not None:
            if query is key and key is value:
                q, k, v = F.linear(query, self.in_proj_weight, self.in_proj_bias).chunk(3, dim=-1)
                return q, k, v
            weights = self.in_proj_weight.chunk(3)
        else:
            assert self.q_proj_weight is not None
            assert self.k_proj_weight is not None
            assert self.v_proj_weight is not None
            weights = (self.q_proj_weight, self.k_proj_weight, self.v_proj_weight)
        biases = (None, None, None) if self.in_proj_bias is None else self.in_proj_bias.chunk(3)
        q, k, v = (F.linear(x, w, b) for x, w, b in zip((query, key, value), weights, biases, strict=True))
        return q, k, v

    def _split_heads(self, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Append the extra positions and return q, k, v as (batch, heads, length, head width)."""
        if self.bias_k is not None and self.bias_v is not None:
            k = torch.cat([k, self.bias_k.expand(k.shape[0], 1, -1)], dim=1)
            v = torch.cat([v, self.bias_v.expand(v.shape[0], 1, -1)], dim=1)
        if self.add_zero_attn:
            k, v = F.pad(k, (0, 0, 0, 1)), F.pad(v, (0, 0, 0, 1))
        q, k, v = (x.view(*x.shape[:2], -1, self.head_dim).transpose(1, 2) for x in (q, k, v))
        return q, k, v

    def _attend(
        self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, need_weights: bool, is_causal: bool
    ) -> tuple[Tensor, Tensor | None]:
        dropout = self.dropout if self.training else 0.0
        if not need_weights:
            mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout, is_causal=is_causal)
            return mixed, None
        scores = (q / math.sqrt(self.head_dim)) @ k.transpose(-2, -1)  # (batch, heads, length, source length)
        weights = F.dropout(torch.softmax(scores if mask is None else scores + mask, dim=-1), dropout)
        return weights @ v, weights

    def _merge_masks(
        self, attn_mask: Tensor | None, key_padding_mask: Tensor | None, sizes: tuple[int, int, int], query: Tensor
    ) -> Tensor | None:
        """Return one mask to add to the scores, (batch or 1, heads or 1, length or 1, source length)."""
        batch, length, source = sizes
        merged: Tensor | None = None
        if attn_mask is not None:
            merged = _additive(self._rows_of_kept_heads(attn_mask, batch, length, source), query.dtype)
        if key_padding_mask is not None:
            if tuple(key_padding_mask.shape) != (batch, source):
                raise ValueError(f"key_padding_mask must be {(batch, source)}; found {tuple(key_padding_mask.shape)}.")
            padding = _additive(key_padding_mask, query.dtype)[:, None, None, :]
            merged = padding if merged is None else merged + padding
        extra = (self.bias_k is not None) + self.add_zero_attn
        return F.pad(merged, (0, extra)) if merged is not None and extra else merged

    def _rows_of_kept_heads(self, mask: Tensor, batch: int, length: int, source: int) -> Tensor:
        """Return `mask` as (batch or 1, heads or 1, length, source), of the heads that are left."""
        if tuple(mask.shape) == (length, source):
            return mask[None, None]
        if tuple(mask.shape) == (batch * self.num_heads, length, source):
            return mask.reshape(batch, self.num_heads, length, source)
        full = self.shape.full_num_heads
        if self.kept_heads is not None and full and tuple(mask.shape) == (batch * full, length, source):
            heads = torch.tensor(self.kept_heads, device=mask.device)
            return mask.reshape(batch, full, length, source).index_select(1, heads)
        raise ValueError(
            f"attn_mask must be {(length, source)} or {(batch * self.num_heads, length, source)}"
            + (f" or {(batch * full, length, source)}" if self.kept_heads is not None and full else "")
            + f"; found {tuple(mask.shape)}."
        )

    def _attend_nested(
        self, query: Tensor, key: Tensor, value: Tensor, need_weights: bool, average_attn_weights: bool
    ) -> tuple[Tensor, Tensor | None]:
        """Attend within sequences of unequal length, which nn.TransformerEncoder hands down in evaluation."""
        if query is not key or key is not value or not self.batch_first:
            raise ValueError("a nested tensor needs batch_first=True and query, key and value to be the same tensor.")
        lengths = [len(sequence) for sequence in query.unbind()]
        padded = torch.nested.to_padded_tensor(query, 0.0)
        positions = torch.arange(padded.shape[1], device=padded.device)
        is_padding = positions >= torch.tensor(lengths, device=padded.device)[:, None]
        output, weights = self(
            padded, padded, padded, is_padding, need_weights, average_attn_weights=average_attn_weights
        )
        ragged = [sequence[:length] for sequence, length in zip(output, lengths, strict=True)]
        return torch.nested.as_nested_tensor(ragged, layout=query.layout), weights

    def expand_state(
        self,
        full: AttentionShape,
        *,
        query: Sequence[int] | None = None,
        key: Sequence[int] | None = None,
        value: Sequence[int] | None = None,
        output: Sequence[int] | None = None,
    ) -> dict[str, Tensor]:
        """Return the state dict of the full-width attention that computes the same, zeros where something was removed.

        Args:
            full: the shape of the original, as ``AttentionShape.of`` gives it.
            query: indices of the query inputs that were kept, in order; None = all. With a packed weight they are
                those of key and value too.
            key: the same for the key inputs.
            value: the same for the value inputs.
            output: the same for the outputs.

        Raises:
            SurgeryError: indices do not fit the widths, heads were removed and it is not known which, or `full` has
                other parameters.
        """
        if self.shape.names != full.names or self.head_dim != full.head_dim:
            raise SurgeryError(
                f"the original has heads of {full.head_dim} and the parameters {list(full.names)}; "
                f"this attention has heads of {self.head_dim} and {list(self.shape.names)}."
            )
        inputs = (query, query, query) if self.shape.is_packed else (query, key, value)
        indices = {
            "query": _indices("query", inputs[0], self.shape.query_dim, full.query_dim),
            "key": _indices("key", inputs[1], self.shape.key_dim, full.key_dim),
            "value": _indices("value", inputs[2], self.shape.value_dim, full.value_dim),
            "output": _indices("output", output, self.shape.output_dim, full.output_dim),
            "one": torch.tensor([0]),
        }
        heads = _indices("head", self.kept_heads, self.num_heads, full.num_heads)
        inner = (heads[:, None] * full.head_dim + torch.arange(full.head_dim)).flatten()
        indices["inner"] = inner
        indices["triple"] = torch.cat([inner + block * full.inner_dim for block in range(3)])
        sizes, state = full.parameter_shapes(), {}
        for name, tensor in self.state_dict().items():
            wide = tensor
            for dim, axis in enumerate(AXES[name]):
                size = (*wide.shape[:dim], sizes[name][dim], *wide.shape[dim + 1 :])
                wide = wide.new_zeros(size).index_copy_(dim, indices[axis].to(wide.device), wide)
            state[name] = wide
        return state

    def extra_repr(self) -> str:
        """Return the sizes shown by ``print(module)``."""
        shape = self.shape
        widths = f"query={shape.query_dim}, key={shape.key_dim}, value={shape.value_dim}, output={shape.output_dim}"
        return f"{shape.num_heads} heads x {shape.head_dim}, {widths}, batch_first={self.batch_first}"


def _shape_of_cut(
    full: AttentionShape, head_count: int, tensors: Mapping[str, Tensor], kept_heads: Sequence[int] | None
) -> AttentionShape:
    """Read the widths off the cut tensors and check that every one of them agrees."""
    if set(tensors) != set(full.names):
        raise SurgeryError(f"expected the cut tensors {list(full.names)}; found {sorted(tensors)}.")
    if not 1 <= head_count <= full.num_heads:
        raise SurgeryError(f"head_count={head_count}: expected 1 to {full.num_heads}, the heads of the original.")
    if kept_heads is None and head_count == full.num_heads:
        kept_heads = range(head_count)
    if kept_heads is not None and not all(0 <= head < full.num_heads for head in kept_heads):
        raise SurgeryError(f"kept_heads={list(kept_heads)}: the original has heads 0 to {full.num_heads - 1}.")
    if kept_heads is not None and full.kept_heads is not None:
        kept_heads = [full.kept_heads[head] for head in kept_heads]
    packed = full.is_packed
    weights = ["in_proj_weight"] * 3 if packed else ["q_proj_weight", "k_proj_weight", "v_proj_weight"]
    query_dim, key_dim, value_dim = (tensors[name].shape[1] for name in weights)
    shape = AttentionShape(
        num_heads=head_count,
        head_dim=full.head_dim,
        query_dim=query_dim,
        key_dim=key_dim,
        value_dim=value_dim,
        output_dim=tensors["out_proj.weight"].shape[0],
        names=full.names,
        kept_heads=None if kept_heads is None or full.kept_heads is None else tuple(kept_heads),
        full_num_heads=full.full_num_heads,
    )
    for name, size in shape.parameter_shapes().items():
        if tuple(tensors[name].shape) != size:
            raise SurgeryError(
                f"{name} of an attention with {head_count} heads of {full.head_dim} must be {size}; "
                f"found {tuple(tensors[name].shape)}."
            )
    return shape


def _as_parameter(tensor: Tensor, requires_grad: bool) -> nn.Parameter:
    if isinstance(tensor, nn.Parameter):
        return tensor
    return nn.Parameter(tensor.detach().clone(), requires_grad=requires_grad)


def _additive(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """Return a mask to add to attention scores; True in a bool mask means "do not look"."""
    if mask.dtype == torch.bool:
        return torch.zeros_like(mask, dtype=dtype).masked_fill_(mask, -math.inf)
    if not mask.is_floating_point():
        raise ValueError(f"a mask must be bool or floating point; found {mask.dtype}.")
    return mask


def _indices(axis: str, kept: Iterable[int] | None, count: int, width: int) -> Tensor:
    """Check the kept indices of one axis: `count` different ones below `width`; None = all."""
    indices = list(range(width)) if kept is None else [int(index) for index in kept]
    if len(indices) != count or len(set(indices)) != count or not all(0 <= index < width for index in indices):
        raise SurgeryError(
            f"this attention keeps {count} of {width} {axis} indices, so it needs {count} different ones below "
            f"{width}; found {'none given' if kept is None else indices}."
        )
    return torch.tensor(indices)
