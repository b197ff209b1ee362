"""The LASSO path: optimal at every count, exact counts whatever the Gram matrix, and none of scikit-learn's traps."""

from __future__ import annotations

import importlib
from itertools import pairwise

import pytest
import torch

from secateur.errors import MethodError, MissingExtra
from secateur.methods._lasso import lasso_support

linear_model = pytest.importorskip("sklearn.linear_model")


def contributions(channels=12, rows=60, seed=0, mixing=1.0):
    generator = torch.Generator().manual_seed(seed)
    own = torch.randn(rows, channels, generator=generator, dtype=torch.float64)
    mixed = own @ torch.randn(channels, channels, generator=generator, dtype=torch.float64) / channels**0.5
    return (own + mixing * mixed) * torch.linspace(0.5, 2, channels, dtype=torch.float64)


def solve(z, count, y=None):
    """Return the coefficients over all channels, and lambda."""
    y = z.sum(dim=1) if y is None else y
    _, beta = lasso_support(z.T @ z, z.T @ y, count)
    return beta, float((z.T @ (y - z @ beta)).abs().max())


@pytest.mark.parametrize("count", [1, 4, 7, 11])
def test_the_conditions_of_optimality_hold(count):
    """Where beta is 0 the slope is at most lambda; elsewhere it is lambda, against the sign of beta."""
    z = contributions()
    beta, penalty = solve(z, count)
    slope = z.T @ (z @ beta - z.sum(dim=1))
    assert int((beta != 0).sum()) == count
    torch.testing.assert_close(slope[beta != 0], -penalty * beta[beta != 0].sign())


def test_agrees_with_coordinate_descent_on_the_samples():
    z = contributions(rows=80)
    beta, penalty = solve(z, 5)
    peer = linear_model.Lasso(alpha=penalty / len(z), fit_intercept=False, tol=1e-12, max_iter=100_000)
    peer.fit(z.numpy(), z.sum(dim=1).numpy())
    torch.testing.assert_close(beta, torch.from_numpy(peer.coef_), rtol=1e-6, atol=1e-8)


def test_of_all_penalties_for_a_count_it_is_the_one_that_shrinks_least():
    z = contributions()
    _, penalty = solve(z, 5)
    peer = linear_model.Lasso(alpha=0.999 * penalty / len(z), fit_intercept=False, tol=1e-12, max_iter=100_000)
    assert (peer.fit(z.numpy(), z.sum(dim=1).numpy()).coef_ != 0).sum() != 5


def test_without_penalty_the_same_network_has_all_coefficients_one():
    beta, penalty = solve(contributions(), 12)
    assert penalty < 1e-10
    torch.testing.assert_close(beta, torch.ones(12, dtype=torch.float64))


def test_orthogonal_channels_rank_by_energy_and_shrink_in_closed_form():
    energy = torch.tensor([4.0, 1.0, 9.0, 0.25, 6.0], dtype=torch.float64)
    for count, penalty in ((1, 6.0), (2, 4.0), (3, 1.0), (4, 0.25), (5, 0.0)):
        _, beta = lasso_support(energy.diag(), energy, count)
        torch.testing.assert_close(beta, (1 - penalty / energy).clamp(min=0))


def test_columns_are_not_normalised():
    """By |b| channel 0 enters first, by |b| / sqrt(A) it would be channel 1."""
    gram, target = torch.tensor([16.0, 1.0]).diag(), torch.tensor([2.0, 1.0])
    assert lasso_support(gram, target, 1)[0] == [0]


def test_negative_coefficients_count():
    gram, target = torch.eye(3), torch.tensor([0.5, -2.0, 1.0])
    kept, coefficients = lasso_support(gram, target, 2)
    assert kept == [1, 2]
    assert coefficients.tolist() == pytest.approx([0.0, -1.5, 0.5])


def crossing():
    """Return channels and an output of another network, for which some channels leave the path and others come."""
    return contributions(seed=4, mixing=3.0), contributions(seed=99).sum(dim=1)


def test_channels_that_leave_the_path_are_followed():
    """Somewhere a channel that a smaller count keeps is left out by a larger one, and every count is still exact."""
    z, y = crossing()
    supports = []
    for count in range(1, 13):
        beta, penalty = solve(z, count, y)
        slope = z.T @ (z @ beta - y)
        supports.append(set(beta.nonzero().flatten().tolist()))
        torch.testing.assert_close(slope[beta != 0], -penalty * beta[beta != 0].sign(), rtol=1e-6, atol=1e-8)
    assert [len(support) for support in supports] == list(range(1, 13))
    assert any(not small <= large for small, large in pairwise(supports)), "no channel left: choose another seed"


