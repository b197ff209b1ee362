"""ThiNet: its greedy order, its scaling, and the statistics that both are read off."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from secateur import Budget, prune, shrink, trace
from secateur.errors import MethodError, TrainingError
from secateur.methods import Problem, ThiNet
from secateur.methods._layerwise import LayerWise
from secateur.methods.thinet import backward_elimination, greedy_removal, matching_pursuit, scaling
from secateur.recovery.moments import Sampling
from secateur.train import ClassificationTask

from ..contract.cases import CASES

TASK, DOUBLE = ClassificationTask(), torch.float64


def gram_of(x):
    return x.T @ x


def random_samples(rows=40, channels=7, seed=0):
    return torch.randn(rows, channels, generator=torch.Generator().manual_seed(seed), dtype=DOUBLE)


# -- the maths ------------------------------------------------------------------------------------------------------


def test_greedy_is_greedy():
    """Channels 0 and 1 cancel and would cost nothing together; one by one 2 and then 0 go, at 1.25."""
    gram = torch.tensor([[1.0, -1, 0], [-1, 1, 0], [0, 0, 0.25]])
    gone = greedy_removal(gram, 2)
    assert gone == [2, 0]
    assert gram[gone][:, gone].sum() == 1.25
    assert gram[:2, :2].sum() == 0


@pytest.mark.parametrize("seed", range(5))
def test_the_gram_form_chooses_as_the_samples_do(seed):
    x = random_samples(seed=seed)
    gone: list[int] = []
    for _ in range(5):
        rest = [c for c in range(x.shape[1]) if c not in gone]
        gone.append(min(rest, key=lambda c: float(x[:, [*gone, c]].sum(1).square().sum())))
    assert greedy_removal(gram_of(x), 5) == gone


def test_the_removed_are_summed_before_they_are_squared():
    """After channel 2 its opposite goes next: summed they are nothing, squared one by one it would be the last."""
    x = torch.tensor([[3.0, 2.0, -1.9, 1.0]])
    assert greedy_removal(gram_of(x), 3) == [3, 2, 1]
    assert greedy_removal(gram_of(torch.tensor([[3.0, 2.0, -2.9, 1.9]])), 2) == [3, 2]  # not 1, the smaller one


def test_scaling_is_least_squares():
    x = random_samples()
    y, kept = x.sum(1), [0, 2, 5]
    wanted = torch.linalg.lstsq(x[:, kept], y[:, None]).solution[:, 0]
    torch.testing.assert_close(scaling(gram_of(x), x.T @ y, kept), wanted)


def test_a_twin_is_scaled_to_two_and_nothing_is_lost():
    x = random_samples(channels=3)
    x[:, 2] = x[:, 0]
    y = x.sum(1)
    factor = scaling(gram_of(x), x.T @ y, [0, 1])
    torch.testing.assert_close(factor, torch.tensor([2.0, 1.0], dtype=DOUBLE))
    assert (y - x[:, [0, 1]] @ factor).abs().max() < 1e-9


def test_dead_and_doubled_channels_do_not_break_the_solve():
    x = random_samples(channels=4)
    x[:, 1], x[:, 2] = 0, x[:, 0]
    factor = scaling(gram_of(x), x.T @ x.sum(1), [0, 1, 2, 3])
    assert factor.isfinite().all()
    torch.testing.assert_close(x @ factor, x.sum(1))


@pytest.mark.parametrize("seed", range(3))
def test_matching_pursuit_is_that_of_the_samples(seed):
    x = random_samples(seed=seed)
    y, kept = x.sum(1), []
    residual = y
    for _ in range(4):
        gains = (x.T @ residual).square() / x.square().sum(0)
        gains[kept] = -1
        kept.append(int(gains.argmax()))
        residual = y - x[:, kept] @ torch.linalg.lstsq(x[:, kept], y[:, None]).solution[:, 0]
    assert matching_pursuit(gram_of(x), x.T @ y, 4) == kept


@pytest.mark.parametrize("seed", range(3))
def test_backward_elimination_refits_at_every_step(seed):
    x = random_samples(seed=seed)
    y = x.sum(1)

    def loss(kept):
        return float((y - x[:, kept] @ torch.linalg.lstsq(x[:, kept], y[:, None]).solution[:, 0]).square().sum())

    gone: list[int] = []
    for _ in range(4):
        rest = [c for c in range(7) if c not in gone]
        gone.append(min(rest, key=lambda c: loss([r for r in rest if r != c])))
    assert backward_elimination(gram_of(x), x.T @ y, 4) == gone


# -- the network ----------------------------------------------------------------------------------------------------


def linear_chain():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(2, 6, 3), nn.Conv2d(6, 5, 3)).double().eval()


def problem_of(model, images, remove=0.5, **changes):
    parts = {"data": [(images, None)], "task": TASK, **changes}
    return Problem(model, trace(model, images), Budget(remove), args=(images,), **parts)


def test_the_energy_of_what_goes_is_the_measured_error():
    """A linear network without padding or scaling: what equation 6 predicts is what the output loses."""
    model = linear_chain()
    images = torch.randn(4, 2, 8, 8, dtype=DOUBLE)
    problem = problem_of(model, images)
    decision = ThiNet(is_scaled=False, rows_per_sample=None).decide(problem)
    small = shrink(model, problem.graph, decision.plan)
    walk = LayerWise(problem, "thinet", Sampling(None, None))
    name, reading = walk.groups(list(problem.graph.groups))[0]
    gram = walk.moments(name, reading)[0].gram
    gone = list(decision.plan.removed(name))
    torch.testing.assert_close(gram[gone][:, gone].sum(), (small(images) - model(images)).square().sum())


def test_scaling_multiplies_the_readers_columns_and_leaves_biases():
    model = linear_chain()
    images = torch.randn(4, 2, 8, 8, dtype=DOUBLE)
    decision = ThiNet(rows_per_sample=None).decide(problem_of(model, images))
    stay = list(decision.plan.kept["0"])
    factor = (decision.model[1].weight / model[1].weight)[:, stay]
    assert (factor - factor[:1, :, :1, :1]).abs().max() < 1e-12
    assert torch.equal(decision.model[1].bias, model[1].bias)
    assert torch.equal(decision.model[0].weight, model[0].weight)
    graph = trace(model, images)
    errors = [
        (shrink(source, graph, decision.plan)(images) - model(images)).square().sum()
        for source in (decision.model, model)
    ]
    assert errors[0] < errors[1]


def test_the_next_layer_decides_not_the_filters_own_size():
    """Channel 0 is large and hardly read; by its own norm it would stay."""
    model = nn.Sequential(nn.Linear(3, 3, bias=False), nn.Linear(3, 2, bias=False)).double()
    with torch.no_grad():
        model[0].weight.copy_(torch.diag(torch.tensor([10.0, 1.0, 1.0])))
        model[1].weight.copy_(torch.tensor([[1e-3, 1.0, 0.5], [1e-3, -1.0, 2.0]]))
    inputs = torch.randn(50, 3, dtype=DOUBLE, generator=torch.Generator().manual_seed(0))
    assert ThiNet().decide(problem_of(model, inputs, 1 / 3)).plan.removed("0") == (0,)


def test_drawn_filters_estimate_all_of_them():
    """The Gram matrix of one output drawn per row is, times their number, near that of all."""
    case = CASES["plain"]
    problem = case.problem(dtype=DOUBLE)
    grams = []
    for draws in (False, True):
        walk = LayerWise(problem, "thinet", Sampling(None, None), draws_filters=draws)
        name, reading = walk.groups(["conv1"])[0]
        grams.append(walk.moments(name, reading)[0].gram)
    ratio = 8 * grams[1].diagonal() / grams[0].diagonal()  # conv2 has 8 outputs
    assert (ratio - 1).abs().max() < 0.25


def test_later_layers_see_what_earlier_ones_lost():
    """The second group's inputs come from the pruned network, its targets from the original."""
    problem = CASES["plain"].problem(dtype=DOUBLE)
    walk = LayerWise(problem, "thinet", Sampling(None, None))
    name, reading = walk.groups(["conv2"])[0]
    before = walk.moments(name, reading)[0]
    torch.testing.assert_close(before.target, before.gram.sum(1))  # y is the sum of the contributions
    walk.remove_("conv1", range(5))
    after = walk.moments(name, reading)[0]
    assert not torch.allclose(after.gram, before.gram)
    assert after.target_square == pytest.approx(before.target_square)


