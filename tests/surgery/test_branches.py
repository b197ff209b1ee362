"""Residual branches taken out: the same function as with them at zero, at no cost, and the same bits once loaded."""

from __future__ import annotations

import random

import pytest
import torch
from hypothesis import given, note, settings
from hypothesis import strategies as st
from torch import nn

from secateur import Plan, load, save, shrink, trace, verify
from secateur.errors import PlanError, StoreError, SurgeryError
from secateur.measure.macs import measured_macs
from secateur.measure.params import parameter_count, size_bytes
from secateur.surgery.branches import NoBranch
from secateur.surgery.mask import mask

from .. import residual_models as models
from ..contract import snapshot
from ..networks import QUICK, build, networks, token_networks
from ..test_properties import COMPUTES_WITH_A_WIDTH, kinds, random_plan


def without(graph, *names, step: int = 0) -> Plan:
    """Take branches out (all if none is named), and one channel of every group if `step`."""
    gone = {name: range(0, width, step) for name, width in graph.widths.items()} if step else {}
    return Plan.from_removed(gone, graph.widths, names or graph.branches)


def check_costs(graph, plan, small, example):
    costs = graph.costs(plan)
    assert (costs.params, costs.bytes) == (parameter_count(small), size_bytes(small))
    assert costs.macs == measured_macs(small, example)


@pytest.mark.parametrize("build", models.EVERY)
@pytest.mark.parametrize("step", [0, 2])
def test_without_branches_a_model_computes_what_it_does_with_them_at_zero(build, step):
    model, example = models.made(build)
    before = snapshot.of_model(model)
    graph = trace(model, example)
    for names in ([next(iter(graph.branches))], list(graph.branches)):
        plan = without(graph, *names, step=step)
        small = shrink(model, graph, plan)
        found = verify(model, small, plan, example)
        assert found.is_exact, found
        check_costs(graph, plan, small, example)
    assert snapshot.differences(before, snapshot.of_model(model)) == []


