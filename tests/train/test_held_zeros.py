"""Zeros stay exactly zero through momentum, weight decay and resuming, in every kind of loop."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from secateur import Budget, HeldZeros, WeightPlan, finetune, sparsify
from secateur.errors import PlanError, TrainingError
from secateur.train import ClassificationTask, Moment, Recipe, fit

TASK = ClassificationTask()


def model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(12, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))


def batches():
    generator = torch.Generator().manual_seed(1)
    return [(torch.randn(6, 3, 2, 2, generator=generator), torch.arange(6) % 3) for _ in range(4)]


OPTIMIZERS = {
    "momentum from before": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True, weight_decay=0.1),
    "adam": lambda p: torch.optim.Adam(p, lr=0.05, weight_decay=0.1),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.05, weight_decay=0.1, amsgrad=True),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=0.01, momentum=0.9, centered=True),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_zeros_hold_though_the_optimizer_remembers_them_moving(name):
    """The optimizer has trained the weights before they are removed, so it has momentum on them."""
    whole = model()
    optimizer = OPTIMIZERS[name](whole.parameters())
    for images, labels in batches():
        nn.functional.cross_entropy(whole(images), labels).backward()
        optimizer.step()
        optimizer.zero_grad()
    plan = sparsify(whole, budget=Budget(0.5, "weights")).plan
    plan.apply_(whole)
    held, before = HeldZeros(plan), whole[1].weight.detach().clone()
    for step, (images, labels) in enumerate(batches()):
        nn.functional.cross_entropy(whole(images), labels).backward()
        moment = Moment(whole, optimizer, 0, 1, step, 0.1)
        held.after_backward(moment)
        optimizer.step()
        held.after_step(moment)
        optimizer.zero_grad()
        for parameter, mask in plan.kept.items():
            gone = whole.get_parameter(parameter)[~mask]
            assert not gone.any()
            assert not torch.signbit(gone).any(), "zeros are positive, so that they pack to a bit"
            for value in optimizer.state[whole.get_parameter(parameter)].values():
                if isinstance(value, torch.Tensor) and value.shape == mask.shape:
                    assert not value[~mask].any()
    kept = plan.kept["1.weight"]
    assert not torch.equal(whole[1].weight[kept], before[kept]), "the others train"


def test_without_it_zeros_come_back():
    result = sparsify(model(), budget=Budget(0.5, "weights"))
    tuned, _ = finetune(result.model, batches(), TASK, Recipe(epochs=1, lr=0.1), progress=False)
    assert WeightPlan.of_zeros(tuned, result.plan) != result.plan


def test_fine_tuning_with_it_gives_the_same_zeros_and_a_plain_model():
    result = sparsify(model(), budget=Budget(0.7, "weights"))
    recipe = Recipe(epochs=2, lr=0.1, weight_decay=0.1)
    tuned, _ = finetune(result.model, batches(), TASK, recipe, attachments=[result.hold()], progress=False)
    assert WeightPlan.of_zeros(tuned, result.plan) == result.plan
    assert list(tuned.state_dict()) == list(model().state_dict())
    assert not any(module._forward_pre_hooks or module._forward_hooks for module in tuned.modules())


class Killed(Exception):
    pass


class BreaksOff(list):
    """Batches that can be read to the end for one epoch, and not for a second."""

    reads = 0

    def __iter__(self):
        self.reads += 1
        if self.reads > 1:
            raise Killed
        return super().__iter__()


def test_a_killed_run_goes_on_with_the_same_mask_and_refuses_another(tmp_path):
    result, other = (sparsify(model(), budget=Budget(remove, "weights")) for remove in (0.5, 0.6))
    recipe = Recipe(epochs=2, lr=0.1)

    def run(attachment, loader):
        target = copy.deepcopy(result.model)
        fit(target, loader, TASK, recipe, attachments=[attachment], checkpoint_dir=tmp_path, progress=False)
        return target

    with pytest.raises(Killed):
        run(result.hold(), BreaksOff(batches()))
    with pytest.raises(TrainingError, match="another set"):
        run(other.hold(), batches())
    resumed = run(result.hold(), batches())
    straight, _ = finetune(result.model, batches(), TASK, recipe, attachments=[result.hold()], progress=False)
    pairs = zip(resumed.state_dict().values(), straight.state_dict().values(), strict=True)
    assert all(torch.equal(one, same) for one, same in pairs)


def test_state_of_another_mask_is_refused():
    first, second = (sparsify(model(), budget=Budget(r, "weights")).plan for r in (0.5, 0.6))
    with pytest.raises(TrainingError, match="another set"):
        HeldZeros(first).load_state_dict(HeldZeros(second).state_dict())
    HeldZeros(first).load_state_dict(HeldZeros(first).state_dict())


def test_a_plan_of_another_model_is_refused_at_the_first_step():
    plan = WeightPlan({"nothing": torch.ones(2, dtype=torch.bool)})
    with pytest.raises(PlanError, match="nothing"):
        finetune(model(), batches(), TASK, Recipe(epochs=1, lr=0.1), attachments=[HeldZeros(plan)], progress=False)
