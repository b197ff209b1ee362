"""The channel sampler of LASSO channel pruning: streams stay whole, and what reads part of one is re-fitted."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from secateur import Budget, ChannelSelect, load, prune, prune_iteratively, save, trace, with_selections
from secateur.methods import LassoChannels, Problem
from secateur.methods._scores import l1_norms
from secateur.train import ClassificationTask, Recipe

from .. import residual_models as models
from ..contract.cases import CASES

TASK, DOUBLE = ClassificationTask(), torch.float64
SAMPLED = LassoChannels(sampler=True)
NETWORKS = {
    **{build.__name__: lambda build=build: models.made(build) for build in models.EVERY},
    **{name: lambda name=name: (CASES[name].model(), CASES[name].images()) for name in ("residual", "attention")},
}


def batches(x, count=4):
    generator = torch.Generator().manual_seed(1)
    return [(torch.randn(x.shape, generator=generator).to(x.dtype), torch.tensor([0, 1])) for _ in range(count)]


def sampled(model):
    return [path for path, module in model.named_modules() if isinstance(module, ChannelSelect)]


@pytest.fixture(params=NETWORKS)
def network(request):
    return NETWORKS[request.param]()


def test_what_it_prunes_is_exact_meets_the_budget_and_leaves_streams_whole(network, tmp_path):
    model, x = network
    before = copy.deepcopy(model.state_dict())
    result = prune(model, x, method=SAMPLED, budget=Budget(0.4, "channels"), data=batches(x), task=TASK)
    assert result.verification.is_exact
    assert result.removed == pytest.approx(0.4, abs=1 / result.graph.channel_count)
    assert sampled(result.model) == [f"{path}.select" for path in result.graph.selections]
    streams = [group for group in trace(model, x).groups.values() if group.is_residual]
    for member in (m for group in streams for m in group.members if m.role == "out"):
        assert result.model.state_dict()[member.tensor].shape[0] == model.state_dict()[member.tensor].shape[0]
    assert all(torch.equal(t, before[n]) for n, t in model.state_dict().items())
    save(result.model, tmp_path)
    with torch.no_grad():
        assert torch.equal(load(tmp_path, model)(x), result.model(x))


@pytest.mark.parametrize("of", ["macs", "params", "bytes"])
def test_every_kind_of_budget_counts_what_the_samplers_save(of):
    model, x = models.made(models.post_activation)
    result = prune(model, x[:1], method=SAMPLED, budget=Budget(0.5, of), data=batches(x), task=TASK)
    assert result.removed >= 0.5
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        result.model.eval()(x[:1])
    assert result.after.macs == counter.get_total_flops() // 2
    assert result.after.params == sum(p.numel() for p in result.model.parameters())


def test_without_it_or_with_streams_that_are_cut_there_is_none():
    model, x = models.made(models.post_activation)
    problem = Problem(model, trace(model, x), Budget(0.3), args=(x,))
    assert LassoChannels().prepare(problem) is problem
    assert LassoChannels(sampler=True, residual="prune").prepare(problem) is problem
    once = SAMPLED.prepare(problem)
    assert once.graph.selections
    assert SAMPLED.prepare(once).graph is once.graph


class Twins(nn.Module):
    """A stream whose second half is a copy of its first, in front of a block and behind it."""

    def __init__(self, *, is_norm_first: bool):
        super().__init__()
        self.stem, self.head = nn.Conv2d(2, 8, 1), nn.Conv2d(8, 3, 1)
        self.norm = nn.BatchNorm2d(8) if is_norm_first else nn.Identity()
        self.conv1, self.conv2 = nn.Conv2d(8, 6, 3, padding=1), nn.Conv2d(6, 8, 1)

    def forward(self, x):
        x = self.stem(x).relu()
        return self.head(x + self.conv2(self.conv1(self.norm(x)).relu()))


@pytest.mark.parametrize("is_norm_first", [True, False])
def test_twins_in_a_stream_are_refitted_without_loss(is_norm_first):
    torch.manual_seed(0)
    model = Twins(is_norm_first=is_norm_first).double().eval()
    with torch.no_grad():
        for tensor in (model.stem.weight, model.stem.bias):
            tensor[4:] = tensor[:4]
        model.conv1.weight[:, 4:] = model.conv1.weight[:, :4]  # read alike: what they add is equal
    x = torch.randn(16, 2, 8, 8, dtype=DOUBLE)
    method = LassoChannels(sampler=True, ridge=1e-10, rows_per_sample=None, allocation={"conv1.select": 1.0})
    channels = 4 / with_selections(model, trace(model, x), before_layers=True).channel_count
    result = prune(model, x, method=method, budget=Budget(channels), data=[(x, None)], task=TASK, repair=())
    kept = result.plan.kept["conv1.select"]
    assert {k % 4 for k in kept} == {0, 1, 2, 3}
    assert result.model.conv1.select.index.tolist() == list(kept)
    assert (result.model.conv1.in_channels, result.model.conv1.out_channels, result.model.stem.out_channels) == (
        4,
        6,
        8,
    )
    torch.testing.assert_close(result.model(x), model(x), rtol=1e-5, atol=1e-6)


def test_the_refit_makes_up_for_what_is_not_sampled():
    torch.manual_seed(0)
    model = Twins(is_norm_first=False).double().eval()
    with torch.no_grad():
        model.stem.weight[4:] = model.stem.weight[:4] + 0.1 * torch.randn(4, 2, 1, 1, dtype=DOUBLE)
        model.stem.bias[4:] = model.stem.bias[:4]
    x = torch.randn(16, 2, 8, 8, dtype=DOUBLE)
    gaps = {}
    for ridge in (1e-8, 1e8):  # the latter leaves the weights as they were
        method = LassoChannels(sampler=True, ridge=ridge, rows_per_sample=None, allocation={"conv1.select": 1.0})
        result = prune(model, x, method=method, budget=Budget(0.25), data=[(x, None)], task=TASK, repair=())
        gaps[ridge] = (result.model(x) - model(x)).square().mean().item()
    assert gaps[1e-8] < gaps[1e8] / 3


def test_sensitivity_goes_by_what_is_read():
    model, x = models.made(models.post_activation)
    method = LassoChannels(sampler=True, allocation="sensitivity")
    with torch.no_grad():
        model.blocks[0].conv1.weight[:, [0, 3]] = 0
    problem = SAMPLED.prepare(Problem(model, trace(model, x), Budget(0.3), args=(x,)))
    norms = l1_norms(problem, "blocks.0.conv1.select")
    torch.testing.assert_close(norms, model.blocks[0].conv1.weight.double().abs().sum((0, 2, 3)))
    result = prune(model, x, method=method, budget=Budget(0.3), data=batches(x), task=TASK)
    assert result.verification.is_exact
    assert {0, 3} <= set(result.plan.removed("blocks.0.conv1.select"))


def test_it_prunes_in_several_steps():
    model, x = models.made(models.post_activation)
    result = prune_iteratively(
        model,
        x,
        method=SAMPLED,
        budget=Budget(0.4, "macs"),
        steps=2,
        data=batches(x),
        task=TASK,
        recipe=Recipe(epochs=1, lr=0.01),
        progress=False,
    )
    assert result.removed >= 0.4
    assert result.verification.is_exact
    assert result.graph.selections
    graph = with_selections(model, trace(model, x), before_layers=True)
    assert graph.costs(result.plan).macs == result.after.macs
    assert any(result.plan.removed(name) for name in graph.selecting)


def test_samplers_can_be_protected():
    model, x = models.made(models.post_activation)
    result = prune(model, x, method=SAMPLED, budget=Budget(0.2), protect=["blocks.0.conv1"], data=batches(x), task=TASK)
    assert sampled(result.model) == ["blocks.1.conv1.select"]
