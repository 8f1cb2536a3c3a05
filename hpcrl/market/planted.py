"""Planted markets L0 to L5, L4b and the control: made-up bars whose best policy is known (``oracle``).

Reward of a position a_t in {-1, 0, 1}, chosen at the close of bar t: a_t r_{t+1} - c |a_t - a_{t-1}|, with
r_{t+1} = ln(close_{t+1} / close_t) and half-spread c (a fraction of the price). The open of a bar is the
close before it, volume is no limit, the calendar is 24/7, and every symbol is a separate path. The agent
sees one feature per task, known at the bar's close. Arrays: P paths, B bars.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from hpcrl.market.calendar import ALWAYS, forward_grid
from hpcrl.market.synthetic import START
from hpcrl.types import HpcrlError

VOLUME = 1e9
FIRST_PRICE = 100.0

Draw = Callable[[str, int], np.ndarray]
"""("normal" or "uniform", n) -> [P, n] independent draws; each path has a generator of its own."""


@dataclass(frozen=True)
class Autoregression:
    """x_{t+1} = rho x_t + sqrt(1 - rho^2) scale e, seen; r_{t+1} = new x_{t+1} + old x_t + noise e'."""

    rho: float
    scale: float
    """Standard deviation of x, which starts in its stationary law."""
    new: float
    old: float
    noise: float = 0.0
    shuffled: bool = False
    """Returns in random order, and of another path than the x that is seen. The order alone would not do:
    a path's mean return goes with its mean x, worth some 6e-6 a bar at 1,000 bars to a follower of L2's sign
    (measured)."""

    @property
    def slope(self) -> float:
        """E[r_{t+1} | x_t] / x_t."""
        return 0.0 if self.shuffled else self.new * self.rho + self.old

    def draw(self, draw: Draw, bars: int) -> tuple[np.ndarray, np.ndarray]:
        """(feature_PB, return_PB)."""
        x_PB = self.scale * draw("normal", bars + 1)  # one before the first bar
        fresh = np.sqrt(1 - self.rho**2)
        for bar in range(1, bars + 1):
            x_PB[:, bar] = self.rho * x_PB[:, bar - 1] + fresh * x_PB[:, bar]
        return_PB = self.new * x_PB[:, 1:] + self.old * x_PB[:, :-1]
        if self.noise:
            return_PB += self.noise * draw("normal", bars)
        if self.shuffled:
            _, return_PB = replace(self, shuffled=False).draw(draw, bars)
            order_PB = np.argsort(draw("uniform", bars), axis=1)
            return_PB = np.take_along_axis(return_PB, order_PB, axis=1)
        return x_PB[:, 1:], return_PB


@dataclass(frozen=True)
class Hidden:
    """r_t = drift h_t + sigma e; the unseen sign h changes between two bars with probability ``flip``.

    Returns are seen. A flip before or after the return is the same market: only the name of h_t differs.
    """

    drift: float
    flip: float
    sigma: float

    def draw(self, draw: Draw, bars: int) -> tuple[np.ndarray, np.ndarray]:
        """(feature_PB, return_PB), the same twice."""
        turn_PB = np.where(draw("uniform", bars) < self.flip, -1.0, 1.0)
        turn_PB[:, 0] = np.where(draw("uniform", 1)[:, 0] < 0.5, -1.0, 1.0)
        return_PB = self.drift * np.cumprod(turn_PB, axis=1) + self.sigma * draw("normal", bars)
        return return_PB, return_PB


@dataclass(frozen=True)
class Cue:
    """r_{t+1} = size u_{t-delay} + sigma e; u = +-1 is seen at its own bar only.

    Cues before the first bar exist, but nobody sees them.
    """

    size: float
    delay: int
    sigma: float

    def draw(self, draw: Draw, bars: int) -> tuple[np.ndarray, np.ndarray]:
        """(feature_PB, return_PB)."""
        before = self.delay + 1
        cue_PB = np.where(draw("uniform", bars + before) < 0.5, -1.0, 1.0)
        return_PB = self.size * cue_PB[:, :bars] + self.sigma * draw("normal", bars)
        return cue_PB[:, before:], return_PB


