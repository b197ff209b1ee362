"""AMC's walk through the widths: bounds, states, costs."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from secateur.errors import BudgetError
from secateur.methods._amc_walk import layers_of

from ..contract.cases import CASES
from .amc_toys import FIRST, LAST, SECOND, WHOLE, chain, problem_of, reading_of, walk_of


def test_the_bound_leaves_room_for_the_least_of_what_follows():
    """Half of 11,776 MACs may be left. With b at its least, 2, three channels cost 6112 and two 4096."""
    walk = walk_of(problem_of(chain()))
    assert walk.whole == WHOLE == 11_776
    assert [choices.tolist() for choices in walk.choices] == [[1, 2, 3, 4], [2, 3, 4, 5, 6, 7, 8]]
    assert FIRST * 3 + SECOND * 3 * 2 + LAST * 2 == 6112
    assert walk.target == pytest.approx(5888)
    assert walk.clamped([], 1.0) == 2
    assert walk.clamped([], 0.2) == 1
    # 2 channels leave 5888 - 3456 = 2432 for b * (288 + 32): 7 of 8.
    assert walk.clamped([2], 1.0) == 7
    assert walk.clamped([2], 0.5) == 4


def test_without_a_bound_an_action_is_taken_as_it_is():
    walk = walk_of(problem_of(chain()), is_bounded=False)
    assert walk.clamped([], 1.0) == 4
    assert walk.clamped([4], 0.0) == 2  # what stays whatever happens


@pytest.mark.parametrize("of", ["macs", "params", "channels", "bytes"])
@pytest.mark.parametrize("case", ["plain", "residual", "grouped", "attention"])
def test_no_trajectory_exceeds_the_budget(case, of):
    problem = CASES[case].problem(0.4, of)
    walk = walk_of(problem)
    target = 0.6 * problem.graph.costs().of(of)

    @settings(max_examples=25, deadline=None, derandomize=True)
    @given(st.lists(st.floats(0, 1), min_size=len(walk), max_size=len(walk)))
    def holds(actions):
        chosen = []
        for action in actions:
            chosen.append(walk.clamped(chosen, action))
        assert walk.cost(chosen) <= target * (1 + 1e-9)
        completed = walk.completed(chosen)
        assert all(one >= other for one, other in zip(completed, chosen, strict=True))
        assert walk.cost(completed) <= target * (1 + 1e-9)

    holds()


def test_what_was_removed_beyond_the_budget_is_given_back():
    problem = CASES["plain"].problem(0.3, "channels")
    walk = walk_of(problem)
    least = [int(choices[0]) for choices in walk.choices]
    assert sum(walk.completed(least)) == 30 - math.ceil(0.3 * 30)
    assert walk.completed([int(choices[-1]) for choices in walk.choices]) == (10, 8, 12)  # does not meet it: as it is


def test_widths_are_multiples_and_respect_every_least_width():
    problem = CASES["plain"].problem(0.3, "channels", limits={"round_to": 4, "min_keep": 3})
    assert [choices.tolist() for choices in walk_of(problem).choices] == [[4, 8, 10], [4, 8], [4, 8, 12]]
    assert walk_of(problem, keep_at_least=0.45).choices[0].tolist() == [8, 10]


def test_the_state_is_that_of_the_paper():
    """t, n, c, h, w, stride, k and MACs scaled over layers, then reduced, rest and the action before."""
    problem = problem_of(chain())
    walk = walk_of(problem)
    first = walk.state([])
    # The reader of the 4 channels is 8 x 4 x 3 x 3 with stride 2 on 8 x 8; of the 8 channels 2 x 8 x 1 x 1 on 4 x 4.
    assert first.dtype == np.float32
    assert first[:8].tolist() == [0, 1, 0, 1, 1, 1, 1, 1]
    assert first[8:].tolist() == pytest.approx([0, LAST * 8 / WHOLE, 1])
    second = walk.state([2])
    assert second[:8].tolist() == [1, 0, 1, 0, 0, 0, 0, 0]
    reduced = (FIRST * 2 + SECOND * 2 * 8) / WHOLE
    assert second[8:].tolist() == pytest.approx([reduced, 0, 0.5])


@pytest.mark.parametrize(
    ("of", "costs"), [("params", [8 * 4 * 9, 16]), ("bytes", [8 * 288, 128]), ("channels", [4, 8])]
)
def test_the_states_costs_are_of_what_the_budget_counts(of, costs):
    problem = problem_of(chain(), of=of)
    assert [layer.cost for layer in layers_of(problem, reading_of(problem))] == costs


def test_a_layer_that_reads_two_groups_costs_once():
    problem = CASES["concat"].problem(of="macs")
    layers = {layer.group: layer for layer in layers_of(problem, reading_of(problem))}
    assert sorted(layer.cost for layer in layers.values()) == [0, 2 * 10 * 3, 2 * 64 * 14 * 10 * 9]
    assert {layer.inputs for layer in layers.values()} == {14, 10}


def test_layers_on_one_stream_are_one_decision_and_depthwise_follows():
    residual = layers_of(CASES["residual"].problem(), reading_of(CASES["residual"].problem()))
    assert [layer.group for layer in residual] == ["stem", "conv1", "conv3", "conv4"]
    grouped = CASES["grouped"].problem(of="macs")
    walk = walk_of(grouped)
    assert [layer.group for layer in walk.layers][-1] == "expand"
    assert [int(choices[-1]) for choices in walk.choices] == [4, 6, 10]
    by_one = walk.cost([4, 6, 10]) - walk.cost([4, 6, 9])
    assert by_one == 2 * 64 * (12 + 9) + 2 * 3  # its own convolution, the depthwise one and the head


def test_a_budget_out_of_reach_says_what_is_reachable():
    with pytest.raises(BudgetError, match=r"at most 8\d\.\d% can go with keep_at_least=0.2"):
        walk_of(problem_of(chain(), remove=0.95))
