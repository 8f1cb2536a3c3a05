"""The best policy of every planted market, by closed form or dynamic programming, and what it earns.

A policy keeps a state, made from what the agent may see up to the bar's close (the feature, or a belief
about what is hidden), and a table of actions over (state, previous position). Where trading costs, the
table solves the average-reward problem

    g + V(s, p) = max_a  a E[r | s] - c |a - p| + E[V(s', a) | s],    a, p in {-1, 0, 1}

on a grid of states. Arrays: P paths, B bars, G grid points; the last axis of a table is p = -1, 0, 1.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from hpcrl.market.features import BURN_IN
from hpcrl.market.planted import Autoregression, Cue, Hidden, find_task
from hpcrl.types import RunFailed

GRID = 401
"""Points; between 401 and 801 the mean rewards change by less than 5e-5 of themselves (measured)."""
TAIL = 6.0
"""Standard deviations at which a grid ends."""
POSITIONS = np.array([-1.0, 0.0, 1.0])


@dataclass(frozen=True)
class Oracle:
    """The best policy of one task."""

    task: str
    remember: Callable[[np.ndarray], np.ndarray]
    """feature_PB -> state_PB; column t reads columns <= t only."""
    grid_G: np.ndarray
    """States, evenly spaced."""
    action_G3: np.ndarray
    """Position in {-1, 0, 1} to take from p = -1, 0, 1."""
    mean_reward: float
    """A bar, by the closed form or the dynamic programme."""

    def act(self, state_P: np.ndarray, previous_P: np.ndarray) -> np.ndarray:
        """Positions [P] to hold after this bar's close, given those held so far."""
        first, step = self.grid_G[0], self.grid_G[1] - self.grid_G[0]
        row_P = np.clip(np.rint((state_P - first) / step), 0, len(self.grid_G) - 1).astype(np.intp)
        return self.action_G3[row_P, previous_P.astype(np.intp) + 1]

    def play(self, feature_PB: np.ndarray) -> np.ndarray:
        """position_PB, flat before the first bar."""
        state_PB = self.remember(np.asarray(feature_PB, dtype=np.float64))
        position_PB = np.empty_like(state_PB)
        held_P = np.zeros(len(state_PB))
        for bar in range(state_PB.shape[1]):
            held_P = position_PB[:, bar] = self.act(state_PB[:, bar], held_P)
        return position_PB


@functools.cache
def oracle(name: str) -> Oracle:
    """The best policy of a task of ``planted.TASKS``. HpcrlError: no such task."""
    task = find_task(name)
    process, cost = task.process, task.half_spread
    if isinstance(process, Cue):
        return _sign(name, _delayed(process.delay), process.size)
    if isinstance(process, Hidden):
        grid_G, expected_G, move_GG = _belief_chain(process)
        return _solved(name, functools.partial(log_odds, process), grid_G, expected_G, move_GG, cost)
    if process.slope == 0:
        return Oracle(name, np.zeros_like, np.arange(-1.0, 2.0), np.zeros((3, 3)), 0.0)
    if cost == 0:
        # E|x| of a normal variable is its standard deviation times sqrt(2 / pi).
        mean = abs(process.slope) * process.scale * float(np.sqrt(2 / np.pi))
        return _sign(name, lambda x_PB: np.sign(process.slope * x_PB), mean)
    grid_G, move_GG = _autoregressive_chain(process)
    return _solved(name, _itself, grid_G, process.slope * grid_G, move_GG, cost)


def rewards(position_PB: np.ndarray, return_PB: np.ndarray, half_spread: float) -> np.ndarray:
    """a_t r_{t+1} - c |a_t - a_{t-1}| for t = 0 .. B-2, as [P, B-1]; flat before bar 0."""
    held_PB = np.column_stack([np.zeros(len(position_PB)), position_PB])
    traded_PB = np.abs(np.diff(held_PB, axis=1))
    return position_PB[:, :-1] * return_PB[:, 1:] - half_spread * traded_PB[:, :-1]


def mean_and_error(reward_PB: np.ndarray, skip: int = BURN_IN) -> tuple[float, float]:
    """Mean a bar without each path's first ``skip`` bars, and its standard error over the paths.

    Paths are independent of each other and bars of one path are not, so the error comes from path means
    (NaN for a single path).
    """
    mean_P = reward_PB[:, skip:].mean(axis=1)
    error = mean_P.std(ddof=1) / np.sqrt(len(mean_P)) if len(mean_P) > 1 else np.nan
    return float(mean_P.mean()), float(error)


