"""What the agent has to beat, through the same simulator and after the same costs.

Flat earns nothing. Buy and hold buys once. Equal weight comes back to equal shares once a session. Matched
random plays the agent's own path of target weights,
shifted in time (circularly, the same share of the range for every account of a draw): same positions for
the same lengths, same turnover but for the seam, at times that know nothing. An agent with skill in timing
beats most draws; one that merely holds a good market does not.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hpcrl.config.env import EnvConfig
from hpcrl.env.simulator import Simulator
from hpcrl.evaluate.backtest import Group, Plan, new_simulator, play
from hpcrl.evaluate.track import Track, side_by_side
from hpcrl.market.tensors import MarketTensors

BOUGHT = 0.95
"""Buy and hold has bought once this share of the wanted weight is held (a guess: costs are less)."""
CELLS = 1_000_000
"""Steps x accounts played at once for matched random: about 80 MB of records."""
UNLIMITED = 1e9


class Table:
    """A given path of target weights, [T, n, A]; account n of copy k starts ``offset_N`` steps into it."""

    def __init__(self, target_TnA: np.ndarray, length_n: np.ndarray, offset_N: np.ndarray) -> None:
        self._target_TnA, self._length_n, self._offset_N = target_TnA, length_n, offset_N

    def begin(self, simulator: Simulator, history_NME: Tensor, length_N: Tensor) -> None:
        device = simulator.device
        copies = len(self._offset_N) // len(self._length_n)
        self._target = torch.as_tensor(self._target_TnA, device=device)
        self._length = torch.as_tensor(self._length_n, device=device).repeat(copies)
        self._offset = torch.as_tensor(self._offset_N, device=device)
        self._account = torch.arange(len(self._length_n), device=device).repeat(copies)

    def weights(self, simulator: Simulator, step: int, position_NA: Tensor) -> Tensor:
        return self._target[(step - self._offset) % self._length, self._account]


class Flat:
    """Never trades."""

    def begin(self, simulator: Simulator, history_NME: Tensor, length_N: Tensor) -> None:
        pass

    def weights(self, simulator: Simulator, step: int, position_NA: Tensor) -> Tensor:
        return torch.zeros_like(position_NA)


class BuyAndHold:
    """Buys equal weights once, then asks for what it has. Repeats where a bar did not fill (all of) it."""

    def __init__(self, weight: float) -> None:
        self._weight = weight

    def begin(self, simulator: Simulator, history_NME: Tensor, length_N: Tensor) -> None:
        market, rules = simulator.market, simulator.rules
        symbol_NA = simulator.symbol_NA
        self._target_NA = torch.full(
            symbol_NA.shape, self._weight / simulator.n_assets, dtype=torch.float64, device=simulator.device
        )
        self._enough_NA = BOUGHT * self._target_NA
        if rules.lot:  # what whole lots can reach, which may be nothing
            price_NA = market.close_BS[simulator.bar_N[:, None], symbol_NA]
            lots_NA = torch.floor(self._target_NA * rules.initial_cash / price_NA / rules.lot)
            self._enough_NA = BOUGHT * lots_NA * rules.lot * price_NA / rules.initial_cash
        self._bought_NA = torch.zeros_like(symbol_NA, dtype=torch.bool)

    def weights(self, simulator: Simulator, step: int, position_NA: Tensor) -> Tensor:
        coming_NA = simulator.holding(position_NA)
        self._bought_NA |= (coming_NA >= self._enough_NA) & (coming_NA > 0)
        return torch.where(self._bought_NA, coming_NA, self._target_NA)


class Order:
    """Asks for a target weight until it is held, then for what is held, so that only a new target trades.

    A bar that did not fill (all of) it is followed by another try. Held: within 5 % of the target, or within
    one lot of it. A target of 0 is asked for as long as it stands.
    """

    def __init__(self, simulator: Simulator) -> None:
        shape = simulator.symbol_NA.shape
        self._simulator = simulator
        self._target_NA = torch.zeros(shape, dtype=torch.float64, device=simulator.device)
        self._asked_NA = torch.zeros(shape, dtype=torch.bool, device=simulator.device)
        self._held_NA = self._asked_NA.clone()

    def renew(self, target_NA: Tensor, where_NA: Tensor) -> None:
        """From now on another target, where ``where_NA`` (bool) says so."""
        self._target_NA = torch.where(where_NA, target_NA, self._target_NA)
        self._asked_NA &= ~where_NA
        self._held_NA &= ~where_NA

    def weights(self, position_NA: Tensor) -> Tensor:
        """[N, A] of this close."""
        coming_NA, target_NA = self._simulator.holding(position_NA), self._target_NA
        slack_NA = (1 - BOUGHT) * target_NA.abs() + self._lot_share()
        near_NA = ((coming_NA - target_NA).abs() <= slack_NA) & (coming_NA * target_NA > 0)
        self._held_NA |= self._asked_NA & near_NA
        self._asked_NA = torch.ones_like(self._asked_NA)
        return torch.where(self._held_NA, coming_NA, target_NA)

    def _lot_share(self) -> Tensor:
        """One lot as a share of equity, [N, A]; 0 where quantities are fractional."""
        simulator = self._simulator
        symbol_NA = simulator.symbol_NA
        price_NA = simulator.market.close_BS[simulator.bar_N[:, None], symbol_NA]
        return simulator.rules.lot * price_NA / simulator.equity_N[:, None]


class EqualWeight:
    """Equal shares of one account over its assets, brought back to them at the close of each session's first
    bar; in between nothing is traded. Play it with ``hold_config``, as ``BuyAndHold``."""

    def __init__(self, session_B: np.ndarray, weight: float = 1.0) -> None:
        """``session_B``: the session of every bar of the market; ``weight``: the assets' sum."""
        self._first_B = np.diff(session_B, prepend=session_B[:1] - 1) != 0
        self._weight = weight

    def begin(self, simulator: Simulator, history_NME: Tensor, length_N: Tensor) -> None:
        self._order = Order(simulator)
        self._first = torch.as_tensor(self._first_B, device=simulator.device)
        self._share_NA = torch.full(
            simulator.symbol_NA.shape,
            self._weight / simulator.n_assets,
            dtype=torch.float64,
            device=simulator.device,
        )

    def weights(self, simulator: Simulator, step: int, position_NA: Tensor) -> Tensor:
        due_N = self._first[simulator.bar_N] if step else torch.ones_like(simulator.bar_N, dtype=torch.bool)
        self._order.renew(self._share_NA, due_N[:, None].expand_as(self._share_NA))
        return self._order.weights(position_NA)