@pytest.mark.parametrize("build", models.EVERY)
def test_a_dead_branch_leaves_without_a_trace(build):
    model, example = models.made(build)
    graph = trace(model, example)
    plan = without(graph)
    dead = mask(model, graph, plan)
    with torch.no_grad():  # where torch would take its fused kernels
        assert torch.equal(shrink(model, graph, plan)(example), shrink(dead, graph, plan)(example))
        torch.testing.assert_close(shrink(model, graph, plan)(example), dead(example), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("build", models.EVERY)
def test_other_batches_and_sizes_run_too_and_so_does_training(build):
    model, example = models.made(build)
    graph = trace(model, example)
    plan = without(graph)
    small, dead = shrink(model, graph, plan), mask(model, graph, plan)
    larger = torch.randn(3, 3, 10, 12) if isinstance(model, models.Images) else torch.randn(3, 9, 5)
    torch.testing.assert_close(small(larger), dead(larger), atol=1e-5, rtol=1e-4)
    small.train()(larger).sum().backward()
    assert all(p.grad is not None for p in small.head.parameters())


@pytest.mark.parametrize("build", models.EVERY)
def test_what_is_saved_loads_to_the_same_bits_also_after_a_second_cut(build, tmp_path):
    model, example = models.made(build)
    graph = trace(model, example)
    once = shrink(model, graph, without(graph, next(iter(graph.branches)), step=3))
    again = trace(once, example)
    plan = without(again, list(again.branches)[-1], step=2)
    twice = shrink(once, again, plan)
    assert verify(once, twice, plan, example).is_exact
    check_costs(again, plan, twice, example)
    for small in (once, twice):
        save(small, tmp_path)
        loaded = load(tmp_path, build)
        assert torch.equal(loaded(example), small(example))
        assert [type(m) for m in loaded.modules()] == [type(m) for m in small.modules()]


def test_the_projection_of_a_stage_stays_and_is_no_branch_afterwards():
    model, example = models.made(models.post_activation)
    graph = trace(model, example)
    small = shrink(model, graph, without(graph))
    assert isinstance(small.blocks[1].project, nn.Conv2d)
    assert isinstance(small.blocks[1].bn2, NoBranch)
    assert trace(small, example).branches == {}


def test_what_stands_for_a_branch_holds_no_numbers_and_multiplies_none():
    model, example = models.made(models.norm_last)
    graph = trace(model, example)
    small = shrink(model, graph, without(graph))
    assert not any(list(m.parameters()) + list(m.buffers()) for m in small.modules() if isinstance(m, NoBranch))
    assert graph.costs(without(graph)).macs == sum(  # the embedding on each token, and the head on their mean
        rows * layer.in_features * layer.out_features for rows, layer in ((12, small.embed), (2, small.head))
    )


def test_plans_with_branches_name_what_they_lack():
    model, example = models.made(models.post_activation)
    graph = trace(model, example)
    with pytest.raises(PlanError, match=r"residual branch 'block\.0'.*nearest: blocks\.0"):
        shrink(model, graph, Plan(removed_branches=("block.0",)))


def test_a_branch_with_an_obstacle_is_refused_with_the_reason():
    class Gate(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 3, 1)

        def forward(self, x):
            return x + torch.sigmoid(self.conv(x))

    graph = trace(Gate(), torch.zeros(1, 3, 4, 4))
    with pytest.raises(PlanError, match=r"'conv' cannot be removed: sigmoid in the model follows"):
        shrink(Gate(), graph, Plan(removed_branches=("conv",)))


def test_code_that_counts_on_the_width_inside_a_branch_is_an_error_that_names_the_branch():
    class Fixed(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.two = nn.Linear(4, 6), nn.Linear(6, 4)

        def forward(self, x):
            return x + self.two(self.one(x).view(len(x), 6))

    graph = trace(Fixed(), torch.zeros(2, 4))
    (name,) = graph.branches
    with pytest.raises(SurgeryError, match="without the residual branches"):
        shrink(Fixed(), graph, Plan(removed_branches=(name,)))


def test_a_tied_weight_of_a_branch_stays_where_it_is_still_used(tmp_path):
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.branch, self.head = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4)), nn.Linear(4, 4)
            self.head.weight = self.branch[0].weight

        def forward(self, x):
            return self.head(x + self.branch(x))

    model, example = Tied(), torch.randn(2, 4)
    graph = trace(model, example)
    plan = Plan(removed_branches=("branch",))
    small = shrink(model, graph, plan)
    assert verify(model, small, plan, example).is_exact
    check_costs(graph, plan, small, example)
    save(small, tmp_path)
    assert torch.equal(load(tmp_path, Tied)(example), small(example))


def test_a_saved_model_without_a_branch_is_refused_by_another_class_of_blocks(tmp_path):
    model, example = models.made(models.post_activation)
    graph = trace(model, example)
    save(shrink(model, graph, without(graph)), tmp_path)
    with pytest.raises(StoreError, match=r"blocks\.1\.project"):
        load(tmp_path, models.resnext)


@settings(QUICK, max_examples=12)
@given(st.one_of(networks(max_blocks=4), token_networks(max_blocks=3)))
def test_random_networks_lose_their_branches_exactly(spec):
    network = build(spec)
    graph = trace(network.model, network.args)
    free = [name for name, branch in graph.branches.items() if not branch.obstacle]
    if not free or kinds(spec) & COMPUTES_WITH_A_WIDTH:
        return
    draw = random.Random(spec.seed)
    channels = random_plan(graph, spec.seed) if spec.seed % 2 else Plan()
    plan = Plan(channels.kept, channels.widths, tuple(draw.sample(free, draw.randint(1, len(free)))))
    note(str(plan))
    small = shrink(network.model, graph, plan)
    assert verify(network.model, small, plan, network.args).is_exact
    costs = graph.costs(plan)
    assert (costs.params, costs.bytes) == (parameter_count(small), size_bytes(small))
