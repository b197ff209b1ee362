"""Magnitude: |w|, not w; global unless told otherwise; Han's thresholds in standard deviations of a layer."""

import pytest
import torch
from torch import nn

from secateur import Budget, sparsify
from secateur.errors import MethodError, UnknownName
from secateur.methods import Magnitude, WeightProblem


def two_layers():
    model = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False))
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[-9.0, 1.0], [2.0, -0.5]]))
        model[1].weight.copy_(torch.tensor([[0.4, -0.3], [0.2, -0.1]]))
    return model


def kept(method, remove, model=None):
    plan = method.choose(WeightProblem(model or two_layers(), Budget(remove, "weights"))).plan
    return {name: mask.tolist() for name, mask in plan.kept.items()}


def test_large_negative_weights_stay_and_small_ones_go_over_all_layers():
    assert kept(Magnitude(), 3 / 8) == {
        "0.weight": [[True, True], [True, True]],
        "1.weight": [[True, False], [False, False]],
    }


def test_within_layers_each_loses_its_own_smallest():
    assert kept(Magnitude("layer"), 0.5) == {
        "0.weight": [[True, False], [True, False]],
        "1.weight": [[True, True], [False, False]],
    }


def test_thresholds_in_standard_deviations_do_not_see_a_layers_scale():
    """Scaling a layer changes the global ranking and leaves Han's as it was."""
    scaled = two_layers()
    with torch.no_grad():
        scaled[1].weight.mul_(1000)
    assert kept(Magnitude(thresholds="std"), 3 / 8) == kept(Magnitude(thresholds="std"), 3 / 8, scaled)
    assert kept(Magnitude(), 3 / 8) != kept(Magnitude(), 3 / 8, scaled)


def test_hans_thresholds_are_quality_times_deviation():
    """One common factor: each layer's weights below factor * quality * std go, and no others."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(40, 30, bias=False), nn.Linear(30, 20, bias=False))
    quality = {"0.weight": 2.0, "1.weight": 0.5}
    plan = Magnitude(thresholds="std", quality=quality).choose(WeightProblem(model, Budget(0.4, "weights"))).plan
    edges = []
    for name, mask in plan.kept.items():
        weight = model.get_parameter(name).detach()
        unit = quality[name] * weight.std(correction=0)
        edges.append(((weight[~mask].abs() / unit).max(), (weight[mask].abs() / unit).min()))
    assert max(low for low, _ in edges) <= min(high for _, high in edges)
    shares = [1 - mask.float().mean() for mask in plan.kept.values()]
    assert shares[0] > 2 * shares[1]


def test_scores_are_absolute_values():
    scores = Magnitude().choose(WeightProblem(two_layers(), Budget(0.25, "weights"))).scores
    assert scores["0.weight"].tolist() == [[9.0, 1.0], [2.0, 0.5]]


def test_a_constant_layer_loses_nothing_to_thresholds_in_deviations():
    model = two_layers()
    with torch.no_grad():
        model[1].weight.fill_(0.1)
    assert kept(Magnitude(thresholds="std"), 0.25, model)["1.weight"] == [[True, True], [True, True]]


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"scope": "everywhere"}, "scope"),
        ({"scope": {"0.weight": 50}}, "0 to 1"),
        ({"thresholds": "mean"}, "thresholds"),
        ({"thresholds": "std", "scope": "layer"}, "scope"),
        ({"quality": {"0.weight": 1.0}}, "thresholds='std'"),
        ({"thresholds": "std", "quality": {"0.weight": 0}}, "above 0"),
    ],
)
def test_settings_without_sense_are_refused(settings, said):
    with pytest.raises(MethodError, match=said):
        Magnitude(**settings)


def test_unknown_layers_are_named():
    for made in (Magnitude({"nothing": 0.5}), Magnitude(thresholds="std", quality={"nothing": 1.0})):
        with pytest.raises(UnknownName, match="nothing"):
            kept(made, 0.5)


def test_a_mapping_shares_out_what_goes():
    result = sparsify(two_layers(), budget=Budget(0.25, "weights"), method=Magnitude({"0.weight": 1.0}))
    assert result.model[1].weight.all()
    assert int((result.model[0].weight == 0).sum()) == 2