def test_the_count_does_not_grow_with_the_penalty():
    z, y = crossing()
    penalties = [solve(z, count, y)[1] for count in range(1, 13)]
    assert all(large >= small for large, small in pairwise(penalties))


def test_one_of_two_copies_stays_and_nothing_is_lost():
    own = contributions(channels=4)
    z = torch.cat([own, own], dim=1)  # channels 4 to 7 are copies of 0 to 3
    kept, _ = lasso_support(z.T @ z, z.T @ z.sum(dim=1), 4)
    assert sorted(channel % 4 for channel in kept) == [0, 1, 2, 3]
    refit = torch.linalg.lstsq(z[:, kept], z.sum(dim=1, keepdim=True)).solution
    torch.testing.assert_close(z[:, kept] @ refit, z.sum(dim=1, keepdim=True))


def test_copies_fill_up_a_count_beyond_what_adds_to_the_fit():
    own = contributions(channels=4)
    z = torch.cat([torch.zeros(60, 2, dtype=torch.float64), own, own], dim=1)
    for count in range(11):
        kept, coefficients = lasso_support(z.T @ z, z.T @ z.sum(dim=1), count)
        assert len(set(kept)) == len(kept) == count
        assert set(coefficients.nonzero().flatten().tolist()) <= set(kept)
        assert kept == sorted(kept)
    kept, _ = lasso_support(z.T @ z, z.T @ z.sum(dim=1), 8)
    assert set(kept) == set(range(2, 10)), "a dead channel before a live one"


def test_dead_channels_go_first_and_get_no_coefficient():
    z = contributions(channels=5)
    z[:, 1] = 0
    kept, coefficients = lasso_support(z.T @ z, z.T @ z.sum(dim=1), 5)
    assert coefficients[1].abs() < 1e-12
    assert kept == [0, 1, 2, 3, 4]
    assert 1 not in lasso_support(z.T @ z, z.T @ z.sum(dim=1), 4)[0]


def test_a_gram_of_zeros_gives_the_first_channels():
    kept, coefficients = lasso_support(torch.zeros(4, 4), torch.zeros(4), 2)
    assert (kept, coefficients.tolist()) == ([0, 1], [0.0] * 4)


def test_channels_that_enter_together_give_exact_counts():
    for count in range(6):
        assert lasso_support(torch.eye(5), torch.ones(5), count)[0] == list(range(count))


@pytest.mark.parametrize("unit", [1e-14, 1e14])
def test_the_unit_of_the_activations_does_not_matter(unit):
    """scikit-learn's tolerances are absolute: with small numbers its path ends at once."""
    z = contributions()
    gram, target = z.T @ z, z.T @ z.sum(dim=1)
    kept, coefficients = lasso_support(gram, target, 6)
    again, same = lasso_support(gram * unit, target * unit, 6)
    assert again == kept
    torch.testing.assert_close(same, coefficients)


def test_what_is_kept_does_not_depend_on_the_order_of_channels():
    z = contributions()
    order = torch.randperm(12, generator=torch.Generator().manual_seed(1))
    kept = {
        int(order[channel]) for channel in lasso_support(z[:, order].T @ z[:, order], z[:, order].T @ z.sum(1), 5)[0]
    }
    assert kept == set(lasso_support(z.T @ z, z.T @ z.sum(dim=1), 5)[0])


def test_moments_are_left_as_they_are_and_may_be_float32():
    z = contributions().float()
    gram, target = z.T @ z, z.T @ z.sum(dim=1)
    before = gram.clone(), target.clone()
    _, coefficients = lasso_support(gram, target, 6)
    assert torch.equal(gram, before[0])
    assert torch.equal(target, before[1])
    assert coefficients.dtype == torch.float64


@pytest.mark.parametrize("count", [-1, 4])
def test_a_count_that_is_not_possible_is_refused(count):
    with pytest.raises(MethodError, match=f"count={count}: expected how many of the 3"):
        lasso_support(torch.eye(3), torch.ones(3), count)


def test_missing_scikit_learn_names_the_extra(monkeypatch):
    whole = importlib.import_module

    def without(name, *rest):
        if name.startswith("sklearn"):
            raise ModuleNotFoundError("No module named 'sklearn'", name="sklearn")
        return whole(name, *rest)

    monkeypatch.setattr(importlib, "import_module", without)
    with pytest.raises(MissingExtra, match=r"LASSO channel pruning needs sklearn.*secateur\[train\]"):
        lasso_support(torch.eye(3), torch.ones(3), 2)
