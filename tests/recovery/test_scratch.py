"""The small network with fresh weights, and how long it is trained."""

import pytest
import torch
from torch import nn

from secateur import Budget, Plan, WeightPlan, shrink, sparsify, trace
from secateur.errors import MethodError, TrainingError
from secateur.models import initialise_, resolve
from secateur.recovery.scratch import redrawn, scratch_b, scratch_e
from secateur.train import Recipe

RECIPE = Recipe(epochs=160, lr=0.1, schedule="step", milestones=(0.5, 0.75))


def small():
    torch.manual_seed(0)
    model = resolve("digits_resnet")
    graph = trace(model, torch.zeros(1, 1, 8, 8))
    name = next(n for n, g in graph.groups.items() if not g.is_residual)
    return shrink(model, graph, Plan.from_removed({name: range(graph.widths[name] // 2)}, graph.widths))


def test_shapes_stay_and_no_weight_is_inherited():
    cut = small()
    before = {name: tensor.clone() for name, tensor in cut.state_dict().items()}
    fresh = redrawn(cut, seed=1)
    for name, tensor in fresh.named_parameters():
        assert tensor.shape == before[name].shape
        if tensor.dim() > 1:
            assert not bool((tensor == before[name]).any()), name
    assert all(torch.equal(before[name], tensor) for name, tensor in cut.state_dict().items())


def test_statistics_start_anew():
    cut = small()
    for module in cut.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.fill_(3.0)
    fresh = redrawn(cut, seed=1)
    means = [m.running_mean for m in fresh.modules() if isinstance(m, nn.BatchNorm2d)]
    assert means
    assert not any(bool(mean.any()) for mean in means)


def test_the_seed_decides_and_the_processes_numbers_are_left_alone():
    cut = small()
    state = torch.get_rng_state()
    one, same, other = (redrawn(cut, seed=seed, init=initialise_) for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), same.parameters(), strict=True))
    assert not torch.equal(one.conv1.weight, other.conv1.weight)


def test_the_networks_own_first_weights_are_drawn_for_the_small_widths():
    """He's rule looks at output channels: half as many, twice the variance."""
    wide, narrow = nn.Conv2d(64, 128, 3, bias=False), nn.Conv2d(64, 64, 3, bias=False)
    spreads = [redrawn(layer, seed=0, init=initialise_).weight.std().item() for layer in (wide, narrow)]
    assert spreads[1] / spreads[0] == pytest.approx(2**0.5, rel=0.03)


def test_masked_weights_stay_zero_and_the_others_spread_wider():
    model = nn.Conv2d(64, 128, 3, bias=False)
    plan = sparsify(model, budget=Budget(0.75, "weights")).plan
    fresh = redrawn(model, seed=0, init=initialise_, plan=plan)
    assert WeightPlan.of_zeros(fresh, plan) == plan
    kept = fresh.weight[plan.kept["weight"]]
    wanted = (2 / (plan.kept["weight"].sum() / 64)) ** 0.5  # sqrt(2 / n), n = weights that stay / input channels
    assert kept.std().item() == pytest.approx(wanted.item(), rel=0.03)


def test_a_module_that_cannot_start_anew_is_named():
    class Scaled(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.ones(3))

    model = nn.Sequential(nn.Linear(3, 3), Scaled())
    with pytest.raises(MethodError, match=r"1 \(Scaled\).*init="):
        redrawn(model, seed=0)
    assert redrawn(model, seed=0, init=lambda net: nn.init.ones_(net[1].scale))[1].scale.eq(1).all()


def test_scratch_e_has_the_epochs_of_the_large_network():
    assert scratch_e(RECIPE) == RECIPE
    assert scratch_e(RECIPE.rewound(10)) == RECIPE
    assert scratch_e(RECIPE, finetune_epochs=40).epochs == 200


def test_scratch_b_has_its_multiply_adds():
    """VGG-16-A of the paper: 160 epochs of 313.46 million are 243 of 206.28 million."""
    longer = scratch_b(RECIPE, 313_463_808, 206_279_808)
    assert longer.epochs == 243
    assert longer.lr_at(121) == pytest.approx(0.1)
    assert longer.lr_at(122) == pytest.approx(0.01)
    assert scratch_b(RECIPE, 300, 100, cap=2).epochs == 320
    assert scratch_b(RECIPE, 300, 200, cap=2).epochs == 240
    assert scratch_b(RECIPE, 300, 100, finetune_epochs=40).epochs == 520
    assert scratch_b(RECIPE, 100, 100).epochs == 160


@pytest.mark.parametrize("given", [(1, 2, {}), (1, 0, {}), (2, 1, {"cap": 0.5}), (2, 1, {"finetune_epochs": -1})])
def test_counts_without_sense_are_refused(given):
    before, after, more = given
    with pytest.raises(TrainingError):
        scratch_b(RECIPE, before, after, **more)
