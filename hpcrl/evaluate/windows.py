"""A policy's score in each of many short windows, all played at once: what members of a population compare.

Every window is an episode of its own: a flat account at the close of its first bar (history reaches back
before it), marked at the close of its last. The policy is deterministic; costs, lag and sizing are the run's.

    score = log growth - drawdown_penalty x max(0, deepest drawdown - drawdown_limit)

With one symbol per account the score is the mean over the symbols that have bars throughout the window. A
bankrupt account has lost all but ``reward_floor``, and its drawdown is 1.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from hpcrl.config.pbt import ObjectiveConfig
from hpcrl.config.root import Config
from hpcrl.env.simulator import Simulator
from hpcrl.evaluate.backtest import PolicyStrategy
from hpcrl.market.dataset import Market
from hpcrl.market.splits import Split
from hpcrl.market.tensors import MarketTensors
from hpcrl.policy import Policy

MOST_ACCOUNTS = 512
"""Played side by side; bounds the memory of attention."""


@dataclass(frozen=True, eq=False)
class Windows:
    """N accounts over K windows. Accounts of a window play symbols of it."""

    window_N: np.ndarray  # int64, 0 .. K - 1
    symbol_NA: np.ndarray  # int64
    first_N: np.ndarray  # row of the first decision
    last_N: np.ndarray  # row of the last mark
    count: int

    def __len__(self) -> int:
        return self.count


def find_windows(market: Market, config: Config, split: Split = "validation") -> Windows:
    """The windows of a split in time, without those in which no symbol has bars throughout."""
    lo, hi = market.split_range(split, config.env.fill_lag)
    every = config.pbt.objective.window_bars
    if every is None:
        day = market.session_B[lo:hi]
        cuts = [lo, *(lo + 1 + np.flatnonzero(np.diff(day))).tolist(), hi] if hi > lo else []
        rows = [(a, b - 1) for a, b in itertools.pairwise(cuts)]
    else:
        rows = [(a, a + every - 1) for a in range(lo, hi - every + 1, every)]
    window, symbols, first, last = [], [], [], []
    count = 0
    for a, b in rows:
        there = np.flatnonzero((market.first_bar_S <= a) & (market.last_bar_S >= b))
        if b <= a or not len(there) or (config.env.assets == "all" and len(there) < len(market.symbols)):
            continue
        accounts = there[None] if config.env.assets == "all" else there[:, None]
        window += [count] * len(accounts)
        symbols += list(accounts)
        first += [a] * len(accounts)
        last += [b] * len(accounts)
        count += 1
    width = len(market.symbols) if config.env.assets == "all" else 1
    return Windows(
        np.array(window, dtype=np.int64),
        np.array(symbols, dtype=np.int64).reshape(len(window), width),
        np.array(first, dtype=np.int64),
        np.array(last, dtype=np.int64),
        count,
    )


@torch.inference_mode()
def window_scores(
    policy: Policy, market: MarketTensors, windows: Windows, config: Config
) -> tuple[float, ...]:
    """One score per window; the policy may be the one that rollouts use, whose memory is not touched."""
    scores_N = np.concatenate(
        [
            _play(
                policy, market, windows, np.arange(at, min(at + MOST_ACCOUNTS, len(windows.first_N))), config
            )
            for at in range(0, len(windows.first_N), MOST_ACCOUNTS)
        ]
    )
    total_W = np.bincount(windows.window_N, scores_N, minlength=len(windows))
    return tuple((total_W / np.bincount(windows.window_N, minlength=len(windows))).tolist())


def _play(
    policy: Policy, market: MarketTensors, windows: Windows, accounts: np.ndarray, config: Config
) -> np.ndarray:
    """Scores of some accounts, side by side."""
    device = market.device
    first_N, last_N = windows.first_N[accounts], windows.last_N[accounts]
    steps_N = last_N - first_N
    longest = int(first_N[np.argmax(steps_N)])
    simulator = Simulator(
        market,
        config.env,
        env_ids_N=torch.arange(len(accounts), device=device),
        seed=0,
        bars=(int(first_N.min()), int(last_N.max()) + 1),
        history=config.policy.padded_history,
    )
    symbol_NA = torch.as_tensor(windows.symbol_NA[accounts], device=device)
    strategy = PolicyStrategy(policy)
    strategy.begin(simulator, *simulator.begin_at(symbol_NA, torch.as_tensor(first_N, device=device)))
    book = _Book(len(accounts), simulator.rules.initial_cash, device)
    position_NA = torch.zeros(symbol_NA.shape, dtype=torch.float64, device=device)
    left_N = torch.as_tensor(steps_N, device=device)
    ends = set(steps_N.tolist())
    parked_N = torch.full((len(accounts),), longest, dtype=torch.int64, device=device)
    for t in range(1, int(steps_N.max()) + 1):
        step = simulator.step(strategy.weights(simulator, t, position_NA).to(torch.float64))
        position_NA = step.weight_NA
        book.note(step.equity_N, step.terminated_N, left_N >= t)
        if t in ends:
            # An account whose window is over must not run past the data: it idles where there is room.
            simulator.begin_some(left_N == t, symbol_NA, parked_N)
    return book.scores(config.env.reward_floor, config.pbt.objective)


class _Book:
    """Equity and drawdown of accounts, on the device until the end."""

    def __init__(self, n: int, cash: float, device: torch.device) -> None:
        self.cash = cash
        self.equity_N = torch.full((n,), cash, dtype=torch.float64, device=device)
        self.peak_N = self.equity_N.clone()
        self.drawdown_N = torch.zeros_like(self.equity_N)
        self.alive_N = torch.ones(n, dtype=torch.bool, device=device)

    def note(self, equity_N: Tensor, bankrupt_N: Tensor, playing_N: Tensor) -> None:
        now_N = playing_N & self.alive_N
        self.alive_N &= ~(bankrupt_N & playing_N)
        equity_N = equity_N * self.alive_N
        self.equity_N = torch.where(now_N, equity_N, self.equity_N)
        self.peak_N = torch.maximum(self.peak_N, self.equity_N)
        self.drawdown_N = torch.maximum(self.drawdown_N, 1 - self.equity_N / self.peak_N)

    def scores(self, floor: float, objective: ObjectiveConfig) -> np.ndarray:
        growth_N = (self.equity_N / self.cash).clamp_min(floor).log()
        over_N = (self.drawdown_N - objective.drawdown_limit).clamp_min(0.0)
        return (growth_N - objective.drawdown_penalty * over_N).cpu().numpy()
