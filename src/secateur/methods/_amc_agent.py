"""The agent: DDPG as the paper has it, on that of stable-baselines3; imports what the extra `rl` brings.

What differs from stable-baselines3's DDPG: every transition of an episode is stored with the episode's reward, once the
episode is over; a moving average of rewards is subtracted from those of a batch; actions are drawn from a truncated
normal around the policy, whose deviation shrinks with each episode; and actor and critic have learning rates of their
own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import gymnasium
import numpy as np
import torch
from scipy.special import ndtr, ndtri
from stable_baselines3 import DDPG
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import Logger

from ..train.randomness import same_randomness_after, seed_

Array = np.ndarray[Any, Any]
State = Mapping[str, Any]


@dataclass(frozen=True)
class AgentSettings:
    """Hyper-parameters of the agent; see `secateur.methods.amc.Amc`, which has the same."""

    episodes: int
    warmup_episodes: int
    noise: float
    noise_decay: float
    actor_lr: float
    critic_lr: float
    soft_update: float
    batch_size: int
    replay_episodes: int
    baseline_decay: float
    hidden: int


def truncated_normal(mean: float, deviation: float, uniform: float) -> float:
    """Turn a uniform number into one of a normal distribution cut off at 0 and 1.

    Args:
        mean: of the normal, in [0, 1].
        deviation: its standard deviation; 0 gives the mean.
        uniform: in [0, 1).

    >>> truncated_normal(0.5, 0.2, 0.5)
    0.5
    >>> truncated_normal(0.0, 1.0, 0.999999) < 1
    True
    """
    if deviation <= 0:
        return mean
    low, high = ndtr((0 - mean) / deviation), ndtr((1 - mean) / deviation)
    return float(np.clip(mean + deviation * ndtri(low + uniform * (high - low)), 0, 1))


class WholeEpisodes(ReplayBuffer):
    """Transitions of whole episodes, each with the reward of its episode; gives them less a moving average.

    Source: He et al. 2018, DDPG agent: R is the return of every step, and b, an exponential moving average of rewards,
    reduces the variance of the gradient.
    """

    def __init__(self, *args: Any, rng: np.random.Generator, decay: float, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.rng, self.decay = rng, decay
        self.baseline: float | None = None
        self._open: list[tuple[Any, ...]] = []

    def add(self, obs: Array, next_obs: Array, action: Array, reward: Array, done: Array, infos: list[Any]) -> None:
        """Take in a transition; those of an episode are stored when it ends."""
        self._open.append((obs.copy(), next_obs.copy(), action.copy(), done.copy(), infos))
        if done[0]:
            for own_obs, own_next, own_action, own_done, own_infos in self._open:
                super().add(own_obs, own_next, own_action, reward, own_done, own_infos)
            self._open.clear()

    def sample(self, batch_size: int, env: Any = None) -> Any:
        """Draw transitions, rewards less the moving average that includes their own mean."""
        found = self._get_samples(self.rng.integers(self.size(), size=batch_size), env)
        mean = float(found.rewards.mean())
        self.baseline = mean if self.baseline is None else self.decay * self.baseline + (1 - self.decay) * mean
        return found._replace(rewards=found.rewards - self.baseline)

    def state(self) -> dict[str, Any]:
        """Return everything that is remembered, between two episodes."""
        count = self.size()
        arrays = {name: torch.from_numpy(getattr(self, name)[:count].copy()) for name in _ARRAYS}
        return {"arrays": arrays, "position": self.pos, "is_full": self.full, "baseline": self.baseline}

    def load_(self, state: State) -> None:
        """Take up what was remembered."""
        for name, tensor in state["arrays"].items():
            getattr(self, name)[: len(tensor)] = tensor.numpy()
        self.pos, self.full, self.baseline = state["position"], state["is_full"], state["baseline"]


_ARRAYS = ("observations", "next_observations", "actions", "rewards", "dones", "timeouts")


class Explorer(DDPG):
    """DDPG that explores as the paper does.

    Args:
        environment: every episode of it has the same number of steps.
        steps: that number.
        settings: hyper-parameters.
        rng: draws actions and batches.
    """

    replay_buffer: WholeEpisodes

    def __init__(self, environment: Any, steps: int, settings: AgentSettings, rng: np.random.Generator) -> None:
        self.steps, self.settings, self.rng = steps, settings, rng
        super().__init__(
            "MlpPolicy",
            environment,
            buffer_size=settings.replay_episodes * steps,
            learning_starts=settings.warmup_episodes * steps,
            batch_size=settings.batch_size,
            tau=settings.soft_update,
            gamma=1.0,
            train_freq=(1, "episode"),
            gradient_steps=-1,
            replay_buffer_class=WholeEpisodes,
            replay_buffer_kwargs={"rng": rng, "decay": settings.baseline_decay},
            policy_kwargs={"net_arch": [settings.hidden, settings.hidden]},
            device="cpu",
        )
        self.set_logger(Logger(folder=None, output_formats=[]))  # the default makes a folder for temporary files
        for optimizer, lr in ((self.actor.optimizer, settings.actor_lr), (self.critic.optimizer, settings.critic_lr)):
            for group in optimizer.param_groups:
                group["lr"] = lr

    @property
    def deviation(self) -> float:
        """Standard deviation of the noise in this episode."""
        done = self.num_timesteps // self.steps - self.settings.warmup_episodes
        return float(self.settings.noise * self.settings.noise_decay ** max(done, 0))

    def _sample_action(self, learning_starts: int, action_noise: Any = None, n_envs: int = 1) -> tuple[Array, Array]:
        """Draw an action: uniform while warming up, then around the policy's."""
        uniform = float(self.rng.random())
        if self.num_timesteps >= learning_starts:
            assert isinstance(self._last_obs, np.ndarray)
            mean = float(self.predict(self._last_obs, deterministic=True)[0].item())
            uniform = truncated_normal(min(max(mean, 0.0), 1.0), self.deviation, uniform)
        action = np.full((n_envs, 1), uniform, dtype=np.float32)
        return action, self.policy.scale_action(action)

    def _update_learning_rate(self, optimizers: Any) -> None:
        """Leave both learning rates as they are; the base class would make them one."""

    def state(self) -> dict[str, Any]:
        """Return everything that is remembered, between two episodes."""
        return {
            "steps_done": self.num_timesteps,
            "policy": dict(self.policy.state_dict()),
            "actor": self.actor.optimizer.state_dict(),
            "critic": self.critic.optimizer.state_dict(),
            "replay": self.replay_buffer.state(),
            "rng": dict(self.rng.bit_generator.state),
        }

    def load_(self, state: State) -> None:
        """Take up what was remembered."""
        self.num_timesteps = state["steps_done"]
        self.policy.load_state_dict(state["policy"])
        self.actor.optimizer.load_state_dict(state["actor"])
        self.critic.optimizer.load_state_dict(state["critic"])
        self.replay_buffer.load_(state["replay"])
        self.rng.bit_generator.state = state["rng"]


