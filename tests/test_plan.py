"""A plan is a value: it checks itself, compares by what it removes, and survives JSON."""

import json

import numpy as np
import pytest
import torch

from secateur.errors import PlanError
from secateur.plan import Plan


def test_kept_and_removed_are_complements():
    plan = Plan.from_removed({"a": [2, 0]}, {"a": 4})
    assert plan.kept["a"] == (1, 3)
    assert plan.removed("a") == (0, 2)
    assert plan.removed_count == 2


def test_a_group_listed_whole_equals_a_group_not_listed():
    assert Plan({"a": (0, 1)}, {"a": 2}) == Plan()
    assert Plan({"a": (0,)}, {"a": 2}) != Plan({"a": (1,)}, {"a": 2})


def test_save_and_load_give_the_same_plan(tmp_path):
    plan = Plan({"a": (0, 2)}, {"a": 3})
    plan.save(tmp_path / "plan.json")
    assert Plan.load(tmp_path / "plan.json") == plan
    assert [p.name for p in tmp_path.iterdir()] == ["plan.json"]


@pytest.mark.parametrize(
    ("kept", "widths", "message"),
    [
        ({"a": ()}, {"a": 2}, "would be emptied"),
        ({"a": (2,)}, {"a": 2}, "has channels 0 to 1"),
        ({"a": (-1,)}, {"a": 2}, "has channels 0 to 1"),
        ({"a": (1, 1)}, {"a": 2}, "kept twice"),
        ({"a": (1,)}, {}, "no width"),
    ],
)
def test_a_malformed_plan_is_refused(kept, widths, message):
    with pytest.raises(PlanError, match=message):
        Plan(kept, widths)


@pytest.mark.parametrize(
    ("indices", "message"),
    [
        ([1.5], r"expected indices of channels; found 1\.5"),
        (torch.tensor([0.0, 1.0]), "expected indices"),
        ([True, False, False], r"found True\. Of a mask give mask\.nonzero"),
        (torch.tensor([True, False, False]), "Of a mask"),
        (np.array([True, False, False]), "Of a mask"),
    ],
)
def test_what_is_no_index_is_refused_whether_kept_or_removed(indices, message):
    with pytest.raises(PlanError, match=message):
        Plan.from_removed({"a": indices}, {"a": 3})
    with pytest.raises(PlanError, match=message):
        Plan({"a": indices}, {"a": 3})


@pytest.mark.parametrize("indices", [torch.tensor([2, 0]), np.array([2, 0]), range(0, 3, 2)])
def test_indices_may_come_as_a_tensor_or_an_array(indices):
    assert Plan.from_removed({"a": indices}, {"a": 3}) == Plan({"a": [1]}, {"a": 3})
    assert Plan({"a": indices}, {"a": 3}).kept["a"] == (0, 2)


@pytest.mark.parametrize(
    "text", ["{", "[]", json.dumps({"format": 99, "groups": {}}), '{"format": 1, "groups": {"a": 3}}']
)
def test_text_that_is_no_plan_is_refused(text):
    with pytest.raises(PlanError):
        Plan.from_json(text)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(PlanError, match="nowhere"):
        Plan.load(tmp_path / "nowhere.json")


def test_removed_branches_survive_json_and_make_plans_differ():
    plan = Plan({"conv": (0,)}, {"conv": 2}, ("b", "a", "b"))
    assert plan.removed_branches == ("a", "b")
    assert Plan.from_json(plan.to_json()) == plan != Plan({"conv": (0,)}, {"conv": 2})
    assert '"format": 2' in plan.to_json()
    lines = (
        "Plan: 1 channels removed, and 2 residual branches",
        "  conv: 2 -> 1",
        "  a: branch removed",
        "  b: branch removed",
    )
    assert str(plan).splitlines() == list(lines)


def test_a_plan_of_branches_only_is_not_empty():
    assert not Plan(removed_branches="block").is_empty
    assert Plan({"conv": (0, 1)}, {"conv": 2}).is_empty


def test_a_plan_without_branches_is_written_as_it_always_was():
    assert Plan({"conv": (0,)}, {"conv": 2}).to_json().startswith('{"format": 1, "groups":')


@pytest.mark.parametrize("branches", [[1], "block"])
def test_branches_that_are_no_list_of_names_are_refused(branches):
    text = json.dumps({"format": 2, "removed_branches": branches, "groups": {}})
    with pytest.raises(PlanError, match="list of names"):
        Plan.from_json(text)
