"""Streamed sums are the sums over everything at once, for every kind of product, and folded to channels exactly."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from secateur import trace
from secateur.errors import MethodError
from secateur.graph.products import products, readers
from secateur.recovery.moments import (
    ChannelMoments,
    ProductMoments,
    Sampling,
    channel_gram,
    channel_sums,
    channel_targets,
    column_channels,
    product_moments,
)
from secateur.train import ClassificationTask

ALL = Sampling(rows_per_sample=None, max_samples=None)


@pytest.fixture
def conv_net():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(2, 4, 3), nn.ReLU(), nn.Conv2d(4, 6, 3, stride=2, padding=1, groups=2)).double()
    return net, torch.randn(6, 2, 7, 7, dtype=torch.float64)


def test_streamed_moments_are_those_of_all_patches_at_once(conv_net):
    net, images = conv_net
    site = products(trace(net, images))[1].site
    batches = [(part, None) for part in images.split(4)]
    got = product_moments(net, [site], batches, ClassificationTask(), ALL)[site]
    hidden = net[1](net[0](images))
    patches = torch.nn.functional.unfold(hidden, 3, stride=2, padding=1)  # (images, channels * taps, positions)
    rows = patches.transpose(1, 2).reshape(-1, 2, 18).transpose(0, 1)  # (groups, rows, columns)
    outs = (net[2](hidden) - net[2].bias.view(-1, 1, 1)).flatten(2).transpose(1, 2).reshape(-1, 2, 3).transpose(0, 1)
    assert got.rows == rows.shape[1]
    torch.testing.assert_close(got.second, rows.transpose(1, 2) @ rows)
    torch.testing.assert_close(got.cross, rows.transpose(1, 2) @ outs)
    torch.testing.assert_close(got.inputs, rows.sum(1))
    torch.testing.assert_close(got.target_square, outs.square().sum(1))


def test_targets_come_from_the_other_network_at_the_same_places(conv_net):
    net, images = conv_net
    import copy

    other = copy.deepcopy(net)
    with torch.no_grad():
        other[2].weight.mul_(3)
    site = products(trace(net, images))[1].site
    few = Sampling(rows_per_sample=2, seed=5)
    own = product_moments(net, [site], [(images, None)], ClassificationTask(), few)[site]
    theirs = product_moments(net, [site], [(images, None)], ClassificationTask(), few, target=other)[site]
    assert own.rows == 2 * len(images)
    torch.testing.assert_close(own.second, theirs.second)
    torch.testing.assert_close(3 * own.cross, theirs.cross)


def test_reading_stops_after_the_batch_that_fills_the_samples(conv_net):
    net, images = conv_net
    site = products(trace(net, images))[1].site
    few = Sampling(rows_per_sample=1, max_samples=3)
    batches = [(part, None) for part in images.split(2)]
    assert product_moments(net, [site], batches, ClassificationTask(), few)[site].rows == 4


def test_error_is_the_sum_of_squares_with_bias():
    torch.manual_seed(1)
    x, y = torch.randn(2, 9, 3, dtype=torch.float64), torch.randn(2, 9, 4, dtype=torch.float64)
    kernel, bias = torch.randn(2, 4, 3, dtype=torch.float64), torch.randn(2, 4, dtype=torch.float64)
    moments = ProductMoments()
    moments.add(x[:, :5], y[:, :5])
    moments.add(x[:, 5:], y[:, 5:])
    wanted = (y - x @ kernel.transpose(1, 2) - bias[:, None]).square().sum()
    assert moments.error(kernel, bias) == pytest.approx(wanted.item())


@pytest.mark.parametrize("block", [2, 5, 1024])
def test_the_gram_of_channels_is_that_of_their_summed_contributions(block):
    torch.manual_seed(2)
    inputs, kernel = torch.randn(2, 11, 6, dtype=torch.float64), torch.randn(2, 4, 6, dtype=torch.float64)
    channel = torch.tensor([[0, 0, 2, -1, 1, 1], [0, 2, 2, 1, -1, -1]])  # split over blocks, shared by both groups
    parts = []
    for x, w, own in zip(inputs, kernel, channel, strict=True):
        parts.append(torch.stack([(x[:, own == c] @ w[:, own == c].T).flatten() for c in range(3)], dim=1))
    contributions = torch.cat(parts)
    torch.testing.assert_close(channel_gram(inputs, kernel, channel, 3, block=block), contributions.T @ contributions)


@pytest.mark.parametrize("block", [2, 1024])
def test_targets_of_channels_are_met_by_their_summed_contributions(block):
    torch.manual_seed(3)
    inputs, kernel = torch.randn(2, 11, 6, dtype=torch.float64), torch.randn(2, 4, 6)  # float32, as most weights
    targets = torch.randn(2, 11, 4, dtype=torch.float64)
    channel = torch.tensor([[0, 0, 2, -1, 1, 1], [0, 2, 2, 1, -1, -1]])
    wanted = [
        sum(
            (((x[:, own == c] @ w[:, own == c].double().T) * y).sum() for x, y, w, own in
             zip(inputs, targets, kernel, channel, strict=True)),
            start=torch.zeros((), dtype=torch.float64),
        )
        for c in range(3)
    ]  # fmt: skip
    torch.testing.assert_close(channel_targets(inputs, targets, kernel, channel, 3, block=block), torch.stack(wanted))


def test_columns_of_no_channel_are_left_out_of_sums():
    values = torch.tensor([[1.0, 2.0, 4.0, 8.0]])
    assert channel_sums(values, torch.tensor([1, -1, 0, 1]), 2).tolist() == [[4.0, 9.0]]


def test_every_tap_of_a_channel_is_its_column(conv_net):
    net, images = conv_net
    graph = trace(net, images)
    group = graph.groups["0"]
    assert column_channels(readers(graph, group)[0], graph, group)[0].tolist() == [0] * 9 + [1] * 9


def test_readers_weigh_by_the_energy_of_their_targets():
    moments = ChannelMoments(torch.eye(2), torch.ones(2), 4.0, 1).relative()
    assert moments.gram.tolist() == [[0.25, 0.0], [0.0, 0.25]]
    assert moments.target_square == 1.0


def test_nan_activations_name_the_layer(conv_net):
    net, images = conv_net
    site = products(trace(net, images))[1].site
    images[0, 0, 0, 0] = torch.nan
    with pytest.raises(MethodError, match=r"inputs or outputs of '2' hold NaN"):
        product_moments(net, [site], [(images, None)], ClassificationTask(), ALL)


@pytest.mark.parametrize("field", ["rows_per_sample", "max_samples"])
def test_a_sampling_of_nothing_is_refused(field):
    with pytest.raises(MethodError, match=f"{field}=0"):
        Sampling(**{field: 0})
