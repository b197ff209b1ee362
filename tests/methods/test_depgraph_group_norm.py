"""DepGraph's group norm: what belongs to a channel, sizes by hand, how hard each is pressed, what is remembered."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from secateur.errors import MethodError
from secateur.methods import DepgraphGroupNorm
from secateur.methods._coupled_slices import CoupledSlices
from secateur.methods.depgraph_group_norm import relative_sizes, shrink_strengths
from secateur.train import Recipe

from ..contract.cases import CASES
from .attached_runs import (
    lost_on_digits,
    moment_of,
    problem_of,
    run,
    small_net,
    tensors,
)
from .test_l1_filter import chain

UNTRAINED = DepgraphGroupNorm(penalty=0)


def scores_of(model, *shape, method=UNTRAINED, remove=0.25):
    return method.decide(problem_of(model, *shape, remove=remove)).scores


def removed(model, *shape, method=UNTRAINED, remove=0.5):
    plan = method.decide(problem_of(model.double(), *shape, remove=remove)).plan
    return {name: plan.removed(name) for name in plan if plan.removed(name)}


def step(attached, model):
    """One step of SGD where the loss itself has no gradient; returns what the gradients became."""
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    moment = moment_of(model)
    attached.after_backward(moment)
    found = {name: p.grad.clone() for name, p in model.named_parameters()}
    moment.optimizer.step()
    attached.after_step(moment)
    return found


def test_sizes_are_means_over_rows_and_columns_of_summed_squares_relative_to_the_group():
    model = chain([[1.0, -2.0], [3.0, 1.0]], [[2.0, -1.0], [1.0, 0.0]]).double()
    # rows 5, 10; columns 5, 1: means 5, 5.5, whose mean is 5.25
    torch.testing.assert_close(scores_of(model, 1, 2, 1, 1)["0"], torch.tensor([5.0, 5.5]).double() / 5.25)
    # with p = 1: rows 3, 4; columns 3, 1
    cubic = DepgraphGroupNorm(penalty=0, power=1)
    torch.testing.assert_close(
        scores_of(model, 1, 2, 1, 1, method=cubic)["0"], torch.tensor([3.0, 2.5]).double() / 2.75
    )


def test_gains_count_as_slices_and_biases_and_shifts_do_not():
    model = nn.Sequential(nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2), nn.Conv2d(2, 1, 1)).double()
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([1.0, 2.0]).view(2, 1, 1, 1))
        model[1].weight.copy_(torch.tensor([3.0, 1.0]))
        model[2].weight.copy_(torch.tensor([1.0, 1.0]).view(1, 2, 1, 1))
        model[0].bias.fill_(100.0)
        model[1].bias.copy_(torch.tensor([0.0, 100.0]))
    # (1 + 9 + 1) / 3 and (4 + 1 + 1) / 3
    torch.testing.assert_close(scores_of(model, 1, 1, 2, 2)["0"], torch.tensor([11.0, 6.0]).double() / 8.5)


def test_a_channel_that_nobody_reads_is_small_however_large_its_filter():
    filters, readout = [[2.0], [2.5]], [[2.0, 0.1]]  # rows alone would take the first
    assert removed(chain(filters, readout), 1, 1, 1, 1) == {"0": (1,)}


def test_norms_are_squared():
    filters, readout = [[3.0, 0.0], [2.0, -2.0]], [[1.0, 1.0]]  # squares 9 > 8; absolute 3 < 4
    assert removed(chain(filters, readout), 1, 2, 1, 1) == {"0": (1,)}
    assert removed(chain(filters, readout), 1, 2, 1, 1, method=DepgraphGroupNorm(penalty=0, power=1)) == {"0": (0,)}


def test_groups_are_compared_by_sizes_relative_to_their_own_mean():
    small = [[0.01], [0.01], [0.01]]  # in itself even
    large = [[2.0] * 3, [2.0] * 3, [9.0] * 3]  # in itself uneven, and each above all of the first
    model = chain(small, large, [[5.0] * 3])
    with torch.no_grad():
        model[1].weight.div_(10)
    got = removed(model, 1, 1, 1, 1, remove=1 / 3)
    assert got == {"1": (0, 1)}


def test_linear_columns_of_a_flattened_map_belong_to_their_channel():
    model = nn.Sequential(nn.Conv2d(1, 2, 1), nn.Flatten(), nn.Linear(8, 1)).double()
    with torch.no_grad():
        model[0].weight.fill_(1.0)
        model[2].weight.copy_(torch.tensor([[1.0, 1.0, 1.0, 1.0, 2.0, 0.0, 0.0, 0.0]]) * torch.tensor(3.0).sqrt())
    # columns sum to 12 for both channels: a mean over columns, or an interleaved map, would differ from these
    torch.testing.assert_close(scores_of(model, 1, 1, 2, 2)["0"], torch.ones(2).double())


@pytest.mark.parametrize("case", CASES.values(), ids=list(CASES))
def test_pressing_is_the_gradient_of_half_the_weighted_squares(case):
    """Of sum over channels of gamma_k ||w_k||^2 / 2 over all slices: what the mean powers measure with p = 2."""
    model = case.model(torch.float64)
    problem = case.problem(dtype=torch.float64, model=model)
    slices = CoupledSlices.of(model, problem.graph, list(problem.graph.groups))
    generator = torch.Generator().manual_seed(0)
    gamma = {n: torch.rand(g.width, generator=generator).double() for n, g in problem.graph.groups.items()}

    def energy():
        sizes = slices.mean_powers(model, 2.0)
        return sum(float(gamma[n] @ own) * len(slices.members[n]) / 2 for n, own in sizes.items())

    before = energy()
    for name, factor in slices.laid_out(model, gamma).items():
        weight = model.get_parameter(name).detach()
        moved = int(torch.randint(weight.numel(), (1,), generator=generator))
        wanted = (factor * weight).flatten()[moved].item()
        old = weight.view(-1)[moved].item()
        found = []
        for by in (1e-4, -1e-4):
            weight.view(-1)[moved] = old + by
            found.append(energy())
        weight.view(-1)[moved] = old
        assert (found[0] - found[1]) / 2e-4 == pytest.approx(wanted, rel=1e-5, abs=1e-8), name
    assert energy() == before


def test_every_slice_of_a_channel_is_pressed_alike_and_small_channels_16_times_as_hard():
    model = chain([[1.0], [2.0], [4.0]], [[1.0, 1.0, 1.0]]).double()  # I: 1, 2.5, 8.5
    attached = DepgraphGroupNorm(penalty=0.5).attach(problem_of(model, 1, 1, 1, 1, remove=1 / 3))
    gamma = 0.5 * 2 ** (4 * (8.5 - torch.tensor([1.0, 2.5, 8.5]).double()) / 7.5)
    assert gamma[0] == 8.0
    weights = [model[k].weight.detach().clone().flatten() for k in (0, 1)]
    found = step(attached, model)
    torch.testing.assert_close(found["0.weight"].flatten(), gamma * weights[0])
    torch.testing.assert_close(found["1.weight"].flatten(), gamma * weights[1])
    assert not found["0.bias"].any()
    assert not found["1.bias"].any()


def test_a_weight_between_two_groups_is_pressed_by_both():
    model = chain([[1.0], [3.0]], [[1.0, 1.0], [2.0, 2.0]], [[1.0, 1.0]]).double()
    attached = DepgraphGroupNorm(penalty=1.0).attach(problem_of(model, 1, 1, 1, 1))
    # of two channels, the larger has gamma 1 and the smaller 16
    assert step(attached, model)["1.weight"].flatten().tolist() == [32.0, 17.0, 34.0, 4.0]


def test_strengths_hold_for_an_epoch_and_are_measured_anew_in_the_next():
    model = chain([[1.0], [2.0]], [[1.0, 1.0]]).double()
    attached = DepgraphGroupNorm(penalty=0.1).attach(problem_of(model, 1, 1, 1, 1))
    step(attached, model)
    with torch.no_grad():
        model[0].weight[0] = 5.0
    assert step(attached, model)["0.weight"].flatten()[0].item() == pytest.approx(1.6 * 5)
    attached.after_epoch(moment_of(model))
    model[0].weight.data[0] = 5.0
    assert step(attached, model)["0.weight"].flatten()[0].item() == pytest.approx(0.1 * 5)


def test_equal_and_empty_groups_give_no_odd_numbers():
    assert shrink_strengths(torch.full((3,), 2.0), alpha=4).tolist() == [1.0, 1.0, 1.0]
    assert relative_sizes(torch.zeros(3)).tolist() == [0.0, 0.0, 0.0]
    assert shrink_strengths(torch.tensor([1.0, 2.0]), alpha=0).tolist() == [1.0, 1.0]


def test_pressing_makes_channels_that_go_smaller_beside_those_that_stay():
    shares = {}
    for penalty in (0.0, 0.3):
        _, _, decision = run(DepgraphGroupNorm(penalty=penalty))
        sizes = [(own, list(decision.plan.removed(name))) for name, own in decision.scores.items()]
        shares[penalty] = sum(float(own[gone].sum()) for own, gone in sizes)
    assert shares[0.3] < 0.7 * shares[0.0]


def test_without_a_penalty_no_data_are_read_and_no_model_is_made():
    model = small_net()
    before = copy.deepcopy(tensors(model))
    decision = UNTRAINED.decide(problem_of(model))
    assert decision.model is None
    assert decision.repair == "refit"
    assert decision.plan.removed_count == 7
    assert all(torch.equal(one, other) for one, other in zip(before, tensors(model), strict=True))


@pytest.mark.parametrize(("name", "value"), [("penalty", -1.0), ("power", 0.0), ("alpha", float("nan"))])
def test_settings_without_sense_are_refused(name, value):
    with pytest.raises(MethodError, match=rf"{name}={value!r}: expected"):
        DepgraphGroupNorm(**{name: value})


@pytest.mark.slow
def test_digits_lose_less_than_two_points():
    assert lost_on_digits(DepgraphGroupNorm(penalty=0.01, recipe=Recipe(epochs=20, lr=0.02))) < 0.02
