"""AMC: the walk through the widths, rewards, candidates from moments, and searches that can be taken up again."""

from __future__ import annotations

import itertools
import math
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from secateur import Budget, Plan, prune, shrink, trace
from secateur.errors import BudgetError, MethodError, MissingExtra
from secateur.graph.products import products, readers
from secateur.methods import Amc, Problem
from secateur.methods import amc as amc_module
from secateur.methods._amc_candidates import Candidates, Split, magnitudes
from secateur.methods._amc_walk import Walk, layers_of
from secateur.methods.amc import reward_of
from secateur.models import digits_resnet
from secateur.recovery.moments import Sampling
from secateur.recovery.refit import Refit, refit
from secateur.train import ClassificationTask, FunctionTask

from ..contract.cases import CASES
from ..train.cases import Killed

TASK, DOUBLE = ClassificationTask(), torch.float64
SHORT = {"episodes": 6, "warmup_episodes": 3, "hidden": 16, "batch_size": 8}


def chain(dtype=DOUBLE):
    """Three convolutions on maps of 8, 4 and 4, with 4 and 8 channels in between that may go."""
    torch.manual_seed(0)
    layers = (
        nn.Conv2d(3, 4, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(4, 8, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Conv2d(8, 2, 1),
    )
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten()).to(dtype).eval()


def batches(count=4, size=6, classes=2, dtype=DOUBLE):
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(count, size, 3, 8, 8, generator=generator, dtype=DOUBLE).to(dtype)
    return [(own, own[:, 0].mean((1, 2)).gt(0).long() % classes) for own in images]


def problem_of(model, remove=0.5, of="macs", **parts):
    example = torch.zeros(1, 3, 8, 8, dtype=next(model.parameters()).dtype)
    parts = {"data": batches(dtype=example.dtype), "task": TASK, **parts}
    return Problem(model, trace(model, example), Budget(remove, of), args=(example,), **parts)


def reading_of(problem):
    every = products(problem.graph)
    found = [(name, readers(problem.graph, group, every)) for name, group in problem.graph.groups.items()]
    return sorted(((n, r) for n, r in found if r), key=lambda item: item[1][0].op.index)


def walk_of(problem, keep_at_least=0.2, **options):
    return Walk(problem, layers_of(problem, reading_of(problem)), keep_at_least=keep_at_least, **options)


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


# -- the walk -------------------------------------------------------------------------------------------------------

# MACs of `chain`: 64 * 27 a for the first convolution, 16 * 9 a b for the second, 16 * 2 b for the last.
FIRST, SECOND, LAST = 64 * 27, 16 * 9, 16 * 2
WHOLE = FIRST * 4 + SECOND * 32 + LAST * 8


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


# -- rewards --------------------------------------------------------------------------------------------------------


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


# -- candidates -----------------------------------------------------------------------------------------------------


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


# -- the environment ------------------------------------------------------------------------------------------------


def test_the_environment_is_one_of_gymnasium():
    pytest.importorskip("gymnasium")
    from gymnasium.utils.env_checker import check_env

    environment = Amc().environment(problem_of(chain()))
    assert isinstance(environment, amc_module.PruningEnvironment)
    check_env(environment, skip_render_check=True)


def test_an_episode_gives_its_reward_at_the_end_and_says_what_became_of_actions():
    gymnasium = pytest.importorskip("gymnasium")
    walk = walk_of(problem_of(chain()))
    seen = []
    environment = amc_module.PruningEnvironment(walk, lambda widths: seen.append(widths) or 7.0)
    state, info = environment.reset()
    assert state.tolist() == walk.state([]).tolist()
    state, reward, terminated, truncated, info = environment.step(np.array([1.0], dtype=np.float32))
    assert (reward, terminated, truncated, info) == (0.0, False, False, {"keep": 0.5})
    assert state[-1] == 0.5
    _, reward, terminated, _, info = environment.step(np.array([1.0], dtype=np.float32))
    assert (reward, terminated, seen) == (7.0, True, [(2, 7)])
    assert info == {"keep": 7 / 8, "widths": {"0": 2, "2": 7}}
    with pytest.raises(gymnasium.error.ResetNeeded):
        environment.step(np.array([1.0], dtype=np.float32))


# -- the agent ------------------------------------------------------------------------------------------------------


def agent_settings(**changes):
    from secateur.methods._amc_agent import AgentSettings

    usual = {
        **{"episodes": 10, "warmup_episodes": 4, "noise": 0.5, "noise_decay": 0.95, "actor_lr": 1e-4},
        **{"critic_lr": 1e-3, "soft_update": 0.01, "batch_size": 64, "replay_episodes": 100},
        **{"baseline_decay": 0.5, "hidden": 16},
    }
    return AgentSettings(**{**usual, **changes})


def toy(optimum):
    """Each action costs its squared distance from an optimum of its own."""
    import gymnasium

    class Toy(gymnasium.Env):
        observation_space = gymnasium.spaces.Box(0.0, 1.0, (2,), np.float32)
        action_space = gymnasium.spaces.Box(0.0, 1.0, (1,), np.float32)

        def _state(self):
            return np.array([len(self.actions) / len(optimum), [0, *self.actions][-1]], dtype=np.float32)

        def reset(self, *, seed=None, options=None):
            self.actions = []
            return self._state(), {}

        def step(self, action):
            self.actions.append(float(action[0]))
            is_last = len(self.actions) == len(optimum)
            reward = -sum((a - b) ** 2 for a, b in zip(self.actions, optimum, strict=False)) if is_last else 0.0
            return self._state(), reward, is_last, False, {}

    return Toy()


def greedy_actions(agent, environment):
    state, is_last, actions = environment.reset()[0], False, []
    while not is_last:
        action, _ = agent.predict(state, deterministic=True)
        actions.append(float(action[0]))
        state, _, is_last, _, _ = environment.step(action)
    return actions


def test_the_agent_converges_to_the_optimum_of_a_toy():
    from secateur.methods._amc_agent import explore

    optimum = (0.25, 0.8)
    fast = {"actor_lr": 2e-3, "critic_lr": 1e-2, "soft_update": 0.1, "hidden": 32, "replay_episodes": 300}
    agent = explore(toy(optimum), 2, agent_settings(episodes=200, warmup_episodes=60, **fast), seed=2)
    assert greedy_actions(agent, toy(optimum)) == pytest.approx(optimum, abs=0.1)


def test_the_search_finds_the_best_widths_of_a_toy():
    """Brute force over all widths within the budget, against a search over the environment."""
    from secateur.methods._amc_agent import explore

    walk = walk_of(problem_of(chain()))

    def reward(widths):
        return -(((widths[0] - 1) / 4) ** 2) - ((widths[1] - 6) / 8) ** 2 * (1 + widths[0])

    every = itertools.product(*[choices.tolist() for choices in walk.choices])
    best = max(reward(walk.completed(own)) for own in every if walk.cost(own) <= walk.target)
    found = []
    environment = amc_module.PruningEnvironment(walk, lambda widths: found.append(reward(widths)) or found[-1])
    explore(environment, 2, agent_settings(episodes=40, warmup_episodes=20), seed=0)
    assert max(found) == best


def test_noise_is_a_normal_cut_off_at_0_and_1():
    from scipy.stats import truncnorm

    from secateur.methods._amc_agent import truncated_normal

    for mean, deviation in ((0.1, 0.5), (0.5, 0.05), (1.0, 0.3)):
        grid = np.linspace(0.01, 0.99, 9)
        wanted = truncnorm.ppf(grid, -mean / deviation, (1 - mean) / deviation, loc=mean, scale=deviation)
        assert [truncated_normal(mean, deviation, u) for u in grid] == pytest.approx(wanted)
    assert truncated_normal(0.3, 0.0, 0.9) == 0.3
    assert 0 <= truncated_normal(0.0, 1e-9, 0.0) <= truncated_normal(0.0, 1e-9, 1 - 1e-16) <= 1


def test_replay_has_whole_episodes_with_one_reward_less_a_moving_average():
    gymnasium = pytest.importorskip("gymnasium")
    from secateur.methods._amc_agent import WholeEpisodes

    box = gymnasium.spaces.Box(0.0, 1.0, (1,), np.float32)
    buffer = WholeEpisodes(8, box, box, device="cpu", rng=np.random.default_rng(0), decay=0.5)

    def add(number, reward, done):
        value = np.full((1, 1), number, np.float32)
        buffer.add(value, value, value, np.array([reward], np.float32), np.array([done]), [{}])

    add(0.1, 0.0, False)
    assert buffer.size() == 0
    add(0.2, -3.0, True)
    assert buffer.rewards[:2, 0].tolist() == [-3, -3]
    assert buffer.dones[:2, 0].tolist() == [0, 1]
    assert buffer.sample(4).rewards.tolist() == [[0]] * 4  # all alike: nothing is left above the average
    assert buffer.baseline == -3
    add(0.3, -1.0, True)
    buffer.rng = np.random.default_rng(1)
    drawn = np.random.default_rng(1).integers(3, size=4)
    rewards = np.array([-3.0, -3.0, -1.0])[drawn]
    baseline = 0.5 * -3 + 0.5 * rewards.mean()
    assert buffer.sample(4).rewards[:, 0].tolist() == pytest.approx(rewards - baseline)


def test_warm_up_is_uniform_and_learns_nothing_then_noise_shrinks():
    from secateur.methods._amc_agent import explore

    seen, kept = [], []

    def look(state):
        kept.append([tensor.clone() for tensor in state["policy"].values()])

    environment = toy((0.5, 0.5))
    real = environment.step
    environment.step = lambda action: seen.append(float(action[0])) or real(action)
    agent = explore(environment, 2, agent_settings(episodes=40, warmup_episodes=35), seed=3, save=look)
    assert all(torch.equal(a, b) for a, b in zip(kept[0], kept[34], strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(kept[34], kept[36], strict=True))
    warm = np.array(seen[:70])
    assert 0.4 < warm.mean() < 0.6
    assert warm.std() == pytest.approx(12**-0.5, abs=0.06)
    assert agent.deviation == pytest.approx(0.5 * 0.95**5)
    assert [g["lr"] for g in agent.actor.optimizer.param_groups] == [1e-4]
    assert [g["lr"] for g in agent.critic.optimizer.param_groups] == [1e-3]


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
    assert found.decision.is_refitted
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


# -- errors ---------------------------------------------------------------------------------------------------------


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
        ({"data": [(torch.zeros(2, 5, 8, 8, dtype=DOUBLE), torch.zeros(2).long())] * 2}, "could not run the model on"),
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
