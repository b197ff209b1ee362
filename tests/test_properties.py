"""Random networks, random plans: what the graph and surgery promise holds for every one of them."""

from __future__ import annotations

import random

import pytest
import torch
from hypothesis import given, note
from hypothesis import strategies as st

from secateur import ChannelGraph, Plan, shrink, trace, verify
from secateur.measure.macs import measured_macs
from secateur.measure.params import parameter_count, size_bytes
from secateur.surgery.feasible import feasible

from .contract import snapshot
from .contract.symmetry import permuted
from .networks import QUICK, THOROUGH, Network, NetworkSpec, build, networks, token_networks

# Kinds whose code computes with a width (`relation / out_features`): narrower, it is another function, and says so.
COMPUTES_WITH_A_WIDTH = {"bilinear_gate"}
# einsum multiplies element by element along an axis of size 1, and such products are not counted.
MULTIPLIES_AT_WIDTH_ONE = {"einsum_mixing", "attention_einsum"}

any_network = st.one_of(networks(max_blocks=5), networks(max_blocks=3), token_networks(max_blocks=4))


def random_plan(graph: ChannelGraph, seed: int) -> Plan:
    """Remove anything from none to all but one channel of each group."""
    draw = random.Random(seed)
    removed = {n: draw.sample(range(w), draw.choice([0, draw.randint(1, w - 1)])) for n, w in graph.widths.items()}
    return Plan.from_removed(removed, graph.widths)


def random_orders(graph: ChannelGraph, seed: int) -> dict[str, list[int]]:
    draw = random.Random(seed)
    return {name: draw.sample(range(width), width) for name, width in graph.widths.items()}


def kinds(spec: NetworkSpec) -> set[str]:
    return {block.kind for block in spec.blocks}


@torch.no_grad()
def outputs(network: Network, model: torch.nn.Module) -> torch.Tensor:
    return model(*network.args)


def check(spec: NetworkSpec) -> None:
    network = build(spec)
    before, shared = snapshot.of_model(network.model), snapshot.of_process()
    granularity = "heads" if spec.seed % 5 else "head_dims"
    conv_groups = "narrow" if spec.seed % 3 else "whole"
    graph = trace(network.model, network.args, granularity=granularity, conv_groups=conv_groups)
    assert not graph.unknown
    assert torch.equal(outputs(network, shrink(network.model, graph, Plan())), outputs(network, network.model))
    check_order_does_not_matter(network, graph)
    if kinds(spec) & COMPUTES_WITH_A_WIDTH or granularity == "head_dims":  # attention's scale often follows its width
        graph = feasible(network.model, graph)
    plan = random_plan(graph, spec.seed)
    note(str(plan))
    small = shrink(network.model, graph, plan)
    found = verify(network.model, small, plan, network.args, **graph.options)
    assert found.is_exact, found
    check_costs(network, graph, plan, small)
    assert snapshot.differences(before, snapshot.of_model(network.model)) == []
    assert snapshot.differences(shared, snapshot.of_process()) == []


def check_order_does_not_matter(network: Network, graph: ChannelGraph) -> None:
    """Interchangeable means: in any order, the same function."""
    wanted = outputs(network, network.model)
    got = outputs(network, permuted(network.model, graph, random_orders(graph, network.spec.seed)))
    assert (got - wanted).abs().max() <= 1e-9 * wanted.abs().max()


def check_costs(network: Network, graph: ChannelGraph, plan: Plan, small: torch.nn.Module) -> None:
    costs = graph.costs(plan)
    assert (costs.params, costs.bytes) == (parameter_count(small), size_bytes(small))
    is_one_wide = any(len(kept) == 1 for kept in plan.kept.values())
    if not (is_one_wide and kinds(network.spec) & MULTIPLIES_AT_WIDTH_ONE):
        assert costs.macs == measured_macs(small, network.args)


@QUICK
@given(any_network)
def test_random_networks_keep_every_promise(spec):
    check(spec)


@pytest.mark.slow
@THOROUGH
@given(any_network)
def test_very_many_random_networks_keep_every_promise(spec):
    check(spec)
