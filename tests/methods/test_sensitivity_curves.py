"""What follows from curves, on curves written down by hand."""

from __future__ import annotations

import json
import math

import pytest
import torch
from torch import nn

from secateur import Budget, Limits, SensitivityCurves, trace
from secateur.errors import BudgetError, MethodError, StoreError, UnknownName
from secateur.methods import L1Filter, Problem
from secateur.methods.sensitivity import GroupCurve


def curve(width: int, points: dict[int, float], saved_per_channel: int = 1) -> GroupCurve:
    counts = tuple(points)
    saved = tuple(count * saved_per_channel for count in counts)
    fractions = tuple(count / width for count in counts)
    return GroupCurve(width, fractions, counts, tuple(points.values()), tuple(points.values()), saved, saved)


def curves_of(groups: dict[str, GroupCurve], **options) -> SensitivityCurves:
    base = next(iter(groups.values())).metric[0]
    return SensitivityCurves(
        **{
            "metric_name": "accuracy",
            "higher_is_better": True,
            "base_metric": base,
            "base_loss": 0.5,
            "base_macs": 100,
            "base_params": 50,
            "groups": groups,
            **options,
        }
    )


# A published curve that falls and rises again: 92.87 intact, 90.07 without 20 %, 91.04 without 40 %.
NOISY = curve(10, {0: 92.87, 1: 92.5, 2: 90.07, 3: 91.5, 4: 91.04, 8: 50.0})


def test_the_envelope_never_falls_and_is_never_below_zero():
    curves = curves_of({"a": NOISY, "b": curve(4, {0: 92.87, 1: 93.0, 2: 92.0, 3: 92.5})})
    assert curves.envelope("a") == pytest.approx((0, 0.37, 2.8, 2.8, 2.8, 42.87))
    assert curves.envelope("b") == pytest.approx((0, 0, 0.87, 0.87))
    assert curves.drops("b") == pytest.approx((0, -0.13, 0.87, 0.37))


@pytest.mark.parametrize(
    ("tolerance", "fraction"), [(0, 0.0), (0.37, 0.1), (1.9, 0.1), (2.79, 0.1), (2.8, 0.4), (50, 0.8)]
)
def test_a_fraction_counts_only_if_all_smaller_ones_do(tolerance, fraction):
    # 40 % alone costs 1.83, but 20 % costs 2.8.
    assert curves_of({"a": NOISY}).fractions_within(tolerance) == {"a": fraction}


def test_for_an_error_a_rise_is_a_drop():
    curves = curves_of({"a": curve(4, {0: 1.0, 1: 0.5, 2: 1.25, 3: 3.0})}, higher_is_better=False)
    assert curves.drops("a") == (0.0, -0.5, 0.25, 2.0)
    assert curves.fractions_within(0.3) == {"a": 0.5}


def test_a_metric_that_is_no_number_is_never_within():
    curves = curves_of({"a": curve(4, {0: 1.0, 1: math.nan, 2: 1.0})})
    assert curves.fractions_within(1e9) == {"a": 0.0}


@pytest.mark.parametrize("tolerance", [-1, math.nan, math.inf, "1", True])
def test_a_tolerance_is_a_number_from_zero(tolerance):
    with pytest.raises(MethodError, match=r"expected an allowed drop"):
        curves_of({"a": NOISY}).fractions_within(tolerance)


