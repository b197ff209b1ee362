"""A budget is met by the fewest channels, within its limits, or says what can be reached."""

from __future__ import annotations

import math
import re
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from secateur.budget import MEASURES, Budget, Limits, kept_counts, meet
from secateur.errors import BudgetError

from .networks import QUICK


@st.composite
def problems(draw):
    """Group widths, the order in which their channels go, a cost that falls with every channel, and limits."""
    widths = np.array(draw(st.lists(st.integers(1, 24), min_size=1, max_size=5)))
    order = draw(st.permutations([k for k, width in enumerate(widths) for _ in range(width)]))
    prices = np.array(draw(st.lists(st.integers(1, 9), min_size=len(widths), max_size=len(widths))), dtype=float)
    limits = Limits(min_keep=draw(st.integers(1, 6)), round_to=draw(st.sampled_from([1, 2, 4, 8])))
    is_quadratic = draw(st.booleans())

    def cost(counts):
        own = float(prices @ counts)
        return own + float(counts[:-1] @ counts[1:]) if is_quadratic else own

    return widths, order, cost, limits


def fractions():
    return st.floats(0, 0.999)


def outcome(remove, problem):
    """What `meet` gives, or None where it says that the budget is out of reach."""
    widths, order, cost, limits = problem
    try:
        return meet(Budget(remove), order, widths, limits, cost)
    except BudgetError:
        return None


@QUICK
@given(problems(), fractions())
def test_what_is_left_is_at_most_the_target_and_one_channel_less_would_exceed_it(problem, remove):
    widths, order, cost, limits = problem
    kept = outcome(remove, problem)
    if kept is None:
        return
    target = (1 - remove) * cost(widths) * (1 + 1e-8)
    assert cost(kept) <= target
    counts = [kept_counts(np.bincount(order[:n], minlength=len(widths)), widths, limits) for n in range(len(order) + 1)]
    first = next(n for n, count in enumerate(counts) if (count == kept).all())
    assert first == 0 or cost(counts[first - 1]) > target * (1 - 2e-8)


@QUICK
@given(problems(), fractions(), fractions())
def test_a_larger_budget_contains_the_smaller_one(problem, one, other):
    small, large = (outcome(remove, problem) for remove in sorted((one, other)))
    if large is not None:
        assert small is not None
        assert (large <= small).all()


@QUICK
@given(problems(), fractions())
def test_limits_are_honoured(problem, remove):
    widths, _, _, limits = problem
    kept = outcome(remove, problem)
    if kept is None:
        return
    assert (kept >= np.minimum(widths, limits.min_keep)).all()
    changed = kept < widths
    assert (kept[changed] % limits.round_to == 0).all()
    assert (kept[widths < limits.round_to] == widths[widths < limits.round_to]).all()


@QUICK
@given(problems())
def test_the_error_names_the_largest_budget_that_is_reached(problem):
    widths, order, cost, limits = problem
    with pytest.raises(BudgetError, match="at most") as caught:
        meet(Budget(0.9999999), order, widths, limits, lambda counts: cost(counts) + cost(widths))
    assert "Ask for less" in str(caught.value)
    least = cost(kept_counts(np.bincount(order, minlength=len(widths)), widths, limits))
    if least > 0.001 * cost(widths):
        with pytest.raises(BudgetError) as caught:
            meet(Budget(0.9995), order, widths, limits, cost)
        named = float(re.search(r"at most ([\d.]+)%", str(caught.value))[1]) / 100
        assert 0 <= 1 - least / cost(widths) - named < 0.001 + 1e-9
        assert outcome(max(0.0, named - 1e-12), problem) is not None


def test_the_error_repeats_what_was_asked_and_what_limits_it():
    with pytest.raises(BudgetError, match=r"asked to remove 80\.0% of macs; at most 60\.0% .*min_keep=4.*\(a, b pro"):
        meet(Budget(0.8, "macs"), [0] * 10, np.array([10]), Limits(("a", "b"), min_keep=4), lambda counts: counts[0])


def test_the_order_decides_which_group_pays():
    linear = lambda counts: float(counts.sum())  # noqa: E731
    widths = np.array([3, 3])
    assert meet(Budget(0.5), [0, 0, 0, 1, 1, 1], widths, Limits(), linear).tolist() == [1, 2]  # the last one stays
    assert meet(Budget(0.5), [1, 0, 1, 0, 1, 0], widths, Limits(), linear).tolist() == [2, 1]


def test_removing_nothing_keeps_everything():
    assert meet(Budget(0.0), [0, 0], np.array([2]), Limits(round_to=2), lambda counts: counts[0]).tolist() == [2]


@pytest.mark.parametrize("removed", [range(9)])
def test_rounding_goes_down_to_the_step_and_never_below_the_least(removed):
    kept = [int(kept_counts(np.array([n]), np.array([9]), Limits(min_keep=3, round_to=4))[0]) for n in removed]
    assert kept == [9, 8, 4, 4, 4, 4, 4, 4, 4]


def test_exact_fractions_are_met_exactly():
    """0.1 + 0.2 of ten channels are three, not four: rounding of the target must not cost a channel."""
    for remove in (0.1 + 0.2, 0.3, 1 - 0.7):
        assert meet(Budget(remove), [0] * 10, np.array([10]), Limits(), lambda counts: counts[0]).tolist() == [7]


@pytest.mark.parametrize("remove", [1.0, -0.1, math.nan, math.inf, "0.5", True, None])
def test_a_fraction_outside_0_to_1_is_refused(remove):
    with pytest.raises(BudgetError, match=r"expected a fraction in \[0, 1\), e\.g\. 0\.3 for 30 %"):
        Budget(remove)


def test_a_percentage_is_told_what_it_means():
    with pytest.raises(BudgetError, match=r"remove=45: .*e\.g\. 0\.45 for 45 %"):
        Budget(45)


def test_any_real_number_is_a_fraction():
    assert Budget(np.float32(0.5)) == Budget(Fraction(1, 2)) == Budget(0.5)
    assert Budget(0) == Budget(0.0)


def test_what_is_counted_is_one_of_four():
    assert {Budget(0.1, of).of for of in MEASURES} == set(MEASURES)
    with pytest.raises(BudgetError, match="of='flops': expected one of channels, macs, params, bytes"):
        Budget(0.1, "flops")


@pytest.mark.parametrize("name", ["min_keep", "round_to"])
@pytest.mark.parametrize("value", [0, -1, 2.5, True, None])
def test_limits_are_whole_numbers_of_channels(name, value):
    with pytest.raises(BudgetError, match=f"{name}={value!r}: expected a whole number"):
        Limits(**{name: value})


def test_one_protected_path_may_be_given_alone():
    assert Limits(protect="layer1") == Limits(protect=["layer1"])
