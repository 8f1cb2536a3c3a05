"""N accounts on one market, as the Gymnasium adapters see them: spaces, starts, checked steps, infos.

Each account has an episode of its own: it starts where its generator or the caller says, ends after
``episode_steps`` (truncated) or by bankruptcy (terminated), and only ``begin`` starts the next one. An
account's path depends on its starts and actions alone, bit for bit, not on N.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from gymnasium import spaces

from hpcrl.config.env import HINDSIGHT
from hpcrl.env.actions import Actions
from hpcrl.env.episodes import find_starts
from hpcrl.env.places import Places
from hpcrl.env.settings import Settings, open_market
from hpcrl.env.simulator import Simulator, Step
from hpcrl.env.token import CLIP, entry_names
from hpcrl.market.calendar import SECOND_NS
from hpcrl.market.clean import iso
from hpcrl.types import HpcrlError

MONEY = (
    "equity",
    "equity_raw",
    "log_return",
    "turnover",
    "fees",
    "spread",
    "impact",
    "financing",
    "dividend",
)
"""Entries of info that are one float64 each: currency, but for log_return (ln(E'/E)) and turnover (traded
value / equity before). equity is 0 and equity_raw at most 0 where bankrupt."""


class Played(NamedTuple):
    reward_N: np.ndarray  # float64, shaped
    terminated_N: np.ndarray  # bool: bankrupt
    truncated_N: np.ndarray  # bool: the episode's last step, and not bankrupt


def _warn(settings: Settings) -> None:
    if settings.split == "test":
        said = "the test split is sealed: what is chosen after looking at it is no longer tested by it"
        warnings.warn(said, stacklevel=4)
    if settings.env.fill_lag == 0:
        warnings.warn(HINDSIGHT, stacklevel=4)


class Desk:
    def __init__(self, settings: Settings, n_envs: int) -> None:
        """HpcrlError where the file, the split, a symbol or the episode's length does not fit."""
        self.settings, self.n_envs = settings, n_envs
        self.opened = opened = open_market(settings.market)
        steps = settings.episode_steps
        self.bars = opened.market.require(settings.split, steps, settings.env.fill_lag)
        _warn(settings)
        self.simulator = Simulator(
            opened.tensors,
            settings.env,
            env_ids_N=torch.arange(n_envs),
            seed=0,  # starts are drawn from Gymnasium's generators
            bars=self.bars,
            history=1,
            renew=False,
        )
        all_assets = settings.env.assets == "all"
        try:
            starts = find_starts(opened.tensors, steps=steps, bars=self.bars, all_assets=all_assets)
        except HpcrlError as error:
            raise HpcrlError(f"episode_steps = {steps} of the {settings.split} split: {error}") from None
        self.symbols = opened.market.symbols
        self.places = Places(starts, self.symbols, all_assets=all_assets, steps=steps)
        self.actions = Actions(settings, self.simulator.n_assets)
        self.observation_space = self._bounds()
        self.age_N = np.zeros(n_envs, dtype=np.int64)  # steps of the episode so far
        self.going_N = np.zeros(n_envs, dtype=bool)
        self._symbol_N = np.array(self.symbols, dtype=object)
        self._target_NA = np.zeros((n_envs, self.simulator.n_assets))
        self._step: Step | None = None

    def _bounds(self) -> spaces.Box:
        n_features = self.simulator.n_assets * len(self.opened.scaler.feature_names)
        high_E = np.full(self.simulator.n_entries, CLIP, dtype=np.float32)
        high_E[:n_features] = self.opened.scaler.clip
        high_E[n_features : n_features + 2] = 1.0  # sine and cosine of the time of day
        return spaces.Box(-high_E, high_E, dtype=np.float32)

    @property
    def observation_names(self) -> list[str]:
        """Names of an observation's entries; an account on one symbol calls it "asset"."""
        symbols = self.symbols if self.settings.env.assets == "all" else ("asset",)
        return entry_names(self.opened.market.feature_names, symbols, self.simulator.reward_entries)

    # ---- episodes

    def begin(self, mask_N: np.ndarray, starts: Sequence[int]) -> None:
        """New episodes where the mask says so, at the given starts (one for each True)."""
        symbol_NA, bar_N = self.simulator.symbol_NA.clone(), self.simulator.bar_N.clone()
        mask = torch.from_numpy(mask_N)
        symbol_NA[mask], bar_N[mask] = self.places.at(starts)
        self.simulator.begin_some(mask, symbol_NA, bar_N)
        self.age_N[mask_N] = 0
        self.going_N |= mask_N
        self._target_NA[mask_N] = 0.0

    def step(self, action: Any) -> Played:
        """One bar for everybody; nothing changes where an action is refused."""
        if not self.going_N.all():
            n = int(self.going_N.argmin())
            raise HpcrlError(f"{self.place(n)}: no episode is going on; call reset first")
        weight_NA = self.actions.weights(action, self._target_NA.shape, self.place)
        self._step = step = self.simulator.step(torch.from_numpy(weight_NA))
        self._target_NA = weight_NA
        self.age_N += 1
        terminated_N = step.terminated_N.numpy()
        truncated_N = (self.age_N == self.settings.episode_steps) & ~terminated_N
        self.going_N = ~(terminated_N | truncated_N)
        return Played(step.reward_N.numpy().astype(np.float64), terminated_N, truncated_N)

    def observe(self) -> np.ndarray:
        """[N, E] float32. A bankrupt account owns nothing: shares of its equity are 0, not 0 / 0."""
        token_NE = self.simulator.observe().numpy()
        return token_NE if np.isfinite(token_NE).all() else np.nan_to_num(token_NE, copy=False, nan=0.0)

    def place(self, n: int, a: int = 0) -> str:
        """ "env 3, MSFT, bar 812 (2022-05-03T14:35:00Z)" """
        bar = int(self.simulator.bar_N[n])
        stamp = iso(int(self.opened.tensors.ts_B[bar]) * SECOND_NS)
        return f"env {n}, {self.symbols[int(self.simulator.symbol_NA[n, a])]}, bar {bar} ({stamp})"

    # ---- copies

    def state(self) -> dict[str, Any]:
        """All that the next steps and infos depend on, besides the market and the settings."""
        return {
            "sha256": self.opened.market.sha256,
            "simulator": self.simulator.state_dict(),
            "age_N": self.age_N.copy(),
            "going_N": self.going_N.copy(),
            "target_NA": self._target_NA.copy(),
            "step": self._step,
        }

    def load(self, state: dict[str, Any]) -> None:
        """HpcrlError where the file has been staged anew since."""
        if state["sha256"] != self.opened.market.sha256:
            raise HpcrlError(
                f"{self.settings.path}: other bars than when this environment was saved (sha256 "
                f"{self.opened.market.sha256[:12]}, not {state['sha256'][:12]}); make a new one"
            )
        self.simulator.load_state_dict(state["simulator"])
        self.age_N, self.going_N = state["age_N"].copy(), state["going_N"].copy()
        self._target_NA, self._step = state["target_NA"].copy(), state["step"]

    # ---- what callers are told

    def infos(self, fresh_N: np.ndarray | None = None) -> dict[str, np.ndarray]:
        """Arrays [N] or [N, A] of the last step; where ``fresh_N``, those of an episode's first bar."""
        sim = self.simulator
        bar_N = sim.bar_N
        found: dict[str, np.ndarray] = {}
        if not sim.all_assets:
            found["symbol"] = self._symbol_N[sim.symbol_NA[:, 0].numpy()]
        found["bar"] = bar_N.numpy()
        found["timestamp"] = self.opened.tensors.ts_B[bar_N].numpy()
        step = self._step
        if step is None:
            fresh_N = np.ones(self.n_envs, dtype=bool)
        position_NA = np.zeros_like(self._target_NA) if step is None else step.weight_NA.numpy().copy()
        money = {
            name: np.zeros(self.n_envs) if step is None else getattr(step, f"{name}_N").numpy().copy()
            for name in MONEY
        }
        if fresh_N is not None:
            position_NA[fresh_N] = 0.0
            for name, value_N in money.items():
                value_N[fresh_N] = sim.rules.initial_cash if name.startswith("equity") else 0.0
        target_NA = self._target_NA.copy()
        single = not sim.all_assets
        found["position"] = position_NA[:, 0] if single else position_NA
        found["target"] = target_NA[:, 0] if single else target_NA
        return found | money
