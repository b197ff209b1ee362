"""Channel selection in front of the layers that open residual branches: which have one, and that plans are exact."""

from __future__ import annotations

import copy
import random

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from secateur import (
    Budget,
    ChannelSelect,
    Plan,
    fold_constants,
    load,
    mask,
    prune,
    save,
    shrink,
    trace,
    verify,
    with_selections,
)
from secateur.errors import StoreError
from secateur.measure.macs import measured_macs
from secateur.models.resnet import resnet20
from secateur.surgery.feasible import feasible
from secateur.surgery.rebuild import rebuild
from secateur.surgery.record import record_of
from secateur.surgery.shrink import fitted

from .. import residual_models as models
from ..contract.cases import CASES

DOUBLE = torch.float64


class Sides(nn.Module):
    """A block whose first convolution has two groups, and one that names its input when it calls its own."""

    def __init__(self):
        super().__init__()
        self.stem, self.head = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 3, 1)
        self.grouped, self.back = nn.Conv2d(8, 12, 3, padding=1, groups=2), nn.Conv2d(12, 8, 1)
        self.named, self.again = nn.ConvTranspose2d(8, 6, 3, padding=1), nn.Conv2d(6, 8, 1)

    def forward(self, x):
        x = self.stem(x)
        x = x + self.back(self.grouped(x).relu())
        return self.head(x + self.again(self.named(input=x, output_size=x.shape[2:]).relu()))


class Stream(nn.Module):
    """A block without its head: the stream is what the model returns, and cannot be cut."""

    def __init__(self):
        super().__init__()
        self.stem, self.up, self.down = nn.Linear(3, 8), nn.Linear(8, 6), nn.Linear(6, 8)

    def forward(self, x):
        x = self.stem(x)
        return x + self.down(self.up(x).relu())


class Normalised(nn.Module):
    """What is left of the hidden channels is normalised, and so is the stream behind the selection."""

    def __init__(self):
        super().__init__()
        self.embed, self.head = nn.Linear(3, 8), nn.Linear(8, 3)
        self.norm1, self.norm2, self.inner = nn.LayerNorm(8), nn.LayerNorm(8), nn.LayerNorm(6)
        self.up, self.down = nn.Linear(8, 6), nn.Linear(6, 8)

    def forward(self, x):
        x = self.embed(x)
        return self.head(self.norm2(x + self.down(self.inner(self.up(self.norm1(x))))))


def seeded(build, *shape):
    torch.manual_seed(0)
    return build().eval(), torch.randn(*shape)


MADE = {
    **{build.__name__: lambda build=build: models.made(build) for build in models.EVERY},
    **{name: lambda name=name: (CASES[name].model(), CASES[name].images()) for name in ("residual", "attention")},
    "sides": lambda: seeded(Sides, 2, 3, 5, 5),
    "stream": lambda: seeded(Stream, 2, 3),
    "normalised": lambda: seeded(Normalised, 2, 3),
}


@pytest.fixture(params=MADE)
def case(request):
    return MADE[request.param]()


def selecting(model, x):
    return with_selections(model, trace(model, x), before_layers=True)


