"""Channel selection: who can have one, and that plans with some are counted, cut, masked and saved exactly."""

from __future__ import annotations

import copy
import random

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from secateur import (
    Budget,
    ChannelSelect,
    Plan,
    fold_constants,
    load,
    mask,
    prune,
    prune_iteratively,
    save,
    shrink,
    trace,
    verify,
    with_selections,
)
from secateur.errors import StoreError, SurgeryError
from secateur.methods import NetworkSlimming, Problem
from secateur.models.densenet import DenseNet, densenet40
from secateur.models.preresnet import PreResNet, preresnet164
from secateur.surgery.feasible import feasible
from secateur.surgery.rebuild import rebuild
from secateur.surgery.record import record_of
from secateur.surgery.selection import candidates
from secateur.surgery.shrink import fitted
from secateur.train import ClassificationTask, Recipe

from ..contract.cases import CASES
from ..networks import randomise

DOUBLE = torch.float64
IMAGES = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(2))


def pre_activation():
    return PreResNet(2)


def dense():
    return DenseNet(2, growth=4, stem_width=6)


def ready(make, dtype=DOUBLE):
    model = make().double().eval()
    randomise(model, torch.Generator().manual_seed(1))
    return model.to(dtype)


def selecting(make, dtype=DOUBLE):
    model = ready(make, dtype)
    return model, with_selections(model, trace(model, IMAGES.to(dtype)))


