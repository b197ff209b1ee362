"""What shrink keeps of a model besides its function, and what it refuses."""

import copy
from collections import OrderedDict

import pytest
import torch
from torch import nn

from secateur import Plan, trace
from secateur.errors import PlanError, SurgeryError
from secateur.surgery.attention import SlimMultiheadAttention
from secateur.surgery.mask import mask
from secateur.surgery.record import record_of
from secateur.surgery.shrink import copy_with, shrink
from secateur.surgery.verify import verify

from ..shrunk_models import (
    EXAMPLES,
    Attend,
    ConvNet,
    Encoder,
    Normalised,
    OwnAttention,
    Recurrent,
    TiedEmbedding,
    example,
    fresh,
    half,
    halved,
)


def state(model):
    return {name: t.clone() for name, t in [*model.named_parameters(), *model.named_buffers()]}


@pytest.mark.parametrize("kind", EXAMPLES)
def test_two_cuts_in_a_row_are_exact_each(kind):
    model, x = fresh(kind), example(kind)
    for skip in (0, 1):
        graph = trace(model, x)
        plan = half(graph.widths, skip)
        small = shrink(model, graph, plan)
        assert verify(model, small, plan, x).is_exact
        model = small


class Knot(nn.Module):
    """Refers to its parent outside of torch's tables, and shares a list and an empty table with it."""

    def __init__(self, parent=None):
        super().__init__()
        self.linear = nn.Linear(4, 4)
        self.children_too, self.empty = [], OrderedDict()
        self.count = 0
        if parent is not None:
            object.__setattr__(self, "parent", parent)
            self.children_too, self.empty = parent.children_too, parent.empty
            parent.children_too.append(self)


class Own(nn.Linear):
    def __deepcopy__(self, memo):
        twin = memo[id(self)] = Own(self.in_features, self.out_features)
        twin.copied_by = "itself"
        return twin


def test_copies_keep_what_modules_share_and_how_they_copy_themselves():
    model = Knot()
    model.child, model.own = Knot(model), Own(2, 3)
    handle = model.child.register_forward_hook(lambda *_: None)
    small = copy_with(model, lambda _, tensor: tensor.detach().clone())
    assert small.child.parent is small
    assert small.children_too is small.child.children_too
    assert small.children_too == [small.child]
    assert small.empty is small.child.empty is not model.empty
    assert small.own.copied_by == "itself"
    assert list(small.child._forward_hooks) == [handle.id]
    small.register_forward_hook(lambda *_: None)
    small.child._forward_hooks.clear()
    assert not model._forward_hooks
    assert len(model.child._forward_hooks) == 1


@pytest.mark.parametrize("kind", EXAMPLES)
def test_the_input_model_is_as_before(kind):
    model, x = fresh(kind).train(), example(kind)
    before, text, names = state(model), str(model), {p: dict(m.__dict__) for p, m in model.named_modules()}
    random = torch.get_rng_state()
    small = halved(model, x)
    assert torch.equal(torch.get_rng_state(), random)
    assert str(model) == text
    assert all(torch.equal(tensor, before[name]) for name, tensor in state(model).items())
    for path, module in model.named_modules():
        assert module.__dict__.keys() == names[path].keys()
        assert all(module.__dict__[key] is value for key, value in names[path].items() if key != "training")
        assert module.training
    memory = {tensor.untyped_storage().data_ptr() for tensor in [*model.parameters(), *model.buffers()]}
    shared = [t for t in [*small.parameters(), *small.buffers()] if t.untyped_storage().data_ptr() in memory]
    assert not shared


def test_modes_of_single_modules_are_kept():
    model = fresh(ConvNet).train()
    model.stem[1].eval()
    small = halved(model, example(ConvNet))
    assert {path: m.training for path, m in small.named_modules()} == {
        path: m.training for path, m in model.named_modules()
    }


def test_a_swapped_attention_keeps_the_modes_of_itself_and_its_projection():
    model = fresh(Attend).train()
    model.attention.eval()
    small = halved(model, example(Attend))
    assert (small.training, small.attention.training, small.attention.out_proj.training) == (True, False, False)


@pytest.mark.parametrize("kind", [ConvNet, Attend, Normalised])
def test_frozen_parameters_stay_frozen(kind):
    model = fresh(kind)
    for number, parameter in enumerate(model.parameters()):
        parameter.requires_grad_(number % 2 == 0)
    small = halved(model, example(kind))
    assert {n: p.requires_grad for n, p in small.named_parameters()} == {
        n: p.requires_grad for n, p in model.named_parameters()
    }