class _BetweenEpisodes(BaseCallback):
    """Calls a function with the agent before each episode, after the updates of the one before."""

    def __init__(self, call: Callable[[Explorer], None]) -> None:
        super().__init__()
        self._call = call

    def _on_rollout_start(self) -> None:
        assert isinstance(self.model, Explorer)
        if self.model.num_timesteps:
            self._call(self.model)

    def _on_training_end(self) -> None:
        self._on_rollout_start()

    def _on_step(self) -> bool:
        return True


def explore(
    environment: gymnasium.Env[Array, Array],
    steps: int,
    settings: AgentSettings,
    *,
    seed: int,
    saved: State | None = None,
    save: Callable[[dict[str, Any]], None] | None = None,
) -> Explorer:
    """Search an environment; global random numbers are afterwards as they were.

    Args:
        environment: every episode of it has `steps` steps.
        steps: that number.
        settings: hyper-parameters.
        seed: makes it repeatable.
        saved: what `save` was given, to go on from there.
        save: called after each episode with the agent's state.
    """
    with same_randomness_after(torch.device("cpu")):
        seed_(seed)
        agent = Explorer(environment, steps, settings, np.random.default_rng([seed, 1]))
        if saved is not None:
            agent.load_(saved)
        left = settings.episodes * steps - agent.num_timesteps
        if left > 0:
            watch = _BetweenEpisodes(lambda own: save(own.state()) if save is not None else None)
            agent.learn(left, callback=watch, log_interval=settings.episodes + 1, reset_num_timesteps=False)
    return agent
