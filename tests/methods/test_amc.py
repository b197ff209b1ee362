"""AMC: rewards, searches that can be taken up again, and what is refused."""

from __future__ import annotations

import math
import sys

import numpy as np
import pytest
import torch
from torch import nn

from secateur import Budget, Plan, prune, shrink
from secateur.errors import MethodError, MissingExtra
from secateur.methods import Amc
from secateur.methods import amc as amc_module
from secateur.methods._amc_candidates import Split
from secateur.methods.amc import reward_of
from secateur.models import digits_resnet
from secateur.train import FunctionTask

from ..contract.cases import CASES
from ..train.cases import Killed
from .amc_toys import DOUBLE, SHORT, TASK, WHOLE, batches, chain, problem_of


def test_rewards_are_those_of_the_paper():
    assert reward_of(0.25) == -0.25
    assert reward_of(0.25, 1000) == pytest.approx(-0.25 * math.log(1000))
    assert reward_of(0.25, 1000) > reward_of(0.25, 2000)
    assert reward_of(0.2, 2000) > reward_of(0.25, 1000)


@pytest.mark.parametrize(
    ("reward", "of"), [("error", None), ("error_log_macs", "macs"), ("error_log_params", "params")]
)
def test_a_candidates_reward_follows_from_its_metric_and_cost(reward, of):
    problem = problem_of(chain(), remove=0.3)
    found = Amc(reward=reward, **SHORT).search(problem)
    for episode in found.episodes:
        removed = {name: range(problem.graph.groups[name].width - kept) for name, kept in episode.widths.items()}
        costs = problem.graph.costs(Plan.from_removed(removed, problem.graph.widths))
        factor = 1 if of is None else math.log(costs.of(of))
        assert episode.reward == pytest.approx(-(1 - episode.metric) * factor)
        assert episode.removed == pytest.approx(1 - costs.macs / WHOLE)
    assert found.episodes[found.best].reward == max(e.reward for e in found.episodes)


def test_a_metric_where_lower_is_better_is_the_error_itself():
    task = FunctionTask(
        inputs=lambda batch: batch[0],
        loss=lambda output, batch: output.square().mean(),
        metric=lambda output, batch: output.square().mean(1),
        name="energy",
        higher_is_better=False,
    )
    found = Amc(**SHORT).search(problem_of(chain(), task=task))
    assert all(e.reward == -e.metric < 0 for e in found.episodes)
    negative = FunctionTask(task.inputs, task.loss, lambda output, batch: output[:, 0] - 9, "below", False)
    with pytest.raises(MethodError, match="multiplies an error by a logarithm, and below=-"):
        Amc(reward="error_log_macs", **SHORT).search(problem_of(chain(), task=negative))


def test_accuracy_guaranteed_the_budget_is_an_upper_limit():
    found = Amc(reward="error_log_macs", **SHORT).search(problem_of(chain(), remove=0.5))
    removed = [e.removed for e in found.episodes]
    assert max(removed) <= 0.5 + 1 / 8
    assert len({round(r, 3) for r in removed}) > 2


# -- the search -----------------------------------------------------------------------------------------------------


def test_the_same_seed_searches_the_same_candidates():
    first, second = (Amc(**SHORT).search(problem_of(chain(), seed=4)) for _ in range(2))
    assert first.episodes == second.episodes
    assert first.decision.plan == second.decision.plan
    other = Amc(**SHORT).search(problem_of(chain(), seed=5))
    assert [e.widths for e in other.episodes] != [e.widths for e in first.episodes]


def test_the_best_candidate_is_returned_as_it_was_measured():
    problem = problem_of(chain())
    found = Amc(**SHORT).search(problem)
    best = found.episodes[found.best]
    plan = found.decision.plan
    assert {name: len(kept) for name, kept in plan.kept.items()} == best.widths
    small = shrink(found.decision.model, problem.graph, plan)
    split = Split.of(problem, 3000, 5000)
    right = [(small(images).argmax(1) == labels).double() for images, labels in split.validation]
    assert torch.cat(right).mean().item() == pytest.approx(best.metric)
    assert found.decision.repair == "none"
    assert {e.reward <= best.reward for e in found.episodes} == {True}


def stopped_after(count, monkeypatch):
    real, left = amc_module._Run.tried, [count]

    def tried(self, widths):
        if not left[0]:
            raise Killed
        left[0] -= 1
        return real(self, widths)

    monkeypatch.setattr(amc_module._Run, "tried", tried)


@pytest.mark.parametrize("count", [1, 7])
def test_a_killed_search_goes_on_to_the_same_end(count, tmp_path, monkeypatch):
    """Killed while it warms up, or while it learns."""
    settings = {**SHORT, "episodes": 10}
    whole = Amc(**settings).search(problem_of(chain()))
    method = Amc(**settings, state_file=tmp_path / "runs" / "amc.safetensors")
    with monkeypatch.context() as patch:
        stopped_after(count, patch)
        with pytest.raises(Killed):
            method.search(problem_of(chain()))
    with monkeypatch.context() as patch:
        stopped_after(10 - count, patch)  # no more than were missing
        resumed = method.search(problem_of(chain()))
    assert resumed.episodes == whole.episodes
    assert resumed.decision.plan == whole.decision.plan
    with monkeypatch.context() as patch:
        stopped_after(0, patch)
        assert method.search(problem_of(chain())).episodes == whole.episodes


