"""The slim attention computes what the full-width attention computes once removed heads and inputs are silenced."""

import copy
import itertools

import pytest
import torch
from torch import nn

from secateur.errors import SurgeryError
from secateur.surgery.attention import AXES, AttentionShape, SlimMultiheadAttention

HEADS, HEAD_DIM, BATCH, LENGTH, SOURCE = 4, 3, 2, 5, 6
EMBED = HEADS * HEAD_DIM
ALL = tuple(range(EMBED))
PLAIN, SEPARATE = {}, {"kdim": 7, "vdim": 8}
SWITCHES = [
    PLAIN,
    SEPARATE,
    {"bias": False},
    {"add_bias_kv": True},
    {"add_zero_attn": True},
    {"add_bias_kv": True, "add_zero_attn": True, "bias": False, **SEPARATE},
]


def full_attention(**options):
    torch.manual_seed(0)
    mha = nn.MultiheadAttention(EMBED, HEADS, dtype=torch.float64, **options).eval()
    for parameter in mha.parameters():
        nn.init.normal_(parameter)
    return mha


def cut(mha, heads=range(HEADS), query=ALL, key=None, value=None, output=ALL):
    """Cut the tensors of `mha` along their axes, one index_select per axis."""
    key = query if mha.in_proj_weight is not None else key or range(mha.kdim)
    value = query if mha.in_proj_weight is not None else value or range(mha.vdim)
    inner = [head * mha.head_dim + i for head in heads for i in range(mha.head_dim)]
    triple = [block * mha.embed_dim + i for block in range(3) for i in inner]
    kept = {"inner": inner, "triple": triple, "query": query, "key": key, "value": value, "output": output, "one": [0]}
    tensors = mha.state_dict()
    for name in tensors:
        for dim, axis in enumerate(AXES[name]):
            tensors[name] = tensors[name].index_select(dim, torch.tensor(list(kept[axis])))
    return tensors


def slimmed(mha, heads=(3, 1), **indices):
    tensors = cut(mha, heads=heads, **indices)
    return SlimMultiheadAttention.from_multihead_attention(
        mha, head_count=len(heads), tensors=tensors, kept_heads=heads
    )


def silence(mha, heads):
    """Zero the output columns of every head that is not kept."""
    mha = copy.deepcopy(mha)
    removed = [h * HEAD_DIM + i for h in range(HEADS) if h not in heads for i in range(HEAD_DIM)]
    with torch.no_grad():
        mha.out_proj.weight[:, removed] = 0
    return mha


def inputs(mha, layout="length first"):
    """Return query, key and value for `mha` in one of three layouts."""
    generator = torch.Generator().manual_seed(1)
    shapes = [(LENGTH, EMBED), (SOURCE, mha.kdim), (SOURCE, mha.vdim)]
    batch = {"length first": lambda n, e: (n, BATCH, e), "batch first": lambda n, e: (BATCH, n, e)}
    return [
        torch.randn(batch.get(layout, lambda n, e: (n, e))(*shape), generator=generator, dtype=torch.float64)
        for shape in shapes
    ]


def masks(kind, is_batched=True):
    """Return attn_mask and key_padding_mask of one kind; no row is masked whole."""
    generator = torch.Generator().manual_seed(2)
    rows = HEADS * (BATCH if is_batched else 1)
    blocked = torch.rand(rows, LENGTH, SOURCE, generator=generator) < 0.4
    blocked[:, :, 2] = False
    added = torch.randn(rows, LENGTH, SOURCE, generator=generator, dtype=torch.float64)
    padding = torch.zeros(BATCH, SOURCE, dtype=torch.bool)
    padding[0, 4:], padding[1, :1] = True, True
    padding = padding if is_batched else padding[0]
    return {
        "none": (None, None),
        "bool 2-D": (blocked[0], None),
        "float 2-D": (added[0], None),
        "bool 3-D": (blocked, None),
        "float 3-D": (added, None),
        "padding": (None, padding),
        "bool 2-D, padding": (blocked[0], padding),
        "float 3-D, float padding": (added, padding.double() * -3),
    }[kind]


MASKS = ["none", "bool 2-D", "float 2-D", "bool 3-D", "float 3-D", "padding", "bool 2-D, padding"]
MASKS += ["float 3-D, float padding"]
LAYOUTS = ["length first", "batch first", "unbatched"]


