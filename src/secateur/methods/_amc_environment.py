"""The search for widths as an environment of Gymnasium; imports what the extra `rl` brings."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gymnasium
import numpy as np

from ._amc_walk import STATE_SIZE, Walk

Array = np.ndarray[Any, Any]
Reward = Callable[[tuple[int, ...]], float]


class PruningEnvironment(gymnasium.Env[Array, Array]):
    """One episode decides how many channels every group keeps, front to back; its last step has the reward.

    Observations are the 11 numbers of the paper's state, each in [0, 1]. An action is the fraction of the next group
    that is kept, in [0, 1]; it is clamped so that the budget stays within reach, and the state after it holds what it
    came to. `info["keep"]` is that fraction too, and after the last step `info["widths"]` has the widths.

    Args:
        walk: the decisions.
        reward: widths of a whole episode -> its reward, higher is better.
    """

    metadata = {"render_modes": []}  # noqa: RUF012 - as the base class declares it

    def __init__(self, walk: Walk, reward: Reward) -> None:
        self.walk, self._reward = walk, reward
        self.observation_space = gymnasium.spaces.Box(0.0, 1.0, (STATE_SIZE,), np.float32)
        self.action_space = gymnasium.spaces.Box(0.0, 1.0, (1,), np.float32)
        self._chosen: list[int] = []

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Array, dict[str, Any]]:
        """Start an episode; nothing in it is random."""
        super().reset(seed=seed, options=options)
        self._chosen = []
        return self.walk.state([]), {}

    def step(self, action: Array) -> tuple[Array, float, bool, bool, dict[str, Any]]:
        """Decide the width of the next group."""
        if len(self._chosen) == len(self.walk):
            raise gymnasium.error.ResetNeeded("the episode is over: every group has its width; call reset().")
        width = self.walk.clamped(self._chosen, float(np.asarray(action).reshape(-1)[0]))
        self._chosen.append(width)
        is_last = len(self._chosen) == len(self.walk)
        info: dict[str, Any] = {"keep": width / int(self.walk.choices[len(self._chosen) - 1][-1])}
        reward = 0.0
        if is_last:
            widths = self.walk.completed(self._chosen)
            reward, info["widths"] = float(self._reward(widths)), self.walk.named(widths)
        return self.walk.state(self._chosen), reward, is_last, False, info