def log_odds(process: Hidden, return_PB: np.ndarray) -> np.ndarray:
    """Bayes filter: ln P(h_t = 1) / P(h_t = -1) given the returns up to bar t [P, B]; even odds at first."""
    gain = 2 * process.drift / process.sigma**2
    state_PB = gain * np.asarray(return_PB, dtype=np.float64)
    for bar in range(1, state_PB.shape[1]):
        state_PB[:, bar] += _carried(state_PB[:, bar - 1], process.flip)
    return state_PB


def _carried(odds: np.ndarray, flip: float) -> np.ndarray:
    """Log odds of the next hidden sign, from those of this one."""
    tilt = (1 - 2 * flip) * np.tanh(odds / 2)
    return 2 * np.arctanh(tilt)


def solve(expected_G: np.ndarray, move_GG: np.ndarray, half_spread: float) -> tuple[np.ndarray, float]:
    """(action_G3, mean reward a bar) by relative value iteration.

    ``expected_G``: E[r | s]; ``move_GG``: chance of s' (column) after s (row). RunFailed: no convergence.
    """
    cost_33 = half_spread * np.abs(POSITIONS[:, None] - POSITIONS)  # [p, a]
    value_G3 = np.zeros((len(expected_G), 3))
    for _ in range(20_000):
        choice_G33 = (expected_G[:, None] * POSITIONS + move_GG @ value_G3)[:, None, :] - cost_33
        new_G3 = choice_G33.max(axis=-1)
        change_G3 = new_G3 - value_G3
        value_G3 = new_G3 - new_G3[len(new_G3) // 2, 1]
        # The mean reward lies between the least and the greatest change.
        if np.ptp(change_G3) < 1e-13:
            return POSITIONS[choice_G33.argmax(axis=-1)], float(change_G3.mean())
    raise RunFailed(f"value iteration: changes still differ by {np.ptp(change_G3):.1e} after 20,000 rounds")


def _autoregressive_chain(process: Autoregression) -> tuple[np.ndarray, np.ndarray]:
    """(grid_G, move_GG). Densities on an even grid, normalised: exact but for what a step hides (the step
    is about a seventh of the innovation's standard deviation)."""
    grid_G = np.linspace(-TAIL, TAIL, GRID) * process.scale
    deviation = process.scale * np.sqrt(1 - process.rho**2)
    move_GG = _bell((grid_G - process.rho * grid_G[:, None]) / deviation)
    return grid_G, move_GG / move_GG.sum(axis=1, keepdims=True)


def _belief_chain(process: Hidden) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(grid_G of log odds, expected next return [G], move_GG): how the filter's state moves."""
    # One return adds 2 drift r / sigma^2 to the log odds: normal around +-jolt^2 / 2, deviation jolt.
    jolt = 2 * process.drift / process.sigma
    most = np.log((1 - process.flip) / process.flip)  # what the flips leave of certainty
    end = most + jolt**2 / 2 + TAIL * jolt
    grid_G = np.linspace(-end, end, GRID)
    carried_G = _carried(grid_G, process.flip)
    up_G = 1 / (1 + np.exp(-carried_G))
    rise_GG = grid_G - carried_G[:, None]
    up_GG, down_GG = (_bell((rise_GG - side * jolt**2 / 2) / jolt) for side in (1, -1))
    move_GG = up_G[:, None] * up_GG + (1 - up_G[:, None]) * down_GG
    return grid_G, process.drift * (2 * up_G - 1), move_GG / move_GG.sum(axis=1, keepdims=True)


def _solved(
    name: str,
    remember: Callable[[np.ndarray], np.ndarray],
    grid_G: np.ndarray,
    expected_G: np.ndarray,
    move_GG: np.ndarray,
    cost: float,
) -> Oracle:
    action_G3, mean = solve(expected_G, move_GG, cost)
    return Oracle(name, remember, grid_G, action_G3, mean)


def _sign(name: str, remember: Callable[[np.ndarray], np.ndarray], mean: float) -> Oracle:
    """Hold the state, which is -1, 0 or 1; trading is free."""
    return Oracle(name, remember, POSITIONS, np.repeat(POSITIONS[:, None], 3, axis=1), mean)


def _delayed(delay: int) -> Callable[[np.ndarray], np.ndarray]:
    def remember(cue_PB: np.ndarray) -> np.ndarray:
        state_PB = np.zeros(cue_PB.shape)  # what came before the first bar was not seen
        state_PB[:, delay:] = np.sign(cue_PB[:, : max(cue_PB.shape[1] - delay, 0)])
        return state_PB

    return remember


def _itself(x_PB: np.ndarray) -> np.ndarray:
    return x_PB


def _bell(z: np.ndarray) -> np.ndarray:
    return np.exp(-0.5 * z**2)
