"""The answer: paired over seeds, against scratch, random and dense, in words that say no more than the numbers."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from secateur.compare.analysis import Cell, Difference, comparisons, difference, interval, outcomes, sentence
from secateur.compare.store import COLUMNS, Row

WAYS = {"finetune": 0.0, "scratch_e": -0.02, "scratch_b": 0.001}


def row(**given):
    base = dict.fromkeys(COLUMNS) | {"kind": "recover", "model": "net", "data": "set", "status": "done", "seed": 0}
    base |= {"macs": 10, "params": 5, "of_what": "macs", "remove": 0.5, "test_count": 10_000}
    return Row(base | given)


def results(seeds=(0, 1, 2)):
    found = []
    for seed in seeds:
        shift, wiggle = 0.05 * seed, 0.0005 * (seed - 1)
        found.append(row(recovery="dense", of_what=None, remove=None, seed=seed, metric=0.9 + shift))
        for method, level in (("l1_filter", 0.88), ("random", 0.85)):
            for recovery, gap in WAYS.items():
                metric = level + gap + shift + wiggle * (recovery == "finetune")
                found.append(row(method=method, label=method, recovery=recovery, seed=seed, metric=metric))
    return outcomes(found)


def gap_of(found, recovery, other):
    own = [g for g in comparisons(found) if (g.one.label, g.one.recovery) == ("l1_filter", "finetune")]
    return next(g for g in own if (g.other.recovery, g.other.label) == (recovery, other))


def test_pairs_take_out_what_seeds_share():
    """Seeds are five points apart, and the difference is known to a few hundredths."""
    found = results()
    scratch = gap_of(found, "scratch_e", "l1_filter")
    assert scratch.mean == pytest.approx(0.02, abs=1e-3)
    assert scratch.high - scratch.low < 0.004
    assert scratch.verdict == "better"
    assert gap_of(found, "scratch_b", "l1_filter").verdict in ("as good", "open")
    assert gap_of(found, "finetune", "random").verdict == "better"
    assert gap_of(found, "dense", None).verdict == "worse"


def test_a_method_is_held_against_the_control_of_its_kind_and_budget_only():
    found = results()
    others = {(g.other.label, g.other.recovery) for g in comparisons(found) if g.one.label == "l1_filter"}
    assert others == {("l1_filter", "scratch_e"), ("l1_filter", "scratch_b"), ("random", "finetune"), (None, "dense")}
    weights = row(method="magnitude", label="magnitude", of_what="weights", recovery="finetune", metric=0.9)
    mixed = outcomes([weights, row(method="random", label="random", recovery="finetune", metric=0.8)])
    assert not comparisons(mixed)


def test_the_interval_is_students():
    gaps = [0.01, 0.03, 0.02, 0.05]
    wanted = stats.t.interval(0.95, 3, loc=np.mean(gaps), scale=stats.sem(gaps))
    assert interval(gaps) == pytest.approx(wanted)
    assert interval([0.1]) == (-math.inf, math.inf)


def test_equal_differences_are_not_held_to_be_certain():
    """Two seeds that differ by the same number of test images tell no more than that number's own grain."""
    low, high = interval([0.01, 0.01], finest=1 / 400)
    assert high - low == pytest.approx(2 * 12.706 / 400 / math.sqrt(2), rel=1e-3)


def test_one_seed_gives_no_verdict():
    gap = gap_of(results(seeds=(0,)), "scratch_e", "l1_filter")
    assert gap.verdict == "one seed"
    assert "says nothing of chance" in sentence(gap)


def test_failed_jobs_and_unshared_seeds_do_not_count():
    rows = [
        row(method="l1_filter", label="l1_filter", recovery="finetune", seed=0, metric=0.9),
        row(method="l1_filter", label="l1_filter", recovery="finetune", seed=1, status="failed"),
        row(method="l1_filter", label="l1_filter", recovery="scratch_e", seed=2, metric=0.8),
    ]
    one, other = outcomes(rows)
    assert list(one.values) == [0]
    assert math.isnan(one.std)
    assert difference(one, other) is None


def test_where_lower_is_better_the_sign_turns():
    given = {"method": "l1_filter", "label": "l1_filter", "seed": 0}
    one, other = outcomes(
        [row(recovery="finetune", metric=2.0, **given), row(recovery="scratch_e", metric=3.0, **given)]
    )
    assert difference(one, other, higher_is_better=False).mean == 1.0


@pytest.mark.parametrize(
    ("low", "high", "said"),
    [
        (0.008, 0.014, "better than the same network from scratch, as many epochs, by 1.10 ± 0.30 points"),
        (-0.014, -0.008, "worse than"),
        (-0.002, 0.0025, "as good as the same network from scratch, as many epochs within 0.3 points"),
        (-0.02, 0.03, "cannot be told from"),
    ],
)
def test_words_follow_the_interval(low, high, said):
    one = Cell("net", "set", "l1_filter", "l1_filter", "macs", 0.5, "finetune")
    other = Cell("net", "set", "l1_filter", "l1_filter", "macs", 0.5, "scratch_e")
    assert said in sentence(Difference(one, other, (low + high) / 2, low, high, 3))