@pytest.mark.parametrize("change", ["seed", "budget", "weights", "setting"])
def test_the_state_of_another_search_is_refused(change, tmp_path):
    path = tmp_path / "amc.safetensors"
    Amc(**SHORT, state_file=path).search(problem_of(chain()))
    method, parts, model = Amc(**SHORT, state_file=path), {}, chain()
    if change == "setting":
        method = Amc(**SHORT, noise=0.1, state_file=path)
    elif change == "weights":
        model[4].weight.data *= 2
    else:
        parts = {"seed": 1} if change == "seed" else {"remove": 0.4}
    with pytest.raises(MethodError, match=r"amc\.safetensors is of another search"):
        method.search(problem_of(model, **parts))


def test_global_random_numbers_are_as_before():
    problem = problem_of(chain())
    torch.manual_seed(5)
    before, numbers = torch.get_rng_state(), np.random.get_state()[1].copy()
    Amc(**SHORT).search(problem)
    assert torch.equal(before, torch.get_rng_state())
    assert (numbers == np.random.get_state()[1]).all()


def test_digits_lose_less_than_two_points():
    from .attached_runs import lost_on_digits

    pytest.importorskip("sklearn", reason="the digits come with scikit-learn")
    assert lost_on_digits(Amc(episodes=8, warmup_episodes=4, hidden=32)) < 0.02


def test_streams_can_be_left_whole():
    result = prune(
        digits_resnet(),
        torch.zeros(1, 1, 8, 8),
        method=Amc(residual="skip", **SHORT),
        budget=Budget(0.3, "macs"),
        data=[(torch.randn(4, 1, 8, 8), torch.arange(4)) for _ in range(2)],
        task=TASK,
    )
    assert not [name for name in result.plan if result.graph.groups[name].is_residual and result.plan.removed(name)]
    assert 0.3 <= result.removed < 0.35


# -- errors -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("module", ["stable_baselines3", "gymnasium"])
def test_a_missing_extra_is_named(module, monkeypatch):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MissingExtra, match=rf'amc needs {module}.*pip install "secateur\[rl\]"'):
        Amc(**SHORT).decide(problem_of(chain()))
    with pytest.raises(MissingExtra, match=r"secateur\[rl\]"):
        _ = amc_module.PruningEnvironment


@pytest.mark.parametrize("data", [[(torch.zeros(4, 3, 8, 8, dtype=DOUBLE), None)] * 2, [torch.zeros(4, 3, 8, 8)] * 2])
def test_no_labels_is_refused(data):
    with pytest.raises(MethodError, match=r"amc.*labels"):
        Amc(**SHORT).decide(
            problem_of(chain(), data=[batch if type(batch) is tuple else batch.double() for batch in data])
        )


@pytest.mark.parametrize(
    ("parts", "words"),
    [
        ({"data": None}, "give data= .labelled batches of the training set, never of the test set"),
        ({"task": None}, "and task="),
        ({"data": []}, "0 batch in data= and needs two"),
        ({"data": batches(1)}, "1 batch in data= and needs two"),
        ({"data": [(torch.zeros(2, 5, 8, 8, dtype=DOUBLE), torch.zeros(2).long())] * 2}, "amc: .*has to fit the model"),
    ],
)
def test_data_that_do_not_do_are_refused(parts, words):
    with pytest.raises(MethodError, match=words):
        Amc(**SHORT).decide(problem_of(chain(), **parts))


def test_nan_activations_name_the_layer():
    data = batches()
    data[0][0][0] = torch.nan
    with pytest.raises(MethodError, match="'2' hold NaN"):
        Amc(**SHORT).decide(problem_of(chain(), data=data))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("reward", "speed"),
        ("residual", "some"),
        ("episodes", 0),
        ("warmup_episodes", 6),
        ("keep_at_least", 0.0),
        ("noise", -1.0),
        ("ridge", math.inf),
        ("baseline_decay", 1.0),
        ("batch_size", 2.5),
    ],
)
def test_settings_without_sense_are_refused(name, value):
    with pytest.raises(MethodError, match=name):
        Amc(**{**SHORT, name: value})


def test_channels_that_no_layer_reads_are_refused():
    class Unread(nn.Module):
        def __init__(self):
            super().__init__()
            self.enter = nn.Conv2d(3, 6, 1)

        def forward(self, x):
            return torch.relu(self.enter(x)).mean(1)

    with pytest.raises(MethodError, match="no layer reads any of"):
        Amc(**SHORT).decide(problem_of(Unread().double()))


def test_a_protected_layer_keeps_its_width():
    problem = CASES["plain"].problem(0.2, limits={"protect": ("hidden",)})
    decision = Amc(**SHORT).decide(problem)
    assert not {"conv2", "hidden"} & {name for name in decision.plan if decision.plan.removed(name)}
    assert decision.plan.removed("conv1")
