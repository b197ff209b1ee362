"""The generator of random networks keeps its own promises, so that others can be held against it."""

import copy

import pytest
import torch
from hypothesis import given
from torch import nn

from .networks import (
    ALL_KINDS,
    IMAGE_HEADS,
    QUICK,
    SEQUENCE_KINDS,
    THOROUGH,
    TOKEN_HEADS,
    Block,
    NetworkSpec,
    build,
    networks,
    token_networks,
)


@torch.no_grad()
def run(network):
    return network.model(*network.args)


def check(spec):
    network = build(spec)
    output = run(network)
    assert output.isfinite().all()
    assert output.abs().max() < 1e6
    assert output.std() > 1e-6
    assert all(p.dtype == torch.float64 for p in network.model.parameters())
    assert not any(module.training for module in network.model.modules())
    return output


def test_there_are_many_kinds():
    assert len(ALL_KINDS) >= 60
    assert len(SEQUENCE_KINDS) >= 20


@pytest.mark.parametrize("kind", ALL_KINDS)
@pytest.mark.parametrize("width", [2, 3, 7, 12])
def test_every_kind_depends_on_its_input_wherever_it_stands(kind, width):
    blocks = (
        Block("conv_bn_relu", 5),
        Block(kind, width),
        Block(kind, width, join="concat"),
        Block(kind, width, "add", 1),
    )
    specs = [NetworkSpec(blocks)]
    if kind in SEQUENCE_KINDS:
        specs.append(NetworkSpec(blocks[1:], channels=4, length=5))
    for spec in specs:
        first, second = check(spec)
        assert (first - second).abs().max() > 1e-6


@pytest.mark.parametrize("kind", ALL_KINDS)
def test_every_parameter_of_every_kind_matters(kind):
    network = build(NetworkSpec((Block("conv_with_bias", 5), Block(kind, 6), Block("layer_norm_over_channels", 4))))
    network.model(*network.args).pow(2).sum().backward()
    unused = [name for name, p in network.model.named_parameters() if p.grad is None or not p.grad.any()]
    assert not unused


@pytest.mark.parametrize("head", IMAGE_HEADS)
def test_every_head_over_images_works(head):
    check(NetworkSpec((Block("conv_bn_relu", 5),), head=head))


@pytest.mark.parametrize("head", TOKEN_HEADS)
def test_every_head_over_tokens_works(head):
    check(NetworkSpec((Block("mlp", 5),), head=head, length=6))


@QUICK
@given(networks())
def test_networks_over_images_run_and_are_bounded(spec):
    check(spec)


@QUICK
@given(token_networks())
def test_networks_over_tokens_run_and_are_bounded(spec):
    check(spec)


@pytest.mark.slow
@THOROUGH
@given(networks())
def test_very_many_networks_over_images_run_and_are_bounded(spec):
    check(spec)


@pytest.mark.slow
@THOROUGH
@given(token_networks())
def test_very_many_networks_over_tokens_run_and_are_bounded(spec):
    check(spec)


@QUICK
@given(networks(max_blocks=4))
def test_a_specification_determines_its_network_and_prints_as_itself(spec):
    random = torch.get_rng_state()
    first, second = build(spec), build(eval(repr(spec)))
    assert torch.equal(random, torch.get_rng_state())
    assert torch.equal(first.args[0], second.args[0])
    assert torch.equal(run(first), run(second))
    copied = first.model.__class__.__call__(copy.deepcopy(first.model), *first.args).detach()
    torch.testing.assert_close(run(first), copied, rtol=1e-12, atol=1e-12)  # products round by where memory lies


def test_another_seed_gives_other_weights_and_another_input():
    first, second = (build(NetworkSpec((Block("conv_bn_relu", 4),), seed=seed)) for seed in (0, 1))
    assert not torch.equal(first.args[0], second.args[0])
    assert not torch.equal(first.model.head[2].weight, second.model.head[2].weight)


def test_batch_norm_statistics_are_all_different():
    model = build(NetworkSpec((Block("conv_bn_relu", 8),))).model
    (norm,) = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    for tensor in (norm.running_mean, norm.running_var, norm.weight, norm.bias):
        assert tensor.unique().numel() == 8


def test_joins_reach_back_to_the_input():
    spec = NetworkSpec((Block("conv_bn_relu", 4), Block("conv_bn_relu", 4, join="concat", other=0)), channels=3)
    second = build(spec).model.body.blocks[1][0]
    assert second.in_channels == 4 + 3
