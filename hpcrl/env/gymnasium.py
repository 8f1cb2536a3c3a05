"""Gymnasium's two interfaces on the simulator: one environment, and N of them in one batch.

Registered as ``hpcrl/Trading-v0`` (see the room's ``__init__``). Both take the keywords of ``Settings``.

An observation is the simulator's token of the last closed bar and the account (``token.py``; its entries'
names are ``observation_names``), the reward is the shaped one. Bankruptcy terminates, ``episode_steps``
truncates. ``info`` tells bar (row of the market's time grid), timestamp (unix seconds, the bar's start),
symbol, target (weights asked for), position (weights after the step), equity and what changed it.

``HpcrlVectorEnv`` seeded with s is, bit for bit, Gymnasium's SyncVectorEnv of ``HpcrlTradingEnv`` in
same-step mode seeded with s: environment i has the seed s + i.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
from gymnasium.utils import seeding
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space

from hpcrl.env.chart import Chart, Frame, Tape
from hpcrl.env.desk import Desk
from hpcrl.env.places import read_options
from hpcrl.env.settings import Settings, read_settings
from hpcrl.types import HpcrlError

METADATA = {"render_modes": ["rgb_array"], "render_fps": 10}


class _Adapter:
    """What both have: a desk, its record and picture, and copies of itself that share no state."""

    settings: Settings
    _desk: Desk
    _tape: Tape | None
    _chart: Chart | None

    def _open(self, settings: Settings, n_envs: int) -> None:
        self.settings = settings
        self._desk = desk = Desk(settings, n_envs)
        self._chart = self._tape = None
        if settings.render_mode is not None:
            self._tape = Tape(n_envs, settings.episode_steps, desk.simulator.n_assets)

    @property
    def observation_names(self) -> list[str]:
        """The entries of an observation, in order; an account on one symbol calls it "asset"."""
        return self._desk.observation_names

    @property
    def symbols(self) -> tuple[str, ...]:
        return self._desk.symbols

    @property
    def timestamps(self) -> np.ndarray:
        """int64 unix seconds (bar start) of every row of the time grid; ``options["bar"]`` is such a row."""
        return self._desk.opened.market.ts_B.copy()

    @property
    def bars(self) -> tuple[int, int]:
        """The split's rows, half-open."""
        return self._desk.bars

    def _record(self, infos: dict[str, np.ndarray]) -> None:
        if self._tape is not None:
            self._tape.write(self._desk.age_N, infos["equity"], infos["position"])

    def _picture(self, n: int) -> np.ndarray:
        assert self._tape is not None
        desk = self._desk
        age, bar = int(desk.age_N[n]), int(desk.simulator.bar_N[n])
        symbol_A = desk.simulator.symbol_NA[n]
        symbols = [desk.symbols[s] for s in symbol_A.tolist()]
        if self._chart is None:
            self._chart = Chart(symbols)
        frame = Frame(
            symbols=symbols,
            close_KA=desk.opened.tensors.close_BS[bar - age : bar + 1, symbol_A].numpy(),
            position_KA=self._tape.position_NTA[n, : age + 1],
            equity_K=self._tape.equity_NT[n, : age + 1],
            start_equity=desk.simulator.rules.initial_cash,
            steps=self.settings.episode_steps,
            timestamp=int(desk.opened.tensors.ts_B[bar]),
            bar=bar,
        )
        return self._chart.draw(frame)

    def __getstate__(self) -> dict[str, Any]:
        # Market and tables are opened again: they are large, and a pickled view of a tensor is no view.
        return {**self.__dict__, "_desk": (self._desk.n_envs, self._desk.state()), "_chart": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        n_envs, desk_state = state["_desk"]
        self._desk = Desk(self.settings, n_envs)
        self._desk.load(desk_state)


class HpcrlTradingEnv(_Adapter, gymnasium.Env):
    """One account, on one symbol at a time or on all of them (``env={"assets": "all"}``)."""

    metadata = METADATA

    def __init__(self, path: str | Path | None = None, *, render_mode: str | None = None, **settings: Any):
        """``path``: file of ``hpcrl stage``; further keywords as in ``Settings``.

        HpcrlError: the file, a keyword, the split or the episode's length does not fit.
        """
        self._open(read_settings(path, {**settings, "render_mode": render_mode}), 1)
        self.render_mode = render_mode
        self.observation_space = self._desk.observation_space
        self.action_space = self._desk.actions.space

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Start an episode; (observation [E], info).

        ``options``: symbol (a name) and bar (a row, the first decision's); what is not given is drawn.
        HpcrlError, and the old episode and generator go on, where they do not fit.
        """
        chosen, before = read_options(options, ("symbol", "bar")), (self._np_random, self._np_random_seed)
        super().reset(seed=seed)
        try:
            start = self._desk.places.choose(self.np_random, **chosen)
        except HpcrlError:
            self._np_random, self._np_random_seed = before
            raise
        everyone = np.ones(1, dtype=bool)
        self._desk.begin(everyone, [start])
        infos = self._desk.infos(everyone)
        self._record(infos)
        return self._desk.observe()[0], _one(infos)

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """One bar; (observation, reward, terminated, truncated, info).

        HpcrlError, and nothing changes, where the action is none or the episode has ended.
        """
        batch: Any
        try:
            batch = np.asarray(action)[None]
        except (TypeError, ValueError, RuntimeError):
            batch = [action]
        played = self._desk.step(batch)
        infos = self._desk.infos()
        self._record(infos)
        terminated, truncated = bool(played.terminated_N[0]), bool(played.truncated_N[0])
        return self._desk.observe()[0], float(played.reward_N[0]), terminated, truncated, _one(infos)

    def render(self) -> np.ndarray | None:
        """uint8 [height, width, 3]: price, position and equity of the episode so far."""
        return None if self.render_mode is None else self._picture(0)

    def close(self) -> None:
        self._chart = None


def _one(infos: dict[str, np.ndarray]) -> dict[str, Any]:
    """The only environment's info, numbers as Python's own."""
    return {
        name: value[0].copy() if value.ndim > 1 else value[:1].tolist()[0] for name, value in infos.items()
    }


class HpcrlVectorEnv(_Adapter, VectorEnv):
    """N accounts in one batch. An environment whose episode ends starts its next one in the same step."""

    metadata = METADATA | {"autoreset_mode": AutoresetMode.SAME_STEP}

    def __init__(
        self,
        path: str | Path | None = None,
        *,
        num_envs: int = 1,
        render_mode: str | None = None,
        **settings: Any,
    ):
        """As ``HpcrlTradingEnv``, ``num_envs`` times."""
        if isinstance(num_envs, bool) or not isinstance(num_envs, (int, np.integer)) or num_envs < 1:
            raise HpcrlError(f"hpcrl/Trading-v0: num_envs = {num_envs!r}: a whole number above 0 is needed")
        self.num_envs = int(num_envs)
        self._open(read_settings(path, {**settings, "render_mode": render_mode}), self.num_envs)
        self.render_mode = render_mode
        self.single_observation_space = self._desk.observation_space
        self.single_action_space = self._desk.actions.space
        self.observation_space = batch_space(self.single_observation_space, self.num_envs)
        self.action_space = batch_space(self.single_action_space, self.num_envs)
        self._generators: list[tuple[np.random.Generator, int]] = []

    @property  # type: ignore[misc]
    def np_random(self) -> tuple[np.random.Generator, ...]:  # type: ignore[override]
        """Each environment's generator, from which its starts are drawn."""
        return tuple(generator for generator, _ in self._seeded())

    @property
    def np_random_seed(self) -> tuple[int, ...]:  # type: ignore[override]
        return tuple(seed for _, seed in self._seeded())

    def _seeded(self) -> list[tuple[np.random.Generator, int]]:
        self._generators = self._generators or [seeding.np_random() for _ in range(self.num_envs)]
        return self._generators

    def reset(  # type: ignore[override]
        self, *, seed: int | Sequence[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Start episodes; (observations [N, E], infos of arrays [N]).

        ``seed``: s gives environment i the seed s + i; or one seed each. ``options``: symbol and bar, one for
        all or one each, and reset_mask (bool [N]): who starts anew, the others go on.
        """
        options = read_options(options, ("symbol", "bar", "reset_mask"))
        mask_N = self._mask(options.get("reset_mask"))
        chosen = {name: self._each(name, options.get(name)) for name in ("symbol", "bar")}
        generators = list(self._seeded())
        if {"symbol", "bar"} & options.keys():  # one may not fit after others have drawn
            generators = copy.deepcopy(generators)
        for n, one in enumerate(self._seeds(seed)):
            if one is not None and mask_N[n]:
                generators[n] = seeding.np_random(one)
        starts = [
            self._desk.places.choose(generators[n][0], chosen["symbol"][n], chosen["bar"][n])
            for n in np.flatnonzero(mask_N)
        ]
        self._generators = generators
        self._desk.begin(mask_N, starts)
        infos = self._desk.infos(mask_N)
        self._record(infos)
        return self._desk.observe(), _masked(infos, mask_N)

    def step(  # type: ignore[override]
        self, actions: Any
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """One bar for everybody; (observations, rewards float64, terminations, truncations, infos).

        Where an episode ended, the observation is the next episode's first, and infos has ``final_obs`` and
        ``final_info``. HpcrlError, and nothing changes, where one action is none.
        """
        played = self._desk.step(actions)
        observation_NE, infos = self._desk.observe(), self._desk.infos()
        ended_N = played.terminated_N | played.truncated_N
        final: dict[str, Any] = {}
        if ended_N.any():
            last = np.full(self.num_envs, None, dtype=object)
            for n in np.flatnonzero(ended_N):
                last[n] = observation_NE[n].copy()
            final = {"final_obs": last, "final_info": _masked(infos, ended_N)}
            final |= {f"_{name}": ended_N.copy() for name in final}
            places, seeded = self._desk.places, self._seeded()
            self._desk.begin(ended_N, [places.choose(seeded[n][0]) for n in np.flatnonzero(ended_N)])
            observation_NE, infos = self._desk.observe(), self._desk.infos(ended_N)
        self._record(infos)
        everyone = np.ones(self.num_envs, dtype=bool)
        return (
            observation_NE,
            played.reward_N,
            played.terminated_N,
            played.truncated_N,
            final | _masked(infos, everyone),
        )

    def render(self) -> tuple[np.ndarray, ...] | None:
        """As ``HpcrlTradingEnv.render``, for each environment."""
        return None if self.render_mode is None else tuple(self._picture(n) for n in range(self.num_envs))

    def close_extras(self, **_: Any) -> None:
        self._chart = None

    def _mask(self, mask: Any) -> np.ndarray:
        if mask is None:
            return np.ones(self.num_envs, dtype=bool)
        mask = np.asarray(mask)
        if mask.dtype != np.bool_ or mask.shape != (self.num_envs,) or not mask.any():
            raise HpcrlError(
                f"reset option reset_mask is {mask.dtype} of shape {mask.shape}: bool of shape "
                f"({self.num_envs},) with at least one True is needed"
            )
        if not (self._desk.going_N | mask).all():
            raise HpcrlError("reset option reset_mask: the first reset must start every environment")
        return mask.copy()

    def _each(self, name: str, value: Any) -> list[Any]:
        if isinstance(value, (list, tuple)) or (isinstance(value, np.ndarray) and value.ndim):
            if len(value) != self.num_envs:
                raise HpcrlError(
                    f"reset option {name} has {len(value)} values for {self.num_envs} environments"
                )
            return list(value)
        return [value] * self.num_envs

    def _seeds(self, seed: int | Sequence[int | None] | None) -> list[int | None]:
        if seed is None or isinstance(seed, (int, np.integer)):
            return [None if seed is None else int(seed) + n for n in range(self.num_envs)]
        if not isinstance(seed, (Sequence, np.ndarray)) or isinstance(seed, str):
            raise HpcrlError(f"reset: seed = {seed!r}: a whole number is needed, or one for each environment")
        if len(seed) != self.num_envs:
            raise HpcrlError(f"reset: {len(seed)} seeds for {self.num_envs} environments")
        return list(seed)


def _masked(infos: dict[str, np.ndarray], mask_N: np.ndarray) -> dict[str, np.ndarray]:
    """Gymnasium's form: beside each array the mask of whom it is about; the rest is 0 (None)."""
    found = {}
    for name, value in infos.items():
        if not mask_N.all():
            value = value.copy()
            value[~mask_N] = None if value.dtype == object else 0
        found[name], found[f"_{name}"] = value, mask_N.copy()
    return found