def hold_weight(env: EnvConfig) -> float:
    """All of the account, or as much as the limits allow."""
    return min(1.0, env.max_leverage, env.max_net or 1.0)


def hold_config(env: EnvConfig) -> EnvConfig:
    """The run's own costs, without the limits on weights: paying the costs puts a fully invested account a
    hair above 1, and being scaled back every bar would be trading."""
    return env.model_copy(update={"max_leverage": UNLIMITED, "max_net": None})


def draw_shares(draws: int, seed: int) -> np.ndarray:
    """One share of the range in [0, 1) per draw, stratified so that the draws cover it evenly."""
    generator = np.random.default_rng([seed, draws])
    return generator.permutation((np.arange(draws) + generator.random(draws)) / draws)


def offsets(share_K: np.ndarray, length_n: np.ndarray) -> np.ndarray:
    """[K, n] int64: shifts of 1 to length - 1 steps; 0 where there is one step only."""
    room_n = np.maximum(length_n - 1, 0)
    return np.minimum(1 + np.floor(share_K[:, None] * room_n), room_n).astype(np.int64)


def matched_random(
    market: MarketTensors, env: EnvConfig, plan: Plan, agent: Track, *, draws: int, seed: int
) -> Iterator[tuple[int, Track]]:
    """Yields (k, track of k draws side by side: k x accounts, draw-major) until ``draws`` are played.

    ``agent`` is the agent's track over the plan, with its target weights.
    """
    assert agent.target_TNA is not None
    share_K = draw_shares(draws, seed)
    batch = max(1, min(draws, CELLS // max(1, plan.steps * agent.n_accounts)))
    parts: list[tuple[Group, Simulator, Any]] = []
    column = 0
    for group in plan.groups:
        members = slice(column, column + len(group.end_n))
        column = members.stop
        path = agent.target_TNA[group.start - plan.lo :, members]
        simulator = new_simulator(market, env, plan, group, copies=batch, history=1, seed=seed)
        parts.append((group, simulator, path))
    for first in range(0, draws, batch):
        # The last batch is filled up, so that every simulator keeps its size.
        chosen = np.resize(share_K[first : first + batch], batch)
        kept = min(batch, draws - first)
        tracks = [_batch(plan, *part, chosen) for part in parts]
        yield kept, _draw_major(tracks, kept, batch)


def _batch(plan: Plan, group: Group, simulator: Simulator, path: np.ndarray, share_K: np.ndarray) -> Track:
    length_n = group.end_n - group.start
    table = Table(path, length_n, offsets(share_K, length_n).ravel())
    steps = plan.hi - 1 - group.start
    own = play(simulator, group, steps, table, copies=len(share_K), keep=False)
    count = len(share_K) * len(length_n)
    return own.placed(
        plan.steps, np.full(count, group.start - plan.lo), np.tile(group.end_n - plan.lo, len(share_K))
    )


def _draw_major(tracks: list[Track], kept: int, batch: int) -> Track:
    """Groups side by side within each draw; drops the draws that only filled the batch."""
    joined = side_by_side(tracks)
    position, blocks = 0, []
    for track in tracks:
        width = track.n_accounts // batch
        blocks.append(position + np.arange(track.n_accounts).reshape(batch, width))
        position += track.n_accounts
    return joined.take(np.concatenate(blocks, axis=1)[:kept].ravel())
