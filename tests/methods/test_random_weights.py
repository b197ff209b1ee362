"""Random weights: drawn from the seed and nothing else, the same fraction of each layer."""

import torch
from torch import nn

from secateur import Budget
from secateur.methods import RandomWeights, WeightProblem


def plan(model, seed, scope="layer"):
    return RandomWeights(scope).choose(WeightProblem(model, Budget(0.5, "weights"), seed=seed)).plan


def model():
    return nn.Sequential(nn.Linear(20, 20), nn.Linear(20, 10))


def test_the_seed_decides_and_the_weights_do_not():
    assert plan(model(), 3) == plan(model(), 3)
    assert plan(model(), 3) != plan(model(), 4)


def test_every_layer_loses_the_same_fraction():
    assert [int(mask.sum()) for mask in plan(model(), 0).kept.values()] == [200, 100]


def test_a_draw_over_all_layers_leaves_the_shares_to_chance():
    shares = {tuple(int(mask.sum()) for mask in plan(model(), seed, "global").kept.values()) for seed in range(5)}
    assert len(shares) > 1
    assert {sum(share) for share in shares} == {300}


def test_every_weight_is_as_likely_as_any_other():
    small = nn.Linear(4, 2, bias=False)
    kept = torch.stack([plan(small, seed).kept["weight"] for seed in range(400)]).double().mean(0)
    assert (kept - 0.5).abs().max() < 0.15