def close(found, expected):
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("switches", SWITCHES, ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("kind", MASKS)
def test_removing_heads_equals_silencing_them_in_every_mode(switches, layout, kind):
    mha = full_attention(batch_first=layout == "batch first", **switches)
    heads = (3, 1)
    silent, slim = silence(mha, heads), slimmed(mha, heads)
    attn_mask, padding = masks(kind, is_batched=layout != "unbatched")
    for need_weights, average in [(True, True), (True, False), (False, True)]:
        options = {"attn_mask": attn_mask, "key_padding_mask": padding, "need_weights": need_weights}
        output, weights = silent(*inputs(mha, layout), average_attn_weights=False, **options)
        slim_output, slim_weights = slim(*inputs(mha, layout), average_attn_weights=average, **options)
        close(slim_output, output)
        if not need_weights:
            assert slim_weights is None
            continue
        kept = weights.index_select(-3, torch.tensor(heads))
        close(slim_weights, kept.mean(dim=-3) if average else kept)


@pytest.mark.parametrize("switches", SWITCHES, ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_with_nothing_removed_everything_returned_is_the_original_s(switches, layout):
    mha = full_attention(batch_first=layout == "batch first", **switches)
    slim = slimmed(mha, range(HEADS))
    for kind, average in itertools.product(MASKS, [True, False]):
        attn_mask, padding = masks(kind, is_batched=layout != "unbatched")
        options = {"attn_mask": attn_mask, "key_padding_mask": padding, "average_attn_weights": average}
        for found, expected in zip(
            slim(*inputs(mha, layout), **options), mha(*inputs(mha, layout), **options), strict=True
        ):
            close(found, expected)


@pytest.mark.parametrize("switches", SWITCHES, ids=str)
@pytest.mark.parametrize("need_weights", [True, False])
def test_the_causal_hint_means_what_it_means_to_torch(switches, need_weights):
    mha = full_attention(batch_first=True, **switches)
    query, key, value = inputs(mha, "batch first")
    key, value = key[:, :LENGTH], value[:, :LENGTH]
    causal = torch.ones(LENGTH, LENGTH, dtype=torch.bool).triu(1)
    padding = torch.zeros(BATCH, LENGTH, dtype=torch.bool)
    padding[0, 4:] = True
    for padded in (None, padding):
        options = {"attn_mask": causal, "is_causal": True, "need_weights": need_weights, "key_padding_mask": padded}
        expected = silence(mha, (3, 1))(query, key, value, **options)[0]
        close(slimmed(mha)(query, key, value, **options)[0], expected)


@pytest.mark.parametrize("switches", [PLAIN, SEPARATE, {"bias": False}], ids=str)
def test_narrow_inputs_and_outputs_equal_zeros_in_the_removed_places(switches):
    mha = full_attention(batch_first=True, **switches)
    kept = {"query": (0, 2, 3, 9), "output": (1, 2, 11)}
    if switches == SEPARATE:
        kept |= {"key": (0, 6), "value": (1, 2, 3, 5, 7)}
    slim = slimmed(mha, **kept)
    wide = inputs(mha, "batch first")
    axes = [kept["query"], kept.get("key", kept["query"]), kept.get("value", kept["query"])]
    narrow = [x[..., list(axis)] for x, axis in zip(wide, axes, strict=True)]
    zeroed = [
        torch.zeros_like(x).index_copy_(-1, torch.tensor(a), n) for x, a, n in zip(wide, axes, narrow, strict=True)
    ]
    expected = silence(mha, (3, 1))(*zeroed)[0][..., list(kept["output"])]
    close(slim(*narrow)[0], expected)
    assert slim(*narrow)[0].shape == (BATCH, LENGTH, 3)
    assert (slim.embed_dim, slim.num_heads, slim.head_dim) == (4, 2, HEAD_DIM)


@pytest.mark.parametrize("switches", SWITCHES, ids=str)
def test_the_expanded_state_loads_into_the_original_class_and_computes_the_same(switches):
    mha = full_attention(batch_first=True, **switches)
    kept = {"query": (0, 2, 3, 9), "output": (11, 1, 2)}
    if "kdim" in switches:
        kept |= {"key": (0, 6), "value": (1, 2, 3, 5, 7)}
    slim = slimmed(mha, **kept)
    back = full_attention(batch_first=True, **switches)
    back.load_state_dict(slim.expand_state(AttentionShape.of(mha), **kept))
    wide = inputs(mha, "batch first")
    axes = [kept["query"], kept.get("key", kept["query"]), kept.get("value", kept["query"])]
    narrow = [x[..., list(axis)] for x, axis in zip(wide, axes, strict=True)]
    close(back(*wide)[0][..., list(kept["output"])], slim(*narrow)[0])
    assert all(torch.equal(v, slim.state_dict()[k]) for k, v in cut(back, heads=(3, 1), **kept).items())
    removed = [i for i in ALL if i not in kept["output"]]
    assert not back.out_proj.weight[removed].any()


def test_dropout_draws_the_weights_the_original_draws():
    mha = full_attention(batch_first=True, dropout=0.5).train()
    slim = slimmed(mha, range(HEADS))
    assert slim.training
    for need_weights in (True, False):
        torch.manual_seed(3)
        expected = mha(*inputs(mha, "batch first"), need_weights=need_weights)[0]
        torch.manual_seed(3)
        close(slim(*inputs(mha, "batch first"), need_weights=need_weights)[0], expected)
    torch.manual_seed(4)
    assert not torch.equal(slim(*inputs(mha, "batch first"))[0], expected)


def test_gradients_are_those_of_the_silenced_original():
    mha = full_attention(batch_first=True)
    silent, slim = silence(mha, (3, 1)), slimmed(mha)
    for attention in (silent, slim):
        attention(*inputs(mha, "batch first"), need_weights=False)[0].mul(1e-2).square().sum().backward()
    close(slim.out_proj.bias.grad, silent.out_proj.bias.grad)
    rows = [3 * HEAD_DIM + i for i in range(HEAD_DIM)] + [HEAD_DIM + i for i in range(HEAD_DIM)]
    close(slim.in_proj_weight.grad[: 2 * HEAD_DIM], silent.in_proj_weight.grad[rows])


def test_a_3d_mask_of_the_remaining_heads_is_taken_as_it_is():
    mha = full_attention()
    slim = slimmed(mha, (3, 1))
    mask, _ = masks("float 3-D")
    kept = mask.view(BATCH, HEADS, LENGTH, SOURCE)[:, [3, 1]].flatten(0, 1)
    close(slim(*inputs(mha), attn_mask=kept)[0], slim(*inputs(mha), attn_mask=mask)[0])


def test_pruning_twice_remembers_the_original_heads():
    mha = full_attention()
    once = slimmed(mha, (3, 0, 1))
    rows = [i for block in range(3) for i in range(block * 9 + 3, block * 9 + 9)]
    state = once.state_dict()
    tensors = {
        "in_proj_weight": state["in_proj_weight"][rows],
        "in_proj_bias": state["in_proj_bias"][rows],
        "out_proj.weight": state["out_proj.weight"][:, 3:],
        "out_proj.bias": state["out_proj.bias"],
    }
    twice = SlimMultiheadAttention.from_multihead_attention(once, head_count=2, tensors=tensors, kept_heads=[1, 2])
    assert twice.kept_heads == (0, 1)
    mask, _ = masks("float 3-D")
    close(twice(*inputs(mha), attn_mask=mask)[0], silence(mha, (0, 1))(*inputs(mha), attn_mask=mask)[0])


def test_building_it_takes_flags_along_and_leaves_the_original_alone():
    mha = full_attention(dropout=0.25, batch_first=True, add_zero_attn=True).train().float()
    mha.out_proj.weight.requires_grad_(False)
    before = copy.deepcopy(mha.state_dict())
    slim = slimmed(mha)
    assert (slim.dropout, slim.batch_first, slim.add_zero_attn, slim.training) == (0.25, True, True, True)
    assert not slim.out_proj.weight.requires_grad
    assert slim.out_proj.bias.requires_grad
    assert {p.dtype for p in slim.parameters()} == {torch.float32}
    with torch.no_grad():
        for parameter in slim.parameters():
            parameter.zero_()
    assert all(torch.equal(before[name], tensor) for name, tensor in mha.state_dict().items())
    assert mha.training


def test_a_parameter_given_as_a_tensor_stays_the_same_parameter():
    mha = full_attention()
    tensors = cut(mha, heads=(1,)) | {"out_proj.bias": mha.out_proj.bias}
    slim = SlimMultiheadAttention.from_multihead_attention(mha, head_count=1, tensors=tensors)
    assert slim.out_proj.bias is mha.out_proj.bias


def test_copies_and_state_dicts_round_trip():
    mha = full_attention(add_bias_kv=True, **SEPARATE)
    slim = slimmed(mha)
    expected = slim(*inputs(mha))[0]
    assert torch.equal(copy.deepcopy(slim)(*inputs(mha))[0], expected)
    fresh = SlimMultiheadAttention(slim.shape, dtype=torch.float64)
    fresh.load_state_dict(slim.state_dict())
    assert torch.equal(fresh(*inputs(mha))[0], expected)
    assert set(slim.state_dict()) == set(mha.state_dict())


def test_a_fresh_module_starts_like_torch_s():
    slim = SlimMultiheadAttention(AttentionShape.of(full_attention(add_bias_kv=True)))
    bound = (6 / (4 * EMBED)) ** 0.5
    assert 0.9 * bound < slim.in_proj_weight.abs().max() <= bound
    assert not slim.in_proj_bias.any()
    assert not slim.out_proj.bias.any()
    assert slim.bias_k.any()


def encoder(**options):
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(EMBED, HEADS, 16, batch_first=True, dtype=torch.float64)
    return nn.TransformerEncoder(layer, 2, **options).eval()


def slim_inside(model):
    """Swap every attention of a copy of `model`; return the silenced original and the copy."""
    silent, small = copy.deepcopy(model), copy.deepcopy(model)
    for parent in list(small.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.MultiheadAttention):
                setattr(parent, name, slimmed(child))
    for parent in list(silent.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.MultiheadAttention):
                setattr(parent, name, silence(child, (3, 1)))
    return silent, small


@pytest.mark.parametrize("is_grad_enabled", [True, False])
@pytest.mark.parametrize("is_training", [True, False])
def test_it_works_inside_a_transformer_encoder_without_nested_tensors(is_grad_enabled, is_training):
    silent, small = slim_inside(encoder(enable_nested_tensor=False))
    x = torch.randn(BATCH, LENGTH, EMBED, dtype=torch.float64)
    padding = torch.zeros(BATCH, LENGTH, dtype=torch.bool)
    padding[0, 3:] = True
    for model in (silent, small):
        model.train(is_training)
        for module in model.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0
            if hasattr(module, "num_heads"):
                module.dropout = 0.0
    with torch.set_grad_enabled(is_grad_enabled):
        real = ~padding  # fused kernels may leave anything at padded positions
        close(small(x, src_key_padding_mask=padding)[real], silent(x, src_key_padding_mask=padding)[real])
        causal = nn.Transformer.generate_square_subsequent_mask(LENGTH, dtype=torch.float64)
        close(small(x, mask=causal, is_causal=True), silent(x, mask=causal, is_causal=True))


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_it_takes_the_nested_tensors_of_a_transformer_encoder():
    silent, small = slim_inside(encoder())
    x = torch.randn(BATCH, LENGTH, EMBED, dtype=torch.float64)
    padding = torch.zeros(BATCH, LENGTH, dtype=torch.bool)
    padding[0, 3:] = True
    with torch.no_grad():
        expected = silent(x, src_key_padding_mask=padding)
        assert not expected[0, 3:].any(), "torch did not take its nested path, so nothing was tested"
        close(small(x, src_key_padding_mask=padding), expected)


def test_it_works_inside_a_transformer_decoder():
    torch.manual_seed(0)
    layer = nn.TransformerDecoderLayer(EMBED, HEADS, 16, batch_first=True, dtype=torch.float64)
    silent, small = slim_inside(nn.TransformerDecoder(layer, 2).eval())
    target = torch.randn(BATCH, LENGTH, EMBED, dtype=torch.float64)
    memory = torch.randn(BATCH, SOURCE, EMBED, dtype=torch.float64)
    padding = torch.zeros(BATCH, SOURCE, dtype=torch.bool)
    padding[1, 4:] = True
    causal = nn.Transformer.generate_square_subsequent_mask(LENGTH, dtype=torch.float64)
    options = {"tgt_mask": causal, "memory_key_padding_mask": padding, "tgt_is_causal": True}
    with torch.no_grad():
        close(small(target, memory, **options), silent(target, memory, **options))


def test_it_runs_on_the_meta_device_and_under_autocast():
    mha = full_attention(batch_first=True).float()
    slim = slimmed(mha)
    x = torch.randn(BATCH, LENGTH, EMBED)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = slim(x, x, x, attn_mask=torch.zeros(LENGTH, LENGTH))[0]
    torch.testing.assert_close(found.float(), slim(x, x, x)[0], rtol=0.05, atol=0.3)
    assert slim.to("meta")(*[x.to("meta")] * 3)[0].shape == (BATCH, LENGTH, EMBED)


class Renamed(nn.MultiheadAttention):
    def forward(self, *args, **kwargs):
        return super().forward(*args, **kwargs)[0], None


def test_wrong_tensors_are_refused():
    mha = full_attention()
    tensors = cut(mha, heads=(0,))
    build = SlimMultiheadAttention.from_multihead_attention
    with pytest.raises(SurgeryError, match="expected the cut tensors"):
        build(mha, head_count=1, tensors={"out_proj.weight": tensors["out_proj.weight"]})
    with pytest.raises(SurgeryError, match=r"in_proj_weight of an attention with 2 heads of 3 must be \(18, 12\)"):
        build(mha, head_count=2, tensors=tensors)
    with pytest.raises(SurgeryError, match="head_count=5"):
        build(mha, head_count=5, tensors=tensors)
    with pytest.raises(SurgeryError, match="heads 0 to 3"):
        build(mha, head_count=1, tensors=tensors, kept_heads=[4])
    with pytest.raises(SurgeryError, match="1 different indices"):
        build(mha, head_count=1, tensors=tensors, kept_heads=[0, 1])
    with pytest.raises(SurgeryError, match="Renamed has a forward of its own"):
        build(Renamed(EMBED, HEADS), head_count=1, tensors=tensors)


def test_shapes_that_contradict_themselves_are_refused():
    sizes = {"num_heads": 1, "head_dim": 2, "query_dim": 3, "key_dim": 3, "value_dim": 3, "output_dim": 3}
    with pytest.raises(SurgeryError, match="num_heads >= 1"):
        AttentionShape(**(sizes | {"num_heads": 0}))
    with pytest.raises(SurgeryError, match="equal input widths"):
        AttentionShape(**(sizes | {"key_dim": 4}))
    with pytest.raises(SurgeryError, match="found also"):
        AttentionShape(**sizes, names=("out_proj.parametrizations.weight.original0",))


def test_an_expansion_that_is_not_determined_is_refused():
    mha = full_attention()
    full = AttentionShape.of(mha)
    unknown = SlimMultiheadAttention.from_multihead_attention(mha, head_count=1, tensors=cut(mha, heads=(2,)))
    with pytest.raises(SurgeryError, match="keeps 1 of 4 head indices"):
        unknown.expand_state(full)
    with pytest.raises(SurgeryError, match="keeps 2 of 12 query indices"):
        slimmed(mha, query=(0, 1)).expand_state(full)
    with pytest.raises(SurgeryError, match="and the parameters"):
        slimmed(mha).expand_state(AttentionShape.of(full_attention(bias=False)))


def test_masks_that_do_not_fit_are_refused():
    mha = full_attention()
    slim, (query, key, value) = slimmed(mha), inputs(mha)
    with pytest.raises(ValueError, match=r"attn_mask must be \(5, 6\) or \(4, 5, 6\) or \(8, 5, 6\); found \(6, 5\)"):
        slim(query, key, value, attn_mask=torch.zeros(SOURCE, LENGTH))
    with pytest.raises(ValueError, match=r"key_padding_mask must be \(2, 6\)"):
        slim(query, key, value, key_padding_mask=torch.zeros(SOURCE, BATCH))
    with pytest.raises(ValueError, match="bool or floating point"):
        slim(query, key, value, attn_mask=torch.zeros(LENGTH, SOURCE, dtype=torch.int64))
    with pytest.raises(ValueError, match="give both"):
        slim(query, key, value, is_causal=True)
