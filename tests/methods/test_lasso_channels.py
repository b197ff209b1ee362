"""LASSO channel pruning: the path's supports, the re-fit, and the target behind a shortcut."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from secateur import Budget, prune, shrink, trace
from secateur.errors import MethodError
from secateur.methods import LassoChannels, Problem
from secateur.methods._lasso import lasso_support
from secateur.recovery.moments import Sampling, product_moments
from secateur.train import ClassificationTask

from ..contract.cases import CASES

TASK, DOUBLE = ClassificationTask(), torch.float64


def samples(rows=60, channels=8, seed=0):
    generator = torch.Generator().manual_seed(seed)
    z = torch.randn(rows, channels, generator=generator, dtype=DOUBLE) * torch.linspace(0.5, 2, channels, dtype=DOUBLE)
    return z, z.sum(1)


def moments(z, y):
    return z.T @ z, z.T @ y


# -- the path -------------------------------------------------------------------------------------------------------


def test_without_penalty_every_channel_of_the_same_network_has_weight_one():
    z, y = samples()
    kept, beta = lasso_support(*moments(z, y), 8)
    assert kept == list(range(8))
    torch.testing.assert_close(beta, torch.ones(8, dtype=DOUBLE))


@pytest.mark.parametrize("count", range(1, 8))
def test_the_conditions_of_the_optimum_hold(count):
    """Nonzero weights have a gradient of minus the penalty times their sign, others a smaller one."""
    z, y = samples(seed=count)
    gram, target = moments(z, y)
    kept, beta = lasso_support(gram, target, count)
    assert len(kept) == count
    slope = gram @ beta - target
    penalty = slope[kept].abs().max()
    torch.testing.assert_close(slope[kept], -penalty * beta[kept].sign())
    rest = [k for k in range(8) if k not in kept]
    assert (slope[rest].abs() <= penalty + 1e-9).all()
    assert (beta[rest] == 0).all()


def test_the_support_is_that_of_scikit_learn_on_the_samples():
    from sklearn.linear_model import Lasso

    z, y = samples()
    gram, target = moments(z, y)
    kept, beta = lasso_support(gram, target, 4)
    penalty = float((gram @ beta - target)[kept].abs().max())
    found = Lasso(alpha=penalty / len(z) * 1.0001, fit_intercept=False, tol=1e-10, max_iter=100000).fit(z, y).coef_
    assert [k for k in range(8) if found[k]] == kept


def test_orthogonal_channels_rank_by_their_energy():
    """beta_i = max(1 - penalty / A_ii, 0): the largest energies stay, not the largest weights."""
    gram = torch.diag(torch.tensor([1.0, 4.0, 9.0, 2.0], dtype=DOUBLE))
    kept, beta = lasso_support(gram, gram.sum(1), 2)
    assert kept == [1, 2]
    penalty = 2.0  # where the third would come in
    torch.testing.assert_close(beta[kept], 1 - penalty / gram.diagonal()[kept])


def test_equal_channels_are_told_apart_by_index_and_dead_ones_come_last():
    gram = torch.diag(torch.tensor([1.0, 0.0, 1.0, 1.0], dtype=DOUBLE))
    assert [lasso_support(gram, gram.sum(1), count)[0] for count in (1, 2, 3)] == [[0], [0, 2], [0, 2, 3]]


def test_a_duplicate_comes_in_last():
    z, _ = samples(channels=4)
    z = torch.cat([z, z[:, 3:]], dim=1)
    kept, _ = lasso_support(*moments(z, z.sum(1)), 4)
    assert len({3, 4} & set(kept)) == 1


@pytest.mark.parametrize("seed", range(4))
def test_a_larger_count_never_has_a_larger_penalty(seed):
    z, y = samples(seed=seed)
    gram, target = moments(z, y)
    penalties = []
    for count in range(1, 8):
        kept, beta = lasso_support(gram, target, count)
        penalties.append(float((gram @ beta - target)[kept].abs().max()))
    assert penalties == sorted(penalties, reverse=True)


# -- the network ----------------------------------------------------------------------------------------------------


class Block(nn.Module):
    """Two layers beside a shortcut, whose own input was cut before."""

    def __init__(self):
        super().__init__()
        self.before, self.enter = nn.Conv2d(2, 6, 1), nn.Conv2d(6, 5, 1)
        self.conv1, self.conv2, self.bn = nn.Conv2d(5, 8, 3, padding=1), nn.Conv2d(8, 5, 1), nn.BatchNorm2d(5)

    def forward(self, x):
        x = torch.relu(self.enter(torch.relu(self.before(x))))
        return x + self.bn(self.conv2(torch.relu(self.conv1(x))))


def block():
    torch.manual_seed(0)
    model = Block().double().eval()
    with torch.no_grad():
        model.bn.weight.copy_(torch.linspace(0.5, 2, 5))
        model.bn.running_var.fill_(4.0)
    return model


def test_the_target_behind_a_shortcut_makes_up_for_what_it_lost():
    """Y1 - Y1' + Y2, taken back through the batch normalisation."""
    original, cut = block(), block()
    with torch.no_grad():
        cut.before.weight[2:] = 0
    images = torch.randn(3, 2, 4, 4, dtype=DOUBLE)
    graph = trace(original, images)
    from secateur.graph.products import products

    site = next(p.site for p in products(graph) if p.site.weight == "conv2.weight")
    both = Sampling(None, None)
    found = product_moments(cut, [site], [(images, None)], TASK, both, target=original, restores_sums=True)[site]

    def shortcut(model):
        return torch.relu(model.enter(torch.relu(model.before(images))))

    branch = original.conv2(torch.relu(original.conv1(shortcut(original)))) - original.conv2.bias.view(-1, 1, 1)
    scale = original.bn.weight / (original.bn.running_var + original.bn.eps).sqrt()
    wanted = branch + (shortcut(original) - shortcut(cut)) / scale.view(-1, 1, 1)
    torch.testing.assert_close(found.targets[0], wanted.sum((0, 2, 3)))
    torch.testing.assert_close(found.target_square[0], wanted.square().sum((0, 2, 3)))