def half(graph, names=None):
    draw = random.Random(0)
    return Plan.from_removed(
        {name: draw.sample(range(graph.widths[name]), graph.widths[name] // 2) for name in names or graph.groups},
        graph.widths,
    )


def selections(model):
    return {path: module for path, module in model.named_modules() if isinstance(module, ChannelSelect)}


@pytest.fixture(params=[pre_activation, dense], ids=["pre-activation", "dense"])
def make(request):
    return request.param


def test_a_selection_of_all_channels_is_the_identity():
    x = torch.randn(2, 5, 3)
    assert torch.equal(ChannelSelect(range(5))(x), x)
    assert torch.equal(ChannelSelect([4, 1])(x), x[:, [4, 1]])
    assert torch.equal(ChannelSelect([2], axis=2)(x), x[:, :, 2:])


def test_its_index_is_a_buffer_that_nothing_trains_or_counts():
    select = ChannelSelect([0, 2])
    assert not list(select.parameters())
    assert list(select.state_dict()) == ["index"]
    assert select.index.dtype == torch.long


def test_the_graph_with_selections_has_the_same_function_and_costs(make):
    model, graph = selecting(make)
    with torch.no_grad():
        torch.testing.assert_close(fitted(model, graph)(IMAGES.double()), model(IMAGES.double()), rtol=0, atol=0)
    plain = trace(model, IMAGES.double())
    assert (graph.costs().macs, graph.costs().params) == (plain.costs().macs, plain.costs().params)
    assert not selections(model)
    assert selections(fitted(model, graph))


def test_every_norm_of_a_stream_may_select_and_no_other():
    model, graph = selecting(pre_activation)
    blocks = {f"blocks.{k}.bn1" for k in range(1, 6)}
    assert set(graph.selections) == blocks | {"bn"}  # the first block's is all that reads the stem
    assert {graph.selecting[name] for name in graph.selecting} == set(graph.selections)
    assert graph.groups["blocks.1.bn1.select"].labels == {"blocks.1.bn1.select.index:0", "blocks.1.conv1:in"}
    streams = [name for name, group in trace(model, IMAGES.double()).groups.items() if group.is_residual]
    assert streams
    assert not set(streams) & set(graph.groups), "a stream that is read by number stays whole"
    _, graph = selecting(dense)
    assert set(graph.groups) == set(graph.selecting), "nothing but columns may go"
    assert len(graph.selections) == 9


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_networks_that_normalise_after_layers_have_none(case):
    graph = with_selections(case.model(), case.graph)
    assert graph.selections == ()
    assert graph.widths == case.graph.widths


def test_a_norm_whose_result_is_added_up_is_refused():
    class Net(nn.Module):
        """A norm of a stream is added to it, and another one leads to a convolution."""

        def __init__(self):
            super().__init__()
            self.stem, self.inner = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1)
            self.added, self.read = nn.BatchNorm2d(4), nn.BatchNorm2d(4)
            self.head = nn.Conv2d(4, 2, 1)

        def forward(self, x):
            x = self.stem(x)
            x = x + self.added(x)
            return self.head(x + self.inner(F.relu(self.read(x))))

    model = Net()
    graph = trace(model, IMAGES)
    assert set(candidates(model, graph)) == {"added", "read"}
    assert with_selections(model, graph).selections == ("read",)


def test_shrunk_is_masked_and_costs_are_what_is_counted(make):
    model, graph = selecting(make)
    plan = half(graph)
    small, masked = shrink(model, graph, plan).eval(), mask(model, graph, plan).eval()
    images = IMAGES.double()
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        found = small(images[:1])
    with torch.no_grad():
        torch.testing.assert_close(found, masked(images[:1]), rtol=1e-12, atol=1e-12)
    costs = with_selections(model, trace(model, images[:1])).costs(plan)
    assert costs.macs == counter.get_total_flops() // 2
    assert costs.params == sum(p.numel() for p in small.parameters())
    assert costs.bytes == sum(t.numel() * t.element_size() for t in (*small.parameters(), *small.buffers()))
    assert verify(fitted(model, graph), small, plan, images).is_exact


def test_selections_come_only_where_channels_go_and_only_columns_do():
    model, graph = selecting(pre_activation)
    plan = Plan.from_removed({"blocks.3.bn1.select": [0, 5]}, graph.widths)
    small = shrink(model, graph, plan)
    assert list(selections(small)) == ["blocks.3.bn1.select"]
    select = small.get_submodule("blocks.3.bn1.select")
    assert select.index.tolist() == [k for k in range(128) if k not in (0, 5)]
    assert small.get_submodule("blocks.3.bn1").num_features == 128
    assert small.get_submodule("blocks.3.conv1").in_channels == 126
    changed = [n for n, t in small.named_parameters() if t.shape != model.get_parameter(n).shape]
    assert changed == ["blocks.3.conv1.weight"]
    assert not selections(shrink(model, graph, Plan()))
    assert not list(model.get_submodule("blocks.3.bn1")._forward_hooks)


def test_the_model_that_is_cut_does_not_change(make):
    model, graph = selecting(make)
    before = copy.deepcopy(model.state_dict())
    shrink(model, graph, half(graph))
    fold_constants(model, graph, half(graph))
    assert model.state_dict().keys() == before.keys()
    assert all(torch.equal(t, before[n]) for n, t in model.state_dict().items())


def test_saved_and_loaded_it_has_the_same_bits_and_no_pickle(make, tmp_path):
    model, graph = selecting(make, torch.float32)
    small = shrink(model, graph, half(graph))
    save(small, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.safetensors", "secateur.json"]
    again = load(tmp_path, make)
    assert list(again.state_dict()) == list(small.state_dict())
    assert all(torch.equal(t, again.state_dict()[n]) for n, t in small.state_dict().items())
    with torch.no_grad():
        assert torch.equal(again(IMAGES), small(IMAGES))
    twin = rebuild(ready(make, torch.float32), record_of(small))
    with torch.no_grad():
        assert torch.equal(twin(IMAGES), small(IMAGES))


def test_another_cut_selects_among_what_was_selected(make, tmp_path):
    model, graph = selecting(make, torch.float32)
    names = list(graph.selecting)[::2]
    once = shrink(model, graph, half(graph, names))
    second = with_selections(once, trace(once, IMAGES))
    assert {n: second.widths[n] for n in graph.selecting} == {
        n: graph.widths[n] - graph.widths[n] // 2 * (n in names) for n in graph.selecting
    }
    plan = half(second)
    twice = shrink(once, second, plan)
    assert verify(fitted(once, second), twice, plan, IMAGES).is_exact
    path = f"{graph.selecting[names[0]]}.select"
    first_index = once.get_submodule(path).index
    assert torch.equal(twice.get_submodule(path).index, first_index[list(plan.kept[names[0]])])
    save(twice, tmp_path)
    again = load(tmp_path, make)
    with torch.no_grad():
        assert torch.equal(again(IMAGES), twice(IMAGES))


def test_methods_that_did_not_ask_leave_selections_of_a_model_alone():
    model, graph = selecting(pre_activation, torch.float32)
    small = shrink(model, graph, half(graph, list(graph.selecting)))
    result = prune(small, IMAGES, budget=Budget(0.2, "macs"))
    assert not [name for name in result.plan if name in result.graph.selecting]
    assert result.verification.is_exact


def test_copies_go_on_selecting_and_train(make):
    model, graph = selecting(make, torch.float32)
    small = shrink(model, graph, half(graph))
    twin = copy.deepcopy(small)
    with torch.no_grad():
        assert torch.equal(twin(IMAGES), small(IMAGES))
    F.cross_entropy(twin.train()(IMAGES), torch.tensor([0, 1])).backward()
    assert all(p.grad is not None for p in twin.parameters())


def test_constants_of_channels_that_go_are_folded_into_what_read_them():
    """Where a factor is 0, a channel is the constant that its shift leaves behind ReLU; nothing is padded there."""
    model, graph = selecting(dense)
    gone = {"bn.select": [1, 4, 7], "layers.2.bn.select": [0, 2]}
    with torch.no_grad():
        for name, index in gone.items():
            norm = model.get_submodule(graph.selecting[name])
            norm.weight[index], norm.bias[index] = 0.0, 0.7
    plan = Plan.from_removed(gone, graph.widths)
    small, plainly = shrink(fold_constants(model, graph, plan), graph, plan), shrink(model, graph, plan)
    with torch.no_grad():
        wanted, images = model(IMAGES.double()), IMAGES.double()
        assert (plainly.eval()(images) - wanted).abs().max() > 0.01
        at_the_end = Plan.from_removed({"bn.select": gone["bn.select"]}, graph.widths)
        exact = shrink(fold_constants(model, graph, at_the_end), graph, at_the_end)
        torch.testing.assert_close(exact.eval()(images), wanted, rtol=1e-12, atol=1e-12)
        assert (small.eval()(images) - wanted).abs().max() < (plainly(images) - wanted).abs().max()


def test_what_does_not_fit_is_refused(tmp_path):
    model, graph = selecting(pre_activation, torch.float32)
    with pytest.raises(SurgeryError, match="puts a channel selection behind the batch norm"):
        shrink(ready(dense, torch.float32), graph, Plan())
    small = shrink(model, graph, half(graph, ["bn.select"]))
    with pytest.raises(SurgeryError, match="is cut already"):
        rebuild(small, record_of(small))
    broken = ready(pre_activation, torch.float32)
    broken.bn = nn.Identity()
    with pytest.raises(SurgeryError, match="'bn'; in this model that is Identity"):
        rebuild(broken, record_of(small))
    save(small, tmp_path)
    text = (tmp_path / "secateur.json").read_text()
    (tmp_path / "secateur.json").write_text(text.replace('"selections": ["bn"]', '"selections": ["fc"]'))
    with pytest.raises(StoreError, match="a channel selection stands at 'fc'"):
        load(tmp_path, pre_activation)


def test_what_cannot_be_narrowed_is_found_with_selections_too():
    model, graph = selecting(pre_activation)
    assert feasible(model, graph).widths == graph.widths
    assert with_selections(model, graph) is graph


def batches(count=3):
    generator = torch.Generator().manual_seed(4)
    return [
        (torch.randn(4, 3, 16, 16, generator=generator), torch.randint(10, (4,), generator=generator))
        for _ in range(count)
    ]


RECIPE = Recipe(epochs=1, lr=0.01)


def test_network_slimming_selects_by_the_factors_of_the_norms_of_a_stream(make):
    model = ready(make, torch.float32)
    data, task = batches(), ClassificationTask()
    method = NetworkSlimming(recipe=RECIPE)
    result = prune(model, IMAGES, method=method, budget=Budget(0.4, "macs"), data=data, task=task, repair=())
    assert result.verification.is_exact
    assert result.removed >= 0.4
    assert selections(result.model)
    plan, scores = result.plan, result.decision.scores
    for name, path in result.graph.selecting.items():
        assert len(scores[name]) == model.get_submodule(path).num_features
        if plan.removed(name):
            assert scores[name][list(plan.removed(name))].max() <= scores[name][list(plan.kept[name])].min()
    before = trace(model, IMAGES)
    assert with_selections(model, before).costs(plan).macs == result.after.macs


def test_scores_are_the_sizes_of_the_factors_also_behind_a_selection():
    model, graph = selecting(pre_activation, torch.float32)
    small = shrink(model, graph, half(graph, list(graph.selecting)))
    for own in (model, small):
        given = NetworkSlimming().prepare(Problem(own, trace(own, IMAGES), Budget(0.2), args=(IMAGES,)))
        attached = NetworkSlimming().attach(given)
        scores = attached.scales.magnitudes(own)
        for name, path in given.graph.selecting.items():
            norm = own.get_submodule(path)
            index = norm.select.index if hasattr(norm, "select") else torch.arange(norm.num_features)
            assert torch.equal(scores[name], norm.weight.detach().double().abs()[index])
        total = sum(len(own) for own in scores.values())
        assert total == given.graph.channel_count, "every channel that may go is penalised"


def test_whole_streams_are_coupled_or_left_alone_on_request():
    model = ready(pre_activation, torch.float32)
    problem = Problem(model, trace(model, IMAGES), Budget(0.2), args=(IMAGES,))
    assert NetworkSlimming(select=False).prepare(problem) is problem
    coupled = NetworkSlimming(residual="prune")
    assert coupled.prepare(problem) is problem
    assert "blocks.0.conv3" in coupled.attach(problem).scales.places
    assert "blocks.0.conv3" not in NetworkSlimming(select=False).attach(problem).scales.places


def test_several_passes_cut_selections_again():
    model = ready(dense, torch.float32)
    result = prune_iteratively(
        model,
        IMAGES,
        method=NetworkSlimming(recipe=RECIPE, penalty=1e-3),
        budget=Budget(0.4, "macs"),
        steps=2,
        data=batches(),
        task=ClassificationTask(),
        recipe=RECIPE,
        progress=False,
    )
    assert result.removed >= 0.4
    assert result.verification.is_exact
    graph = with_selections(model, trace(model, IMAGES))
    assert graph.costs(result.plan).macs == result.after.macs
    again = shrink(model, graph, result.plan)
    assert {n: t.shape for n, t in again.state_dict().items()} == {
        n: t.shape for n, t in result.model.state_dict().items()
    }


@pytest.mark.slow
def test_counts_are_those_of_the_authors():
    """Of ResNet-164 their selections hold 8,080 numbers, the 16 of the stem among them, of 12,112 channels in all."""
    for make, chosen, stem, every in ((preresnet164, 8080, 16, 12112), (densenet40, 9360, 0, 9360)):
        model = make()
        graph = with_selections(model, trace(model, torch.zeros(1, 3, 32, 32)))
        widths = [graph.widths[name] for name in graph.selecting]
        assert (sum(widths) + stem, graph.channel_count) == (chosen, every)
