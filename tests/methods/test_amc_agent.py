"""AMC's agent, and the environment that it acts in."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from secateur.methods import Amc
from secateur.methods import amc as amc_module

from .amc_toys import chain, problem_of, walk_of


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
