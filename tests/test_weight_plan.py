"""A weight plan is a value: it compares, prints, packs to bits and refuses what is not its model."""

import pytest
import torch
from torch import nn

from secateur import WeightPlan
from secateur.errors import PlanError


def plan_of(*rows):
    return WeightPlan({"weight": torch.tensor(rows, dtype=torch.bool)})


def test_counts_and_prints_what_goes():
    plan = plan_of([1, 0, 1], [0, 0, 1])
    assert (plan.removed_count, plan.weight_count, plan.removed) == (3, 6, 0.5)
    assert "weight: 6 -> 3" in str(plan)
    assert str(WeightPlan()) == "WeightPlan: nothing is removed"


def test_equal_when_the_same_weights_go():
    assert plan_of([1, 0]) == plan_of([1, 0])
    assert plan_of([1, 0]) != plan_of([0, 1])
    assert plan_of([1, 1]) == WeightPlan()
    assert hash(plan_of([1, 1])) == hash(WeightPlan())
    assert plan_of([1, 0]) != "a plan"


def test_a_later_change_of_the_mask_given_does_not_reach_the_plan():
    mask = torch.tensor([[True, True]])
    plan = WeightPlan({"weight": mask})
    mask[0, 0] = False
    assert plan.removed_count == 0


@pytest.mark.parametrize("shape", [(), (1,), (7,), (8,), (3, 5), (2, 3, 1, 3), (0, 4)])
def test_a_file_gives_back_the_same_plan(tmp_path, shape):
    generator = torch.Generator().manual_seed(0)
    plan = WeightPlan({"a": torch.rand(shape, generator=generator) > 0.5, "b.c": torch.ones(3, dtype=torch.bool)})
    plan.save(tmp_path / "plan")
    read = WeightPlan.load(tmp_path / "plan")
    assert read == plan
    assert {n: m.shape for n, m in read.kept.items()} == {n: m.shape for n, m in plan.kept.items()}


def test_a_file_takes_a_bit_for_each_weight(tmp_path):
    WeightPlan({"w": torch.ones(1000, 800, dtype=torch.bool)}).save(tmp_path / "plan")
    assert 100_000 < (tmp_path / "plan").stat().st_size < 101_000


@pytest.mark.parametrize(
    "damage", [lambda raw: raw[:40], lambda raw: b"", lambda raw: raw[:-3], lambda raw: b"{}" * 40]
)
def test_a_damaged_file_is_refused(tmp_path, damage):
    plan_of([1, 0]).save(tmp_path / "plan")
    (tmp_path / "plan").write_bytes(damage((tmp_path / "plan").read_bytes()))
    with pytest.raises(PlanError, match="plan"):
        WeightPlan.load(tmp_path / "plan")


def test_another_tensor_file_is_refused(tmp_path):
    from safetensors.torch import save_file

    save_file({"w": torch.ones(2)}, tmp_path / "plan")
    with pytest.raises(PlanError, match="no weight plan"):
        WeightPlan.load(tmp_path / "plan")
    with pytest.raises(PlanError, match="can be read"):
        WeightPlan.load(tmp_path / "missing")


def test_a_mask_that_is_no_mask_is_refused():
    with pytest.raises(PlanError, match=r"float32.*boolean"):
        WeightPlan({"weight": torch.ones(2)})
    with pytest.raises(PlanError, match=r"list.*boolean"):
        WeightPlan({"weight": [True]})


@pytest.mark.parametrize("kept", [{"bias": torch.ones(2, 3, dtype=torch.bool)}, {"w": torch.ones(2).bool()}])
def test_a_plan_of_another_model_changes_nothing(kept):
    model = nn.Linear(3, 2)
    before = model.weight.detach().clone()
    plan = WeightPlan({"weight": torch.zeros(2, 3, dtype=torch.bool), **kept})
    with pytest.raises(PlanError, match="of another"):
        plan.apply_(model)
    assert torch.equal(model.weight, before)


def test_what_is_zero_is_a_plan():
    model = nn.Linear(2, 2)
    plan = plan_of([1, 0], [0, 1])
    plan.apply_(model)
    assert WeightPlan.of_zeros(model, ["weight"]) == plan
    with pytest.raises(PlanError, match="no_such"):
        WeightPlan.of_zeros(model, ["no_such"])


def test_removed_weights_are_positive_zeros():
    model = nn.Linear(2, 1)
    with torch.no_grad():
        model.weight.fill_(-3.0)
    plan_of([0, 1]).apply_(model)
    assert not torch.signbit(model.weight[0, 0])