def test_dtype_is_kept_per_tensor():
    graph = trace(fresh(ConvNet), example(ConvNet))
    model = fresh(ConvNet)
    model.head.to(torch.bfloat16)
    small = shrink(model, graph, Plan.from_removed({"block.0": [1, 4]}, graph.widths))
    assert small.head.weight.dtype == torch.bfloat16
    assert small.block[0].weight.dtype == torch.float32
    assert small.stem[1].num_batches_tracked.dtype == torch.int64


def test_channels_last_stays_channels_last():
    model = fresh(ConvNet).to(memory_format=torch.channels_last)
    small = halved(model, example(ConvNet).contiguous(memory_format=torch.channels_last))
    weight = small.block[3].weight
    assert weight.shape == (6, 5, 3, 3)
    assert weight.is_contiguous(memory_format=torch.channels_last)
    assert not weight.is_contiguous()


def test_channels_last_in_three_dimensions_stays_too():
    model = nn.Sequential(nn.Conv3d(3, 8, 3), nn.ReLU(), nn.Conv3d(8, 2, 3)).to(memory_format=torch.channels_last_3d)
    small = halved(model.eval(), torch.randn(1, 3, 6, 6, 6))
    assert small[2].weight.shape == (2, 4, 3, 3, 3)
    assert small[2].weight.is_contiguous(memory_format=torch.channels_last_3d)


def test_tied_parameters_stay_tied():
    small = halved(fresh(TiedEmbedding), example(TiedEmbedding))
    assert small.head.weight is small.embedding.weight
    assert small.head.weight.shape == (11, 4)


def test_a_list_of_parameters_beside_the_module_follows():
    model = fresh(ConvNet)
    model.watched = [model.head.weight]
    small = halved(model, example(ConvNet))
    assert small.watched[0] is small.head.weight


@pytest.mark.parametrize("kind", [ConvNet, Attend])
def test_hooks_stay_registered(kind):
    model, x = fresh(kind), example(kind)
    layer = model.head if kind is ConvNet else model.attention
    calls = []
    layer.register_forward_pre_hook(lambda *_: calls.append("pre"))
    layer.register_forward_hook(lambda *_: calls.append("forward"))
    layer.register_forward_hook(lambda *_, **__: calls.append("keywords"), with_kwargs=True)
    layer.register_full_backward_hook(lambda *_: calls.append("backward"))
    layer.register_state_dict_post_hook(lambda *_: calls.append("state"))
    small = halved(model, x)
    calls.clear()
    small(x).sum().backward()
    small.state_dict()
    assert calls == ["pre", "forward", "keywords", "backward", "state"]


def test_an_encoder_around_a_swapped_attention_takes_padded_batches():
    # TransformerEncoder's shortcut reads the first layer's weights as if all widths were equal
    model, x = fresh(Encoder), example(Encoder)
    padding = torch.tensor([[False] * 5, [False] * 3 + [True] * 2])
    graph = trace(model, x)
    plan = half(graph.widths)
    small = shrink(model, graph, plan)
    assert not small.encoder.use_nested_tensor
    assert model.encoder.use_nested_tensor
    masked = mask(model, graph, plan)
    masked.encoder.use_nested_tensor = False
    with torch.no_grad():
        torch.testing.assert_close(small(x, padding)[~padding], masked(x, padding)[~padding])
    [change] = [c for c in record_of(small).attributes if c.name == "use_nested_tensor"]
    assert (change.module, change.before, change.after) == ("encoder", True, False)


def test_an_encoder_that_loses_no_head_keeps_its_shortcut():
    model, x = fresh(Encoder), example(Encoder)
    graph = trace(model, x)
    plan = Plan.from_removed({"encoder.layers.0.linear1": [0, 1]}, graph.widths)
    assert shrink(model, graph, plan).encoder.use_nested_tensor


def test_an_attention_used_under_two_names_is_swapped_at_both():
    model = fresh(Attend)
    model.again = model.attention
    small = halved(model, example(Attend))
    assert isinstance(small.attention, SlimMultiheadAttention)
    assert small.again is small.attention


def test_a_width_that_was_not_cut_keeps_its_number():
    # linear1 of an encoder reads 16 and made 16 before this cut: only what it makes may change
    model = nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 3))
    small = halved(model, torch.randn(2, 16))
    assert (small[0].in_features, small[0].out_features) == (16, 8)
    assert {(c.module, c.name) for c in record_of(small).attributes} == {("0", "out_features"), ("2", "in_features")}


def test_attention_written_by_hand_may_be_left_with_one_head():
    # with one head reshape needs no copy, so one operation fewer runs
    model, x = fresh(OwnAttention), example(OwnAttention)
    graph = trace(model, x)
    plan = Plan.from_removed({"qkv": [0, 1, 3]}, graph.widths)
    small = shrink(model, graph, plan)
    assert (small.heads, small.head_width, small.qkv.out_features) == (1, 5, 15)
    assert verify(model, small, plan, x).is_exact