def test_a_restored_sum_is_nearer_to_the_original():
    model, images = block(), torch.randn(64, 2, 4, 4, dtype=DOUBLE, generator=torch.Generator().manual_seed(0))
    graph, data = trace(model, images), [(images, None)]
    gaps = []
    for restores in (True, False):
        method = LassoChannels(restores_sums=restores, rows_per_sample=None, residual="prune")
        problem = Problem(model, graph, Budget(0.4), args=(images,), data=data, task=TASK)
        decision = LassoChannels.decide(method, problem)
        small = shrink(decision.model, graph, decision.plan)
        gaps.append((small(images) - model(images)).square().mean())
    assert gaps[0] < gaps[1]


def test_twins_are_refitted_without_loss():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(2, 6, 3), nn.ReLU(), nn.Conv2d(6, 4, 3)).double().eval()
    with torch.no_grad():
        for tensor in (model[0].weight, model[0].bias):
            tensor[3:] = tensor[:3]
        model[2].weight[:, 3:] = model[2].weight[:, :3]  # read with the same weights: their contributions are equal
    images = torch.randn(8, 2, 8, 8, dtype=DOUBLE)
    result = prune(
        model,
        images,
        method=LassoChannels(ridge=1e-10),
        budget=Budget(0.5),
        data=[(images, None)],
        task=TASK,
        repair=(),
    )
    assert len({k % 3 for k in result.plan.kept["0"]}) == 3
    torch.testing.assert_close(result.model(images), model(images), rtol=1e-5, atol=1e-6)


def test_rounds_alternate_between_choice_and_refit():
    problem = CASES["plain"].problem(0.4, dtype=DOUBLE)
    one, three = (LassoChannels(rounds=n).decide(problem) for n in (1, 3))
    assert one.plan.removed_count == three.plan.removed_count
    assert not torch.equal(one.model.conv2.weight, three.model.conv2.weight)


@pytest.mark.parametrize("name", ["concat", "attention"])
def test_readers_of_several_groups_are_refitted_for_all_of_them(name):
    case = CASES[name]
    method = LassoChannels(residual="prune")
    result = prune(
        case.model(DOUBLE), case.images(DOUBLE), method=method, budget=Budget(0.4), data=case.data(DOUBLE), task=TASK
    )
    assert result.verification.is_exact


def test_no_data_is_refused():
    with pytest.raises(MethodError, match="lasso_channels looks at activations"):
        LassoChannels().decide(CASES["plain"].problem(data=None))


@pytest.mark.parametrize(
    ("settings", "words"),
    [({"rounds": 0}, "rounds=0"), ({"ridge": -1}, "ridge=-1"), ({"max_samples": 0}, "max_samples")],
)
def test_settings_without_sense_are_refused(settings, words):
    with pytest.raises(MethodError, match=words):
        LassoChannels(**settings)
