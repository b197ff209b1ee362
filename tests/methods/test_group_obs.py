"""Closed forms against the dense algebra they stand for."""

from __future__ import annotations

import time

import pytest
import torch

from secateur.errors import MethodError
from secateur.methods._group_obs import (
    block_scores,
    channel_obs_scores,
    channel_obs_update,
    filter_obs_scores,
    filter_obs_update,
    inverse_of_lower,
    predicted_change,
    removal_step,
    schur_blocks,
)

OUT, CHANNELS, TAPS = 4, 5, 3
SIZE = CHANNELS * TAPS + 1  # and the constant 1 of the bias


def moment(size, seed):
    rows = torch.randn(3 * size, size, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return rows.T @ rows / len(rows)


@pytest.fixture
def layer():
    weight = torch.randn(OUT, SIZE, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    return weight, moment(SIZE, 1), moment(OUT, 2)


def columns():
    return torch.arange(CHANNELS * TAPS).view(CHANNELS, TAPS)


def dense_cost(weight, hessian, removed):
    """Optimal Brain Surgeon on the flattened weight, from the inverse of the whole Hessian."""
    inverse = torch.linalg.inv(hessian)
    block = torch.linalg.inv(inverse[removed][:, removed])
    flat = weight.flatten()
    step = -inverse[:, removed] @ block @ flat[removed]
    return float(flat[removed] @ block @ flat[removed] / 2), step.view_as(weight)


def test_a_quadratic_loss_changes_by_what_is_predicted():
    hessian, weight = moment(6, 3), torch.randn(6, dtype=torch.float64)
    at = torch.randn(6, dtype=torch.float64)  # the minimum lies elsewhere, so the gradient is not 0
    loss = lambda w: (w - at) @ hessian @ (w - at) / 2  # noqa: E731
    gradient, removed = hessian @ (weight - at), torch.tensor([1, 4])
    step = removal_step(weight, hessian, removed)
    true = loss(weight + step) - loss(weight)
    torch.testing.assert_close(predicted_change(step, gradient, hessian), true, atol=1e-10, rtol=0)
    alone = torch.zeros_like(weight)
    alone[removed] = -weight[removed]
    true = loss(weight + alone) - loss(weight)
    torch.testing.assert_close(predicted_change(alone, gradient, hessian), true, atol=1e-10, rtol=0)


def test_from_its_minimum_a_quadratic_loss_ends_at_the_minimum_without_the_removed_weights():
    hessian, weight, removed = moment(6, 3), torch.randn(6, dtype=torch.float64), torch.tensor([1, 4])
    step = removal_step(weight, hessian, removed)
    kept = torch.tensor([0, 2, 3, 5])
    best = torch.linalg.solve(hessian[kept][:, kept], (hessian @ weight)[kept])
    torch.testing.assert_close((weight + step)[kept], best)
    torch.testing.assert_close(step[removed], -weight[removed])


def test_one_removed_weight_is_optimal_brain_surgeon():
    hessian, weight = moment(4, 5), torch.randn(4, dtype=torch.float64)
    inverse = torch.linalg.inv(hessian)
    for q in range(4):
        step = removal_step(weight, hessian, torch.tensor([q]))
        cost = predicted_change(step, torch.zeros_like(weight), hessian)
        torch.testing.assert_close(cost, weight[q] ** 2 / (2 * inverse[q, q]))


def test_filters_cost_and_move_as_in_dense_group_obs(layer):
    weight, inputs, gradients = layer
    scores = filter_obs_scores(weight, inputs, gradients)
    places = torch.arange(weight.numel()).view_as(weight)
    for j in range(OUT):
        cost, step = dense_cost(weight, torch.kron(gradients, inputs), places[j])
        assert float(scores[j]) == pytest.approx(cost, rel=1e-9)
        torch.testing.assert_close(filter_obs_update(weight, gradients, torch.tensor([j])), weight + step)


def test_channels_cost_and_move_as_in_dense_group_obs(layer):
    weight, inputs, gradients = layer
    scores = channel_obs_scores(weight, inputs, gradients, columns=columns())
    places = torch.arange(weight.numel()).view_as(weight)
    for c in range(CHANNELS):
        cost, step = dense_cost(weight, torch.kron(gradients, inputs), places[:, columns()[c]].flatten())
        assert float(scores[c]) == pytest.approx(cost, rel=1e-9)
        torch.testing.assert_close(channel_obs_update(weight, inputs, columns()[c]), weight + step)


def test_several_at_once_move_as_in_dense_group_obs(layer):
    weight, inputs, gradients = layer
    hessian, places = torch.kron(gradients, inputs), torch.arange(weight.numel()).view_as(weight)
    _, step = dense_cost(weight, hessian, places[[0, 2]].flatten())
    torch.testing.assert_close(filter_obs_update(weight, gradients, torch.tensor([0, 2])), weight + step)
    gone = columns()[[1, 3]].flatten()
    _, step = dense_cost(weight, hessian, places[:, gone].flatten())
    torch.testing.assert_close(channel_obs_update(weight, inputs, gone), weight + step)


def test_with_equal_outputs_a_channel_costs_half_the_error_of_a_least_squares_refit():
    rows = torch.randn(200, SIZE, dtype=torch.float64)
    weight = torch.randn(OUT, SIZE, dtype=torch.float64)
    inputs = rows.T @ rows / len(rows)
    scores = channel_obs_scores(weight, inputs, torch.eye(OUT, dtype=torch.float64), columns=columns())
    for c in range(CHANNELS):
        kept = [k for k in range(SIZE) if k not in columns()[c]]
        refit = torch.linalg.lstsq(rows[:, kept], rows @ weight.T).solution
        error = (rows @ weight.T - rows[:, kept] @ refit).square().sum() / len(rows)
        assert float(scores[c]) == pytest.approx(float(error) / 2, rel=1e-9)


def test_the_slope_adds_the_first_order_change_of_the_damped_step(layer):
    weight, inputs, _ = layer
    slopes = torch.randn(OUT, SIZE, dtype=torch.float64)
    damping = 0.1
    damped = inputs + damping * inputs.diagonal().mean() * torch.eye(SIZE, dtype=torch.float64)
    weighed, index = slopes @ torch.linalg.inv(damped), columns()
    blocks = weight[:, index].movedim(0, 1)
    slope = blocks.mT @ weighed[:, index].movedim(0, 1)
    plain = block_scores(inputs, torch.zeros_like(slope), index, damping=damping)
    got = block_scores(inputs, torch.zeros_like(slope), index, damping=damping, slope=slope) - plain
    for c in range(CHANNELS):
        step = channel_obs_update(weight, inputs, index[c], damping=damping) - weight
        assert float(got[c]) == pytest.approx(float((slopes * step).sum()), rel=1e-9)


def test_a_channel_that_is_always_zero_costs_nothing_whatever_the_damping(layer):
    weight, inputs, gradients = layer
    dead = columns()[2]
    inputs[dead], inputs[:, dead] = 0.0, 0.0
    scores = channel_obs_scores(weight, inputs, gradients, columns=columns(), damping=0.5)
    assert float(scores[2]) == pytest.approx(0.0, abs=1e-12)
    assert scores[[0, 1, 3, 4]].min() > 1e-3


def test_damping_keeps_survivors_where_they_were():
    weight, inputs = torch.tensor([[1.0, 2.0]]), torch.tensor([[2.0, 1.0], [1.0, 2.0]])
    assert channel_obs_update(weight, inputs, torch.tensor([0]), damping=1e6)[0].tolist() == pytest.approx([0, 2.0])


def test_too_few_samples_are_told():
    row = torch.ones(1, 4, dtype=torch.float64)
    with pytest.raises(MethodError, match="damping"):
        schur_blocks(row.T @ row, torch.arange(4)[:, None])


def test_a_triangle_is_inverted_by_halves():
    lower = torch.randn(2500, 2500, dtype=torch.float64).tril() / 50 + 2 * torch.eye(2500, dtype=torch.float64)
    assert (inverse_of_lower(lower) @ lower - torch.eye(2500)).abs().max() < 1e-10


@pytest.mark.slow
def test_a_wide_layer_takes_seconds():
    """512 x 512 x 3 x 3: under 5 s on two cores at rest; here processor time, and twice that, for a busy machine."""
    rows = torch.randn(6000, 4608, dtype=torch.float64)
    inputs, gradients, weight = rows.T @ rows / 6000, moment(512, 1), torch.randn(512, 4608, dtype=torch.float64)
    start = time.process_time()
    channel_obs_scores(weight, inputs, gradients, columns=torch.arange(4608).view(512, 9), damping=0.01)
    assert time.process_time() - start < 20
