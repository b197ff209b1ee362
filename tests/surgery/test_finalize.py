"""Masks of torch.nn.utils.prune become plain weights."""

import pytest
import torch
from torch import nn
from torch.nn.utils import prune as torch_prune

import secateur as sc
from secateur.errors import MethodError


def masked_model():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(2, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 4, 3))
    torch_prune.l1_unstructured(model[0], "weight", amount=0.5)
    torch_prune.random_unstructured(model[0], "weight", amount=0.25)  # a second mask makes a container of both
    torch_prune.ln_structured(model[3], "weight", amount=1, n=2, dim=0)
    torch_prune.l1_unstructured(model[3], "bias", amount=1)
    return model


def test_the_copy_computes_the_same_with_plain_parameters():
    model, images = masked_model(), torch.randn(2, 2, 4, 4)
    plain = sc.finalize(model)
    assert torch.equal(plain(images), model(images))
    assert {name for name, _ in plain.named_parameters()} == {"0.weight", "0.bias", "3.weight", "3.bias"}
    assert not list(plain.buffers())
    assert not any(module._forward_pre_hooks for module in plain.modules())
    assert torch_prune.is_pruned(model), "the model was changed"


def test_masked_weights_are_plus_zero_and_known():
    plain = sc.finalize(masked_model())
    zeros = plain[0].weight[plain[0].weight == 0]
    assert len(zeros) == 72 - 27
    assert not torch.signbit(zeros).any()
    plan = sc.WeightPlan.of(plain)
    assert set(plan) == {"0.weight", "3.weight", "3.bias"}
    assert plan.removed_count == (72 - 27) + 16 + 1


def test_frozen_and_tied_weights_stay_so():
    model = nn.Sequential(nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False))
    model[1].weight = model[0].weight
    mask = torch.eye(3)
    for layer in model:
        torch_prune.custom_from_mask(layer, "weight", mask)
    model[0].weight_orig.requires_grad_(False)
    plain = sc.finalize(model)
    assert plain[0].weight is plain[1].weight
    assert not plain[0].weight.requires_grad


def test_a_model_without_masks_comes_back_as_a_copy():
    model = nn.Linear(2, 2)
    plain = sc.finalize(model)
    assert plain is not model
    assert torch.equal(plain.weight, model.weight)
    assert not sc.WeightPlan.of(plain).removed_count


def test_masked_models_are_pointed_here():
    model = masked_model()
    with pytest.raises(MethodError, match=r"'weight' of module '0' .* secateur\.finalize"):
        sc.sparsify(model, budget=sc.Budget(0.5, "weights"))
    with pytest.raises(MethodError, match=r"secateur\.finalize"):
        sc.prune(model, torch.randn(1, 2, 4, 4), budget=sc.Budget(0.5))
    assert sc.sparsify(sc.finalize(model), budget=sc.Budget(0.8, "weights")).removed >= 0.8


def test_it_can_be_saved(tmp_path):
    model = masked_model()
    sc.save(sc.finalize(model), tmp_path)
    back = sc.load(tmp_path, model=nn.Sequential(nn.Conv2d(2, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 4, 3)))
    images = torch.randn(2, 2, 4, 4)
    assert torch.equal(back(images), model(images))
    assert sc.WeightPlan.of(back) == sc.WeightPlan.of(sc.finalize(model))
