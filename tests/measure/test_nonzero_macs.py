"""Multiply-adds of the weights that stay, for every kind of product."""

import pytest
import torch
from torch import nn

from secateur import WeightPlan, trace
from secateur.measure.macs import measured_macs, nonzero_macs
from secateur.methods._weights import prunable_weights

from ..contract.cases import CASES

LAYERS = {
    "linear": (nn.Linear(6, 4), (3, 6)),
    "linear on tokens": (nn.Linear(6, 4), (2, 5, 6)),
    "convolution": (nn.Conv2d(4, 6, 3, stride=2, padding=1), (2, 4, 9, 7)),
    "grouped": (nn.Conv2d(4, 6, 3, groups=2), (2, 4, 5, 5)),
    "depthwise": (nn.Conv2d(4, 4, 3, groups=4), (1, 4, 5, 5)),
    "transposed": (nn.ConvTranspose2d(4, 6, 3, stride=2, groups=2), (2, 4, 5, 5)),
    "one dimension": (nn.Conv1d(4, 6, 3), (2, 4, 9)),
}


def every_other(model):
    return WeightPlan(
        {w.name: (torch.arange(w.tensor.numel()) % 2 == 0).reshape(w.tensor.shape) for w in prunable_weights(model)}
    )


@pytest.mark.parametrize("name", LAYERS)
def test_half_of_the_weights_are_half_of_the_multiply_adds(name):
    layer, shape = LAYERS[name]
    images = torch.zeros(shape)
    whole = measured_macs(layer, images)
    assert nonzero_macs(trace(layer, images), WeightPlan()) == whole
    assert nonzero_macs(trace(layer, images), every_other(layer)) == whole // 2


@pytest.mark.parametrize("name", sorted(set(CASES) - {"attention"}))
def test_without_weights_none_are_left(name):
    case = CASES[name]
    model = case.model()
    none = WeightPlan({w.name: torch.zeros(w.tensor.shape, dtype=torch.bool) for w in prunable_weights(model)})
    assert nonzero_macs(case.graph, none) == 0


def test_what_attention_multiplies_besides_weights_stays():
    case = CASES["attention"]
    model = case.model()
    none = WeightPlan({w.name: torch.zeros(w.tensor.shape, dtype=torch.bool) for w in prunable_weights(model)})
    left = nonzero_macs(case.graph, none)
    assert 0 < left < case.graph.costs().macs


def test_a_dear_layer_counts_for_more():
    model = nn.Sequential(nn.Conv2d(2, 4, 3, padding=1), nn.Flatten(), nn.Linear(4 * 64, 2))
    graph, whole = trace(model, torch.zeros(1, 2, 8, 8)), 64 * 72 + 512
    first = torch.zeros(4, 2, 3, 3, dtype=torch.bool)
    assert nonzero_macs(graph, WeightPlan({"0.weight": first})) == whole - 64 * 72
    assert nonzero_macs(graph, WeightPlan({"2.weight": torch.zeros(2, 256, dtype=torch.bool)})) == whole - 512