@dataclass(frozen=True)
class Task:
    name: str
    process: Autoregression | Hidden | Cue
    feature: str
    """The only thing that the agent sees of the market."""
    half_spread: float
    """c, a fraction of the price."""
    oracle_reward: float
    """Mean reward a bar of the best policy, as the evaluation design states it."""


def _stationary(rho: float, innovation: float) -> float:
    return innovation / float(np.sqrt(1 - rho**2))


# Unit variance of s, not of its innovations, gives L2's stated figure (and the sign rule's share, .947).
_SIGNAL = Autoregression(rho=0.95, scale=1.0, new=0.0, old=2e-4, noise=1e-3)
_CONTROL = replace(_SIGNAL, shuffled=True)

TASKS: dict[str, Task] = {
    task.name: task
    for task in (
        Task("L0", Autoregression(0.0, 1e-3, new=1.0, old=0.0), "return", 1e-4, 0.0),
        Task("L1", Autoregression(0.2, _stationary(0.2, 1e-3), new=1.0, old=0.0), "return", 0.0, 1.6287e-4),
        Task("L2", _SIGNAL, "signal", 1e-4, 1.4716e-4),
        Task("L3", Autoregression(0.98, _stationary(0.98, 1e-3), new=1.0, old=-1.0), "x", 2e-4, 7.105e-5),
        Task("L4", Hidden(drift=5e-4, flip=0.02, sigma=1e-3), "return", 1e-4, 3.6647e-4),
        Task("L4b", Hidden(drift=2e-4, flip=0.01, sigma=1e-3), "return", 1e-4, 1.1103e-4),
        Task("L5", Cue(size=5e-4, delay=12, sigma=5e-4), "cue", 0.0, 5e-4),
        Task("control", _CONTROL, "signal", 1e-4, 0.0),
    )
}


def find_task(name: str) -> Task:
    """HpcrlError: no such task."""
    if name not in TASKS:
        raise HpcrlError(f"task {name!r} is not known; the planted markets are {', '.join(TASKS)}")
    return TASKS[name]


def draw_paths(name: str, bars: int, paths: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """(feature_PB, return_PB) in float64; return_PB[:, t] is ln(close_t / close_{t-1}).

    A path depends on task, bars, seed and its own number only, not on how many others are made.
    """
    task = find_task(name)
    for what, value, least in (("bars", bars, 1), ("paths", paths, 1), ("seed", seed, 0)):
        if value < least:
            raise HpcrlError(f"planted market {name}: {what} is {value}; at least {least} is needed")
    salt = zlib.crc32(name.encode())
    rngs = [np.random.default_rng([seed, salt, path]) for path in range(paths)]

    def draw(law: str, n: int) -> np.ndarray:
        return np.stack([rng.standard_normal(n) if law == "normal" else rng.random(n) for rng in rngs])

    return task.process.draw(draw, bars)


def planted(name: str, bars: int, paths: int, seed: int, *, bar_seconds: int = 300) -> pd.DataFrame:
    """Raw table of ``paths`` symbols NAME-0000, NAME-0001, ... with ``bars`` bars each, and the feature."""
    feature_PB, return_PB = draw_paths(name, bars, paths, seed)
    log_PB = np.log(FIRST_PRICE) + np.cumsum(return_PB, axis=1)
    close_PB = np.exp(log_PB)
    open_PB = np.column_stack([np.full(paths, FIRST_PRICE), close_PB[:, :-1]])
    stamps = pd.DatetimeIndex(forward_grid(ALWAYS, bar_seconds, START, bars).ts_G, tz="UTC")
    return pd.DataFrame(
        {
            "timestamp": np.tile(stamps, paths),
            "symbol": np.repeat([f"{name}-{path:04d}" for path in range(paths)], bars),
            "open": open_PB.ravel(),
            "high": np.maximum(open_PB, close_PB).ravel(),
            "low": np.minimum(open_PB, close_PB).ravel(),
            "close": close_PB.ravel(),
            "volume": VOLUME,
            find_task(name).feature: feature_PB.ravel(),
        }
    )
