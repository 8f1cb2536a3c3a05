"""Strategies through the simulator over a whole range of bars, in one go.

Owns who plays where (``Plan``), the loop, and the freezing of accounts that are bankrupt or whose symbol
has ended. The simulator is the one that trains, with the run's own costs. Decisions see bars up to t and
fill at the open of t + 1, or where ``env.fill_lag`` says.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from hpcrl.config.env import EnvConfig
from hpcrl.env.simulator import Simulator
from hpcrl.evaluate.track import Track, side_by_side
from hpcrl.market.tensors import MarketTensors
from hpcrl.policy import Player
from hpcrl.types import HpcrlError


@dataclass(frozen=True)
class Group:
    """Accounts that begin at the same bar. n accounts of A assets."""

    start: int  # row of the first decision
    symbol_nA: np.ndarray  # int64
    end_n: np.ndarray  # int64, row of the last mark


@dataclass(frozen=True)
class Plan:
    """Which accounts play where in rows [lo, hi); accounts are numbered group after group."""

    lo: int
    hi: int
    groups: tuple[Group, ...]
    left_out: tuple[int, ...]  # symbols without two bars in the range

    @property
    def steps(self) -> int:
        return self.hi - 1 - self.lo

    @property
    def first_N(self) -> np.ndarray:
        """Each account's first step of the range."""
        return np.concatenate([np.full(len(g.end_n), g.start - self.lo) for g in self.groups])

    @property
    def last_N(self) -> np.ndarray:
        """One past each account's last step of the range."""
        return np.concatenate([g.end_n - self.lo for g in self.groups])

    @property
    def symbol_N(self) -> np.ndarray:
        """The first symbol of each account."""
        return np.concatenate([g.symbol_nA[:, 0] for g in self.groups])


def make_plan(market: MarketTensors, env: EnvConfig, lo: int, hi: int) -> Plan:
    """One account per symbol (assets "single") or one for all. HpcrlError where the range holds no step."""
    first_S, last_S = market.first_bar_S.cpu().numpy(), market.last_bar_S.cpu().numpy()
    start_S, end_S = np.maximum(first_S, lo), np.minimum(last_S, hi - 1)
    if env.assets == "all":
        start = int(start_S.max())
        if hi - 1 <= start:
            raise HpcrlError(
                f"rows {lo} to {hi} hold no step of an account over all {len(start_S)} symbols: the last of "
                f"them has its features from row {start} on"
            )
        symbols = np.arange(len(start_S))[None]
        return Plan(lo, hi, (Group(start, symbols, np.array([hi - 1])),), ())
    playing = np.flatnonzero(end_S > start_S)
    if not len(playing):
        raise HpcrlError(f"rows {lo} to {hi} hold fewer than two tradable bars of every symbol")
    groups = tuple(
        Group(int(start), members[:, None], end_S[members])
        for start in np.unique(start_S[playing])
        for members in [playing[start_S[playing] == start]]
    )
    return Plan(lo, hi, groups, tuple(int(s) for s in np.flatnonzero(end_S <= start_S)))


class Strategy(Protocol):
    """Target weights, bar by bar. One object plays one group once."""

    def begin(self, simulator: Simulator, history_NME: Tensor, length_N: Tensor) -> None:
        """The accounts stand flat at the first decision's close."""

    def weights(self, simulator: Simulator, step: int, position_NA: Tensor) -> Tensor:
        """[N, A]: targets decided at this close; ``position_NA`` is today's position as share of equity."""


class PolicyStrategy:
    """The deterministic policy: at every close its distribution's mode."""

    def __init__(self, policy: Player) -> None:
        self._policy = policy

    def begin(self, simulator: Simulator, history_NME: Tensor, length_N: Tensor) -> None:
        self._memory = self._policy.rebuild(history_NME, length_N)
        self._age_N = length_N.clone()

    def weights(self, simulator: Simulator, step: int, position_NA: Tensor) -> Tensor:
        params_NAP, _ = self._policy.step(simulator.observe(), self._age_N, self._memory)
        self._age_N += 1
        distribution = self._policy.distribution
        return distribution.weights(distribution.mode(params_NAP))


