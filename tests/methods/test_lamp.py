"""LAMP: shares of squares among the larger ones, blind to the scale of a layer."""

import warnings
from fractions import Fraction

import pytest
import torch
from torch import nn

from secateur import Budget
from secateur.methods import Lamp, WeightProblem
from secateur.methods._weight_choice import LayerKeptAlive
from secateur.methods.lamp import lamp_scores


def layers(*weights):
    model = nn.Sequential(*(nn.Linear(len(w[0]), len(w), bias=False) for w in weights))
    with torch.no_grad():
        for layer, weight in zip(model, weights, strict=True):
            layer.weight.copy_(torch.tensor(weight))
    return model


def plan_of(model, remove):
    return Lamp().choose(WeightProblem(model, Budget(remove, "weights"))).plan


def test_one_two_three_score_a_fourteenth_four_thirteenths_and_one():
    scores = lamp_scores(torch.tensor([[2.0, -3.0, 1.0]])).tolist()[0]
    assert scores == pytest.approx([Fraction(4, 13), 1, Fraction(1, 14)], rel=1e-15)


def test_scaling_a_layer_changes_nothing():
    """By a power of two exactly; and squares of tiny weights do not vanish."""
    torch.manual_seed(0)
    weight = torch.randn(6, 5, 3, 3, dtype=torch.float64)
    assert torch.equal(lamp_scores(weight), lamp_scores(weight * 2.0**-600))
    one, other = layers([[9.0, 1.0, 4.0]], [[2.0], [5.0]]), layers([[9.0, 1.0, 4.0]], [[2e-6], [5e-6]])
    assert plan_of(one, 0.4) == plan_of(other, 0.4)


def test_layers_compete_by_their_shares_not_by_magnitude():
    """Magnitude would take both weights of the small layer; LAMP takes the one that its layer leans on least."""
    plan = plan_of(layers([[10.0, 11.0, 12.0]], [[0.1], [3.0], [0.2]]), 2 / 6)
    assert plan.kept["0.weight"].tolist() == [[True, True, True]]
    assert plan.kept["1.weight"].tolist() == [[False], [True], [False]]
    scores = [lamp_scores(torch.tensor(w)) for w in ([10.0, 11.0, 12.0], [0.1, 3.0, 0.2])]
    assert scores[0].min() > scores[1][[0, 2]].max()


def test_no_layer_is_emptied_at_any_budget():
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(20, 30), nn.Linear(30, 10), nn.Linear(10, 2))
    with torch.no_grad():
        model[1].weight.mul_(1e-6)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        plan = plan_of(model, 1 - 3 / 920)
    assert [int(mask.sum()) for mask in plan.kept.values()] == [1, 1, 1]
    assert all(
        model.get_parameter(name).abs().argmax() == mask.flatten().int().argmax() for name, mask in plan.kept.items()
    )


def test_equal_weights_rise_with_their_position():
    assert lamp_scores(torch.ones(4)).tolist() == pytest.approx([1 / 4, 1 / 3, 1 / 2, 1])


def test_a_layer_of_zeros_scores_zero_and_is_kept_alive_with_a_warning():
    assert lamp_scores(torch.zeros(2, 2)).tolist() == [[0.0, 0.0], [0.0, 0.0]]
    with pytest.warns(LayerKeptAlive, match=r"1\.weight"):
        plan = plan_of(layers([[2.0, 1.0, 3.0]], [[0.0, 0.0]]), 2 / 5)
    assert plan.kept["0.weight"].tolist() == [[True, False, True]]
    assert plan.kept["1.weight"].sum() == 1