def two_layers() -> tuple[nn.Module, torch.Tensor]:
    """Two groups, "0" and "1", of 4 channels each."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(2, 4), nn.ReLU(), nn.Linear(4, 4), nn.Linear(4, 1)), torch.zeros(1, 2)


FLAT_THEN_STEEP = curve(4, {0: 0.9, 2: 0.9, 3: 0.5})
STEADY = curve(4, {0: 0.9, 1: 0.8, 2: 0.7, 3: 0.6})


# Drops of the next channel, "0": 0, 0, .4, -; "2": .1, .2, .3, -. So the order is 0 0 2 2 2 0 and then the rest.
@pytest.mark.parametrize(
    ("channels", "expected"),
    [(1, (1, 0)), (2, (2, 0)), (3, (2, 1)), (4, (2, 2)), (5, (2, 3)), (6, (3, 3))],
)
def test_a_budget_is_shared_out_by_the_drop_it_costs(channels, expected):
    model, example = two_layers()
    curves = curves_of({"0": FLAT_THEN_STEEP, "2": STEADY})
    found = curves.allocation_for(Budget(channels / 8), trace(model, example))
    assert found == {"0": expected[0] / 4, "2": expected[1] / 4}


def test_drops_between_measured_points_are_interpolated():
    model, example = two_layers()
    # The next channels of "0" cost .1, .2, .3 by interpolation; those of "2" .15, .25.
    curves = curves_of({"0": curve(4, {0: 0.9, 3: 0.6}), "2": curve(4, {0: 0.9, 1: 0.75, 2: 0.65})})
    graph = trace(model, example)
    found = [curves.allocation_for(Budget(count / 8), graph) for count in range(1, 6)]
    assert [(4 * a["0"], 4 * a["2"]) for a in found] == [(1, 0), (1, 1), (2, 1), (2, 2), (3, 2)]


def test_channels_beyond_the_measured_ones_go_last():
    model, example = two_layers()
    curves = curves_of({"0": curve(4, {0: 0.9, 1: 0.9}), "2": STEADY})
    found = curves.allocation_for(Budget(4 / 8), trace(model, example))
    assert found == {"0": 0.25, "2": 0.75}
    assert curves.allocation_for(Budget(5 / 8), trace(model, example)) == {"0": 0.5, "2": 0.75}


@pytest.mark.parametrize("of", ["macs", "params", "bytes", "channels"])
@pytest.mark.parametrize("remove", [0.1, 0.33, 0.6])
def test_the_closed_form_cost_of_an_allocation_meets_the_budget(of, remove):
    model, example = two_layers()
    graph, budget = trace(model, example), Budget(remove, of=of)
    fractions = curves_of({"0": FLAT_THEN_STEEP, "2": STEADY}).allocation_for(budget, graph)
    counts = graph.costs.widths - [round(4 * fractions[name]) for name in graph.groups]
    whole = graph.costs.value(of, graph.costs.widths)
    assert graph.costs.value(of, counts) <= (1 - remove) * whole + 1e-6


def test_a_filter_method_takes_the_allocation():
    model, example = two_layers()
    graph, budget = trace(model, example), Budget(0.5)
    fractions = curves_of({"0": FLAT_THEN_STEEP, "2": STEADY}).allocation_for(budget, graph)
    plan = L1Filter(allocation=fractions).decide(Problem(model, graph, budget)).plan
    assert {name: len(plan.removed(name)) / 4 for name in fractions} == fractions


def test_an_allocation_keeps_to_the_limits():
    model, example = two_layers()
    curves, graph = curves_of({"0": FLAT_THEN_STEEP, "2": STEADY}), trace(model, example)
    assert curves.allocation_for(Budget(0.25), graph, Limits(round_to=2)) == {"0": 0.5, "2": 0.0}
    assert curves.allocation_for(Budget(0.25), graph, Limits(protect=("0",))) == {"2": 0.5}
    with pytest.raises(BudgetError, match=r"at most 25\.0% can go"):
        curves.allocation_for(Budget(0.5), graph, Limits(protect=("0",), min_keep=2))
    with pytest.raises(BudgetError, match=r"at most 0\.0% can go"):
        curves.allocation_for(Budget(0.5), graph, Limits(protect=("0", "2")))
    with pytest.raises(UnknownName, match=r"no module is called 'head'"):
        curves.allocation_for(Budget(0.5), graph, Limits(protect=("head",)))


def test_curves_of_another_model_are_refused():
    model, example = two_layers()
    for groups in ({"conv1": STEADY}, {"0": NOISY}):
        with pytest.raises(MethodError, match=r"the curves are of another model"):
            curves_of(groups).allocation_for(Budget(0.5), trace(model, example))


def test_curves_survive_a_file_with_values_that_are_no_numbers(tmp_path):
    groups = {"a": NOISY, "b": curve(4, {0: 92.87, 1: math.inf, 2: -math.inf})}
    curves = curves_of(groups, unremovable={"c": "protected"}, scores="L1Filter()", base_loss=math.inf)
    curves.save(tmp_path / "curves.json")
    assert SensitivityCurves.load(tmp_path / "curves.json") == curves
    assert [path.name for path in tmp_path.iterdir()] == ["curves.json"]
    not_a_number = curves_of({"a": curve(4, {0: 1.0, 1: math.nan})})
    assert math.isnan(SensitivityCurves.from_json(not_a_number.to_json()).groups["a"].metric[1])


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{}", '{"format": 2}', '{"format": 1, "groups": {"a": {"width": 3}}}', '{"format": 1, "groups": 3}'],
)
def test_a_file_that_holds_no_curves_is_refused(text, tmp_path):
    (tmp_path / "curves.json").write_text(text)
    with pytest.raises(StoreError, match=r"expected the JSON of sensitivity curves"):
        SensitivityCurves.load(tmp_path / "curves.json")


def test_a_curve_of_uneven_lengths_is_refused():
    values = json.loads(curves_of({"a": NOISY}).to_json())
    values["groups"]["a"]["loss"].pop()
    with pytest.raises(StoreError, match=r"as many values everywhere"):
        SensitivityCurves.from_json(json.dumps(values))


def test_a_file_that_is_not_there_is_reported(tmp_path):
    with pytest.raises(StoreError, match=r"no sensitivity curves can be read from"):
        SensitivityCurves.load(tmp_path / "none.json")


def test_the_table_has_a_line_per_group_and_a_column_per_fraction():
    curves = curves_of(
        {"conv1": curve(4, {0: 0.9, 2: 0.8}), "b": curve(2, {0: 0.9, 1: 0.7})}, unremovable={"c": "protected"}
    )
    assert curves.to_table().splitlines() == [
        "accuracy (higher is better; base 0.9000) by fraction removed",
        "group  width      0%     50%",
        "conv1      4  0.9000  0.8000",
        "b          2  0.9000  0.7000",
        "nothing can be removed: c (protected)",
    ]