class Recorder:
    """Preallocated on the device, copied to the host once at the end."""

    COLUMNS = (
        "equity",
        "traded",
        "fees",
        "spread",
        "impact",
        "financing",
        "dividend",
        "gross",
        "net",
        "trades",
    )

    def __init__(self, simulator: Simulator, steps: int, keep_weights: bool) -> None:
        n, device = simulator.n_envs, simulator.device
        self.table = torch.zeros((len(self.COLUMNS), steps, n), dtype=torch.float64, device=device)
        shape = (steps, n, simulator.n_assets)
        self.target = torch.zeros(shape, device=device) if keep_weights else None
        self.weight = torch.zeros(shape, device=device) if keep_weights else None

    def track(self, initial_cash: float, alive_N: Tensor) -> Track:
        columns = dict(zip(self.COLUMNS, self.table.cpu().numpy(), strict=True))
        equity = columns.pop("equity")
        start = np.full((1, equity.shape[1]), initial_cash)
        return Track(
            equity_TN=np.concatenate([start, equity]),
            bankrupt_N=~alive_N.cpu().numpy(),
            target_TNA=None if self.target is None else self.target.cpu().numpy(),
            weight_TNA=None if self.weight is None else self.weight.cpu().numpy(),
            **{f"{name}_TN": column for name, column in columns.items()},
        )


@torch.inference_mode()
def play(
    simulator: Simulator, group: Group, steps: int, strategy: Strategy, *, copies: int = 1, keep: bool = True
) -> Track:
    """``steps`` steps of one group, ``copies`` times side by side (copy-major). ``keep``: record weights.

    A bankrupt account stays at 0 to the end, whatever the simulator begins anew in its place.
    """
    device = simulator.device
    symbol_NA = torch.as_tensor(group.symbol_nA, dtype=torch.int64, device=device).repeat(copies, 1)
    bar_N = torch.full((len(symbol_NA),), group.start, dtype=torch.int64, device=device)
    strategy.begin(simulator, *simulator.begin_at(symbol_NA, bar_N))
    record = Recorder(simulator, steps, keep)
    market = simulator.market
    alive_N = torch.ones(len(symbol_NA), dtype=torch.bool, device=device)
    position_NA = torch.zeros(symbol_NA.shape, dtype=torch.float64, device=device)
    equity_N = torch.full((len(symbol_NA),), simulator.rules.initial_cash, dtype=torch.float64, device=device)
    for t in range(steps):
        target_NA = strategy.weights(simulator, t, position_NA).to(torch.float64) * alive_N[:, None]
        row = group.start + t + 1
        listed_NA = torch.isnan(market.delist_BS[row])[symbol_NA]
        held_NA = simulator.quantity_NA * market.split_BS[row][symbol_NA] * listed_NA
        step = simulator.step(target_NA)
        after_N = alive_N & ~step.terminated_N
        trades_N = ((simulator.quantity_NA != held_NA).sum(1) * after_N).double()
        position_NA = step.weight_NA * after_N[:, None]
        record.table[:, t] = torch.stack(
            (
                step.equity_N * after_N,
                step.turnover_N * equity_N,
                step.fees_N * alive_N,
                step.spread_N * alive_N,
                step.impact_N * alive_N,
                step.financing_N * alive_N,
                step.dividend_N * alive_N,
                position_NA.abs().sum(1),
                position_NA.sum(1),
                trades_N,
            )
        )
        if record.target is not None and record.weight is not None:
            record.target[t], record.weight[t] = target_NA.float(), position_NA.float()
        alive_N, equity_N = after_N, step.equity_N * after_N
    return record.track(simulator.rules.initial_cash, alive_N)


def new_simulator(
    market: MarketTensors, env: EnvConfig, plan: Plan, group: Group, *, copies: int, history: int, seed: int
) -> Simulator:
    ids_N = torch.arange(len(group.end_n) * copies, device=market.device)
    bars = (group.start, plan.hi)
    return Simulator(market, env, env_ids_N=ids_N, seed=seed, bars=bars, history=history)


def play_plan(
    market: MarketTensors,
    env: EnvConfig,
    plan: Plan,
    make_strategy: Callable[[Group], Strategy],
    *,
    history: int = 1,
    seed: int = 0,
) -> Track:
    """Every group of the plan with a strategy of its own, joined over [lo, hi), accounts in plan order."""
    tracks = []
    for group in plan.groups:
        simulator = new_simulator(market, env, plan, group, copies=1, history=history, seed=seed)
        own = play(simulator, group, plan.hi - 1 - group.start, make_strategy(group))
        first_n = np.full(len(group.end_n), group.start - plan.lo)
        tracks.append(own.placed(plan.steps, first_n, group.end_n - plan.lo))
    return side_by_side(tracks)
