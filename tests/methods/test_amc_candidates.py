"""AMC's candidates: repaired and measured from moments and data that are read once."""

from __future__ import annotations

import sys

import torch
from torch import nn

from secateur import Plan, shrink
from secateur.methods import Amc
from secateur.methods._amc_candidates import Candidates, Split, magnitudes
from secateur.recovery.moments import Sampling
from secateur.recovery.refit import Refit, refit

from ..contract.cases import CASES
from .amc_toys import DOUBLE, SHORT, TASK, batches, chain, problem_of, reading_of


def candidates_of(problem, rows=1000, ridge=0.0, split=None):
    reading = reading_of(problem)
    return Candidates(
        problem,
        split or Split.of(problem, 10_000, 10_000),
        scores={name: magnitudes(problem, name, own) for name, own in reading},
        reading=[product for _, own in reading for product in own],
        rows_per_sample=rows,
        how=Refit(ridge=ridge),
    )


def test_magnitudes_are_of_what_reads_a_channel():
    """Channel 0 is made by large weights and read by small ones."""
    model = nn.Sequential(nn.Conv2d(3, 2, 1), nn.Conv2d(2, 3, 1, bias=False)).double()
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[9.0] * 3, [1.0] * 3])[..., None, None])
        model[1].weight.copy_(torch.tensor([[0.5, -2.0], [-1.0, 0.25], [0.0, 1.0]])[..., None, None])
    problem = problem_of(model)
    ((name, reading),) = reading_of(problem)
    assert magnitudes(problem, name, reading).tolist() == [1.5, 3.25]


def test_a_channel_linear_in_others_is_recovered_exactly():
    """The last channel the reader sees is the sum of two others, and has the smallest weights."""
    model = chain()
    with torch.no_grad():
        model[0].weight[3] = model[0].weight[0]
        model[0].bias[3] = model[0].bias[0]
        model[2].weight[:, 3] *= 1e-2
    problem = problem_of(model, remove=0.1)
    candidates = candidates_of(problem)
    plan = candidates.plan({"0": 3})
    assert plan.removed("0") == (3,)
    small = shrink(candidates.repaired(plan), problem.graph, plan)
    images = batches()[0][0]
    assert not torch.allclose(shrink(model, problem.graph, plan)(images), model(images), atol=1e-9)
    torch.testing.assert_close(small(images), model(images), atol=1e-9, rtol=0)


def test_keeping_all_changes_no_weight():
    problem = problem_of(chain())
    repaired = candidates_of(problem).repaired(Plan())
    assert all(torch.equal(t, repaired.state_dict()[n]) for n, t in problem.model.state_dict().items())


def test_the_repair_from_moments_is_the_least_squares_fit_on_the_samples():
    """The same as the re-fit that reads the data, with inputs of the original network."""
    for name in ("plain", "concat", "grouped"):
        problem = CASES[name].problem(dtype=DOUBLE)
        data = problem.data
        candidates = candidates_of(problem, ridge=1e-3, split=Split(data, data))
        kept = {group: problem.graph.groups[group].width // 2 for group in candidates.scores}
        plan = candidates.plan(kept)
        how = Refit(ridge=1e-3, is_asymmetric=False, sampling=Sampling(1000, None))
        wanted = refit(problem.model, problem.graph, plan, data, TASK, how=how)
        got = candidates.repaired(plan)
        for key, tensor in wanted.state_dict().items():
            torch.testing.assert_close(got.state_dict()[key], tensor, msg=f"{name}: {key}")


class Counted:
    """Batches that count how often each was read."""

    def __init__(self, own):
        self.own, self.reads = own, [0] * len(own)

    def __iter__(self):
        for k, batch in enumerate(self.own):
            self.reads[k] += 1
            yield batch


def test_a_candidate_does_not_touch_the_data_again(monkeypatch):
    """Data are read once for the whole search, and moments are taken once."""
    data, taken = Counted(batches()), []
    real = sys.modules[Candidates.__module__].product_moments
    monkeypatch.setattr(
        sys.modules[Candidates.__module__], "product_moments", lambda *a, **k: taken.append(1) or real(*a, **k)
    )
    found = Amc(**SHORT).search(problem_of(chain(), data=data))
    assert len({tuple(e.widths.values()) for e in found.episodes}) > 1
    assert data.reads == [1, 1, 1, 1]
    assert taken == [1]


def test_calibration_and_validation_share_no_batch():
    problem = problem_of(chain(), data=batches(count=6))
    split = Split.of(problem, 12, 24)
    assert [len(split.calibration), len(split.validation)] == [2, 4]
    firsts = [batch[0][0, 0, 0, 0].item() for batch in split.calibration + split.validation]
    assert len(set(firsts)) == 6
    few = Split.of(problem, 6, 6)
    assert [len(few.calibration), len(few.validation)] == [1, 1]


def test_widths_seen_before_are_not_measured_again(monkeypatch):
    measured = []
    real = Candidates.measured
    monkeypatch.setattr(Candidates, "measured", lambda self, plan: measured.append(plan) or real(self, plan))
    found = Amc(episodes=30, warmup_episodes=29, hidden=8).search(problem_of(chain()))
    assert len(found.episodes) == 30
    assert len(measured) == len({tuple(e.widths.values()) for e in found.episodes}) < 30
