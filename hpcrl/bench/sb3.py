"""Stable-Baselines3's PPO on a planted market, as its users would run it: the other side of ``against``.

The policy is a transformer over a window of stacked observations, encoded anew at every step. Imported only
where the comparison runs: Stable-Baselines3 is no dependency of hpcrl.
"""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
import torch
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from stable_baselines3.common.vec_env import VecFrameStack, VecNormalize
from torch import Tensor, nn

from hpcrl.bench.against import Clock
from hpcrl.config.root import Config
from hpcrl.env.gymnasium import HpcrlVectorEnv
from hpcrl.env.sb3 import HpcrlSb3VecEnv


class WindowTransformer(BaseFeaturesExtractor):
    """[batch, window x E] stacked observations -> [batch, d_model], the newest one's encoding."""

    def __init__(
        self, space: gymnasium.spaces.Box, window: int, d_model: int, layers: int, heads: int, mult: int
    ) -> None:
        super().__init__(space, d_model)
        self.window = window
        self.entry = nn.Linear(space.shape[0] // window, d_model)
        self.place_WD = nn.Parameter(0.02 * torch.randn(window, d_model))
        layer = nn.TransformerEncoderLayer(
            d_model, heads, mult * d_model, dropout=0.0, batch_first=True, norm_first=True
        )
        self.layers = nn.TransformerEncoder(layer, layers, nn.LayerNorm(d_model), enable_nested_tensor=False)

    def forward(self, stacked: Tensor) -> Tensor:
        token_NWE = stacked.view(len(stacked), self.window, -1)
        return self.layers(self.entry(token_NWE) + self.place_WD)[:, -1]


def train_sb3(config: Config, clock: Clock) -> dict[str, Any]:
    """Train until the clock is out; returns env steps and parameters.

    The same PPO settings, and rewards scaled by the deviation of returns (VecNormalize) as hpcrl does.
    """
    learn, policy = config.learn, config.policy
    envs = HpcrlVectorEnv(
        config.market.path,
        num_envs=config.env.envs_per_gpu,
        env=config.env,
        market=config.market,
        episode_steps=config.episode_steps,
        positions=policy.positions,
    )
    stacked = VecFrameStack(HpcrlSb3VecEnv(envs), policy.window)
    model = PPO(
        "MlpPolicy",
        VecNormalize(stacked, norm_obs=False, gamma=learn.gamma),
        learning_rate=lambda _: clock.decayed(learn.lr),
        n_steps=learn.rollout,
        batch_size=learn.batch_size,
        n_epochs=learn.ppo_epochs,
        gamma=learn.gamma,
        gae_lambda=learn.gae_lambda,
        clip_range=learn.clip_param,
        ent_coef=learn.entropy_coef,
        vf_coef=learn.value_coef,
        max_grad_norm=learn.max_grad_norm,
        policy_kwargs={
            "features_extractor_class": WindowTransformer,
            "features_extractor_kwargs": {
                "window": policy.window,
                "d_model": policy.d_model,
                "layers": policy.layers,
                "heads": policy.heads,
                "mult": policy.feedforward_mult,
            },
            "net_arch": [],
        },
        seed=config.train.seed,
        device="cpu",
    )
    model.learn(total_timesteps=1 << 60, callback=_Watch(clock, policy.positions))
    return {"steps": model.num_timesteps, "parameters": sum(p.numel() for p in model.policy.parameters())}


class _Watch(BaseCallback):
    """Judges between updates, and ends the training once the clock is out."""

    def __init__(self, clock: Clock, positions: tuple[float, ...]) -> None:
        super().__init__()
        self._clock, self._positions = clock, positions
        self._going = True

    def _on_rollout_start(self) -> None:
        self._going = self._clock.look(
            self.num_timesteps, lambda: Sb3Strategy(self.model.policy, self._positions)
        )

    def _on_step(self) -> bool:
        return self._going


class Sb3Strategy:
    """The deterministic policy on its window of observations; ``evaluate.backtest.Strategy``."""

    def __init__(self, policy: Any, positions: tuple[float, ...]) -> None:
        self._policy = policy
        self._positions = torch.tensor(positions, dtype=torch.float64)
        self._window = policy.features_extractor.window

    def begin(self, simulator: Any, history_NME: Tensor, length_N: Tensor) -> None:
        self._recent = list(history_NME[:, 1 - self._window :].unbind(1))

    def weights(self, simulator: Any, step: int, position_NA: Tensor) -> Tensor:
        self._recent = [*self._recent[1 - self._window :], simulator.observe()]
        stacked: np.ndarray = torch.cat(self._recent, 1).numpy()
        action_N1, _ = self._policy.predict(stacked, deterministic=True)
        return self._positions[torch.from_numpy(action_N1)].view(-1, 1)