@pytest.mark.filterwarnings("ignore:.*weight_norm.* is deprecated:FutureWarning")
def test_old_style_weight_norm_is_cut_with_its_computed_weight():
    model = nn.Sequential(nn.utils.weight_norm(nn.Conv2d(3, 8, 3)), nn.ReLU(), nn.Conv2d(8, 2, 1)).eval()
    x = torch.randn(1, 3, 6, 6)
    model(x)
    graph = trace(model, x)
    plan = half(graph.widths)
    small = shrink(model, graph, plan)
    assert small[0].weight.shape == (4, 3, 3, 3)
    assert small[0].out_channels == 4
    assert verify(model, small, plan, x).is_exact


def test_a_recurrent_layer_runs_on_its_own_parameters():
    small = halved(fresh(Recurrent), example(Recurrent))
    assert small.lstm.input_size == 4
    assert all(a is b for a, b in zip(small.lstm._flat_weights, small.lstm.parameters(), strict=True))


def test_the_record_is_in_numbers_of_the_first_model():
    model, x = fresh(ConvNet), example(ConvNet)
    once = halved(model, x)
    graph = trace(once, x)
    twice = shrink(once, graph, Plan.from_removed({"block.0": [0, 3]}, graph.widths))
    record = record_of(twice)
    assert record.kept["block.0.bias"] == [(0, [2, 4, 8])]
    assert record.shapes["block.0.bias"] == (10,)
    change = next(c for c in record.attributes if c.module == "block.0" and c.name == "out_channels")
    assert (change.before, change.after) == (10, 3)
    assert record_of(once).kept["block.0.bias"] == [(0, [0, 2, 4, 6, 8])], "the first record was changed"


def test_a_plan_that_removes_nothing_gives_an_equal_model():
    model, x = fresh(Attend), example(Attend)
    small = shrink(model, trace(model, x), Plan())
    assert isinstance(small.attention, nn.MultiheadAttention)
    assert torch.equal(small(x), model(x))


def test_widths_are_rounded_down_and_narrow_ones_left():
    model, x = fresh(ConvNet), example(ConvNet)
    graph = trace(model, x)
    plan = Plan.from_removed({"stem.0": [0], "block.0": range(4)}, graph.widths)
    small = shrink(model, graph, plan, round_to=8)
    assert (small.stem[0].out_channels, small.block[0].out_channels) == (8, 6)
    assert record_of(small).kept["stem.1.weight"] == [(0, [1, 2, 3, 4, 5, 6, 7, 8])]


@pytest.mark.parametrize("step", [0, -8])
def test_a_step_below_one_is_refused(step):
    model, x = fresh(ConvNet), example(ConvNet)
    with pytest.raises(PlanError, match=f"round_to={step}: expected a whole number"):
        shrink(model, trace(model, x), Plan(), round_to=step)


def test_a_plan_of_another_model_is_refused():
    model, x = fresh(ConvNet), example(ConvNet)
    graph = trace(model, x)
    with pytest.raises(PlanError, match=r"has a group 'stem\.1', this model has none; nearest: stem\.0"):
        shrink(model, graph, Plan({"stem.1": (0,)}, {"stem.1": 12}))
    with pytest.raises(PlanError, match=r"its group 'stem\.0' has 24 channels"):
        shrink(model, graph, Plan({"stem.0": (0,)}, {"stem.0": 24}))


def test_a_graph_of_another_model_is_refused():
    graph = trace(fresh(ConvNet), example(ConvNet))
    with pytest.raises(PlanError, match=r"graph is of another model: 'block\.0\.weight' has shape \(10, 8, 1, 1\)"):
        shrink(ConvNet(width=8), graph, Plan())


def test_a_width_written_in_the_code_is_named():
    class Fixed(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.other = nn.Linear(4, 10), nn.Linear(10, 2)

        def forward(self, x):
            return self.other(self.one(x).view(-1, 10))

    model = Fixed()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(SurgeryError, match=r"at view.*it has to change 10 to 5"):
        halved(model, torch.randn(3, 4))
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_a_look_at_widths_takes_no_step_of_spectral_norms_power_iteration():
    """A look at the weight takes one in training mode: the smaller model was then not the masked one."""
    norm = nn.utils.parametrizations.spectral_norm
    model, x = nn.Sequential(norm(nn.Conv2d(3, 6, 3)), nn.ReLU(), nn.Conv2d(6, 2, 1)), torch.randn(2, 3, 6, 6)
    graph = trace(model, x)
    plan = Plan.from_removed({"0": [1, 4]}, graph.widths)
    small = shrink(model, graph, plan)
    assert torch.equal(small[0].parametrizations.weight[0]._v, model[0].parametrizations.weight[0]._v)
    assert all(module.training for module in small.modules())
    assert verify(model, small, plan, x).is_exact