@pytest.mark.parametrize(("selection", "filters"), [("greedy", "drawn"), ("omp", "all"), ("backward", "all")])
def test_every_form_gives_an_exact_smaller_network(selection, filters):
    for case in (CASES["concat"], CASES["attention"]):
        method = ThiNet(selection=selection, filters=filters, residual="prune")
        result = prune(
            case.model(),
            case.images(),
            method=method,
            budget=Budget(0.4),
            data=case.data(),
            task=TASK,
            graph=case.graph,
        )
        assert result.verification.is_exact


# -- errors ---------------------------------------------------------------------------------------------------------


def test_no_data_is_refused():
    case = CASES["plain"]
    with pytest.raises(MethodError, match="thinet looks at activations: give data="):
        ThiNet().decide(case.problem(data=None))


def test_an_empty_loader_is_refused():
    with pytest.raises(TrainingError, match="gave no batch"):
        ThiNet().decide(CASES["plain"].problem(data=[]))


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"selection": "best"}, "expected one of greedy, omp, backward"),
        ({"filters": "some"}, "expected 'all' or 'drawn'"),
        ({"rows_per_sample": 0}, "rows_per_sample=0"),
        ({"allocation": "global"}, "no scores for global"),
    ],
)
def test_settings_without_sense_are_refused(settings, words):
    with pytest.raises(MethodError, match=words):
        ThiNet(**settings).decide(CASES["plain"].problem())


def test_nan_activations_name_the_layer():
    case = CASES["plain"]
    batches = case.data()
    batches[0][0][0] = torch.nan
    with pytest.raises(MethodError, match="'conv2' hold NaN"):
        ThiNet().decide(case.problem(data=batches))


def test_channels_that_no_layer_reads_are_refused():
    class Unread(nn.Module):
        def __init__(self):
            super().__init__()
            self.enter = nn.Linear(3, 6)

        def forward(self, x):
            return torch.relu(self.enter(x)).mean(1)

    model, x = Unread(), torch.randn(4, 3)
    with pytest.raises(MethodError, match="no layer reads any of"):
        ThiNet().decide(Problem(model, trace(model, x), Budget(0.5), args=(x,), data=[(x, None)], task=TASK))