def half(graph, names=None):
    draw = random.Random(0)
    widths = graph.widths
    wanted = graph.groups if names is None else names
    return Plan.from_removed({n: draw.sample(range(widths[n]), widths[n] // 2) for n in wanted}, widths)


def selections(model):
    return {path: module for path, module in model.named_modules() if isinstance(module, ChannelSelect)}


def test_layers_that_open_a_branch_of_a_stream_may_select_and_no_others():
    wanted = {
        "post_activation": ["blocks.0.conv1", "blocks.1.conv1"],
        "pre_activation": ["blocks.0.conv1", "blocks.1.conv1"],
        "resnext": ["blocks.0.branch.0", "blocks.1.branch.0"],
        "convnext": ["blocks.0.mlp.0", "blocks.1.mlp.0"],  # behind a depthwise convolution of the stream
        "residual": ["conv1", "conv3"],  # neither the projection nor the head
        "attention": ["qkv", "up"],
        "norm_last": ["encoder.layers.0.linear1", "encoder.layers.1.linear1"],  # torch's attention is one module
        "sides": ["grouped", "named"],
        "stream": ["up"],
    }
    assert {name: list(selecting(*MADE[name]()).selections) for name in wanted} == wanted


@pytest.mark.parametrize("name", ["plain", "concat", "grouped"])
def test_networks_without_residual_branches_have_none(name):
    graph = selecting(CASES[name].model(), CASES[name].images())
    assert graph.selections == ()
    assert graph.widths == CASES[name].graph.widths


def test_a_stem_that_can_be_cut_as_a_whole_is_left_to_that():
    class Net(nn.Module):
        """Both sides of the sum have weights of their own, so that what they read is never added up."""

        def __init__(self):
            super().__init__()
            self.stem, self.project = nn.Conv2d(3, 6, 1), nn.Conv2d(6, 8, 1)
            self.one, self.two, self.head = nn.Conv2d(6, 5, 1), nn.Conv2d(5, 8, 1), nn.Conv2d(8, 2, 1)

        def forward(self, x):
            x = self.stem(x)
            return self.head(self.two(self.one(x).relu()) + self.project(x))

    graph = selecting(Net(), torch.zeros(1, 3, 2, 2))
    assert graph.selections == ()
    assert graph.widths["stem"] == 6


def test_the_stream_stays_whole_and_only_columns_go(case):
    model, x = case
    graph = selecting(model, x)
    plan = half(graph, graph.selecting)
    small = shrink(model, graph, plan)
    changed = [n for n, t in small.named_parameters() if t.shape != model.get_parameter(n).shape]
    assert changed == [f"{path}.weight" for path in graph.selections]
    assert list(selections(small)) == [f"{path}.select" for path in graph.selections]
    assert {n.removesuffix(".select.index") for n in small.state_dict().keys() - model.state_dict().keys()} == set(
        graph.selections
    )
    for name, path in graph.selecting.items():
        assert len(small.get_submodule(path).select.index) % len(plan.kept[name]) == 0
    with torch.no_grad():
        assert small(x).shape == model(x).shape


@pytest.mark.parametrize("only", [True, False], ids=["selections", "every group"])
def test_shrunk_is_masked_and_costs_are_what_is_counted(case, only):
    model, x = case
    model, x = model.double(), x.double()
    graph = selecting(model, x)
    plan = half(graph, graph.selecting if only else None)
    small = shrink(model, graph, plan).eval()
    assert verify(fitted(model, graph), small, plan, x).is_exact
    if only:
        with torch.no_grad():
            torch.testing.assert_close(small(x), mask(model, graph, plan).eval()(x), rtol=1e-10, atol=1e-10)
    costs = selecting(model, x[:1]).costs(plan)
    assert costs.macs == measured_macs(small, x[:1])
    assert costs.params == sum(p.numel() for p in small.parameters())
    assert costs.bytes == sum(t.numel() * t.element_size() for t in (*small.parameters(), *small.buffers()))


def test_macs_are_those_of_the_flop_counter():
    model, x = resnet20().eval(), torch.randn(1, 3, 32, 32)
    graph = selecting(model, x)
    assert len(graph.selections) == 9
    plan = half(graph)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        shrink(model, graph, plan).eval()(x)
    assert graph.costs(plan).macs == counter.get_total_flops() // 2


def test_the_model_does_not_change_and_idle_selections_leave_no_trace(case):
    model, x = case
    before, hooks = copy.deepcopy(model.state_dict()), len(list(model.modules()))
    graph = selecting(model, x)
    same = shrink(model, graph, Plan())
    shrink(model, graph, half(graph))
    for own in (model, same):
        assert len(list(own.modules())) == hooks
        assert not [m for m in own.modules() if m._forward_pre_hooks or m._forward_pre_hooks_with_kwargs]
        assert own.state_dict().keys() == before.keys()
    assert all(torch.equal(t, before[n]) for n, t in model.state_dict().items())
    assert feasible(model, graph).widths == graph.widths


def test_saved_and_loaded_it_has_the_same_bits(case, tmp_path):
    model, x = case
    graph = selecting(model, x)
    small = shrink(model, graph, half(graph))
    save(small, tmp_path)
    again = load(tmp_path, copy.deepcopy(model))
    assert list(again.state_dict()) == list(small.state_dict())
    with torch.no_grad():
        wanted = small(x)
        assert torch.equal(again(x), wanted)
        assert torch.equal(rebuild(model, record_of(small))(x), wanted)
        assert torch.equal(copy.deepcopy(small)(x), wanted)


def test_a_model_without_the_layer_is_refused(tmp_path):
    model, x = MADE["residual"]()
    graph = selecting(model, x)
    save(shrink(model, graph, half(graph, ["conv1.select"])), tmp_path)
    text = (tmp_path / "secateur.json").read_text()
    (tmp_path / "secateur.json").write_text(text.replace("conv1.select", "head.select"))
    with pytest.raises(StoreError):
        load(tmp_path, CASES["residual"].model())


def test_another_cut_selects_among_what_was_selected():
    model, x = models.made(models.post_activation)
    graph = selecting(model, x)
    first = Plan.from_removed({"blocks.0.conv1.select": [1]}, graph.widths)
    once = shrink(model, graph, first)
    second = selecting(once, x)
    assert second.selections == ("blocks.1.conv1",)
    assert second.widths["blocks.0.conv1.select"] == 3
    plan = Plan.from_removed({"blocks.0.conv1.select": [1], "blocks.1.conv1.select": [0]}, second.widths)
    twice = shrink(once, second, plan)
    assert verify(fitted(once, second), twice, plan, x).is_exact
    assert twice.blocks[0].conv1.select.index.tolist() == [0, 3]
    assert twice.blocks[1].conv1.select.index.tolist() == [1, 2, 3]


def test_both_kinds_of_selection_stand_in_one_model():
    model, x = models.made(models.pre_activation)
    behind = with_selections(model, trace(model, x))
    once = shrink(model, behind, half(behind, behind.selecting))
    assert behind.selections
    graph = selecting(once, x)
    plan = half(graph)
    assert verify(fitted(once, graph), shrink(once, graph, plan), plan, x).is_exact


def test_methods_that_did_not_ask_leave_selections_of_a_model_alone():
    model, x = models.made(models.post_activation)
    graph = selecting(model, x)
    small = shrink(model, graph, half(graph, graph.selecting))
    result = prune(small, x, budget=Budget(0.2, "macs"))
    assert not [name for name in result.plan if name in result.graph.selecting]
    assert result.verification.is_exact


def test_channels_that_are_constant_are_folded_into_what_read_them():
    model, x = seeded(Stream, 2, 3)
    with torch.no_grad():
        model.stem.weight[[1, 4]], model.stem.bias[[1, 4]] = 0.0, 0.7
    graph = selecting(model, x)
    plan = Plan.from_removed({"up.select": [1, 4]}, graph.widths)
    folded, plainly = shrink(fold_constants(model, graph, plan), graph, plan), shrink(model, graph, plan)
    with torch.no_grad():
        assert (plainly(x) - model(x)).abs().max() > 0.01
        torch.testing.assert_close(folded(x), model(x))


def test_it_trains_with_its_selections():
    model, x = models.made(models.post_activation)
    graph = selecting(model, x)
    small = shrink(model, graph, half(graph)).train()
    small(x).sum().backward()
    assert all(p.grad is not None for p in small.parameters())
