"""``HpcrlVectorEnv`` as a VecEnv of Stable-Baselines3, which is not installed with hpcrl.

SB3 wraps single environments by itself; this one steps all of them in one batch, which is what makes
many of them fast. Infos hold something only where an episode ended.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from stable_baselines3.common.vec_env import VecEnv

from hpcrl.env.gymnasium import HpcrlVectorEnv


class HpcrlSb3VecEnv(VecEnv):
    def __init__(self, env: HpcrlVectorEnv) -> None:
        self.env = env
        self._actions: Any = None
        super().__init__(env.num_envs, env.single_observation_space, env.single_action_space)

    def reset(self) -> np.ndarray:
        """Seeds of ``seed`` and options of ``set_options`` (symbol, bar) count for one reset."""
        given = {name for one in self._options for name in one}
        options = {name: [one.get(name) for one in self._options] for name in given}
        observation_NE, _ = self.env.reset(seed=self._seeds, options=options)
        self._reset_seeds()
        self._reset_options()
        return observation_NE

    def step_async(self, actions: np.ndarray) -> None:
        self._actions = actions

    def step_wait(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, list[dict[str, Any]]]:
        observation_NE, reward_N, terminated_N, truncated_N, found = self.env.step(self._actions)
        done_N = terminated_N | truncated_N
        infos: list[dict[str, Any]] = [{} for _ in range(self.num_envs)]
        for n in np.flatnonzero(done_N):
            last = {k: v[n] for k, v in found["final_info"].items() if not k.startswith("_")}
            last["terminal_observation"] = found["final_obs"][n]
            last["TimeLimit.truncated"] = bool(truncated_N[n])
            infos[n] = last
        return observation_NE, reward_N.astype(np.float32), done_N, infos

    def close(self) -> None:
        self.env.close()

    def get_images(self) -> Sequence[np.ndarray | None]:
        return self.env.render() or [None] * self.num_envs

    def get_attr(self, attr_name: str, indices: Any = None) -> list[Any]:
        """All environments are one object and have its attributes."""
        return [getattr(self.env, attr_name)] * len(list(self._get_indices(indices)))

    def set_attr(self, attr_name: str, value: Any, indices: Any = None) -> None:
        raise AttributeError(f"{attr_name}: the environments of a batch have no attributes of their own")

    def env_method(
        self, method_name: str, *method_args: Any, indices: Any = None, **method_kwargs: Any
    ) -> list[Any]:
        raise AttributeError(f"{method_name}: the environments of a batch have no methods of their own")

    def env_is_wrapped(self, wrapper_class: Any, indices: Any = None) -> list[bool]:
        return [False] * len(list(self._get_indices(indices)))
