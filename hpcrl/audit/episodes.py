"""Checks of what an agent sees and is paid, by playing episodes through the simulator.

An episode is recorded whole: history, tokens, fills, rewards. Two recordings are compared bit for bit.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch

from hpcrl.audit.alter import altered, stretches, together
from hpcrl.audit.finding import Finding, stamp
from hpcrl.audit.pipeline import Case
from hpcrl.env.simulator import Simulator
from hpcrl.env.token import entry_names
from hpcrl.market.calendar import SECOND_NS
from hpcrl.market.dataset import Market

HISTORY = 16
STEPS = 16


@dataclass(frozen=True, eq=False)
class Recording:
    """T steps of N accounts from the same first bar."""

    start: int
    history_NME: np.ndarray
    token_TNE: np.ndarray  # [T + 1, N, E]: at each decision and at the end
    step_TNK: np.ndarray  # float64: every figure of each step, and the quantities after it
    names: list[str]


class Player:
    """The pipeline's simulator over one stretch. Accounts: one per symbol, or two over all symbols; and
    ``more`` times as many beside them, which play other weights."""

    def __init__(self, case: Case, market: Market, more: int = 0) -> None:
        self.case, self.market = case, market
        self.tensors = case.tensors(market)
        self.all_assets = case.config.env.assets == "all"
        self.played = together(market, self.all_assets)
        symbols = torch.as_tensor(self.played)
        own_NA = symbols.repeat(2, 1) if self.all_assets else symbols[:, None]
        self.n_own = len(own_NA)
        self.symbol_NA = own_NA.repeat(1 + more, 1)
        self.simulator: Simulator = case.pipeline.simulator(
            self.tensors,
            case.env(market),
            env_ids_N=torch.arange(len(self.symbol_NA)),
            seed=0,
            bars=(0, market.n_bars),
            history=HISTORY,
        )

    @property
    def first(self) -> int:
        """First row at which every account can decide."""
        return int(self.market.first_bar_S[self.played].max())

    @property
    def last(self) -> int:
        """Last row at which every account has a bar."""
        return int(self.market.last_bar_S[self.played].min())

    def play(self, start: int, steps: int, seed: int = 0) -> Recording:
        """The same random weights for the same seed, whatever the bars."""
        simulator, names = self.simulator, [self.market.symbols[s] for s in self.symbol_NA[0]]
        limit = min(self.case.config.env.max_leverage, 1.0)
        n, assets = self.symbol_NA.shape
        draws = [(torch.Generator().manual_seed(1000 * seed), self.n_own)]
        draws += [(torch.Generator().manual_seed(1000 * seed + 1), n - self.n_own)]
        bar_N = torch.full((n,), start, dtype=torch.int64)
        history_NME, _ = simulator.begin_at(self.symbol_NA, bar_N)
        tokens, figures = [simulator.observe().numpy()], []
        for _ in range(steps):
            drawn = [torch.rand((many, assets), generator=g, dtype=torch.float64) for g, many in draws]
            step = simulator.step(limit * (2 * torch.cat(drawn) - 1))
            columns = [x.double().reshape(n, -1) for x in (*step, simulator.quantity_NA)]
            figures.append(torch.cat(columns, 1).numpy() + 0.0)  # -0 is 0
            tokens.append(simulator.observe().numpy())
        width = figures[0].shape[1] if figures else 0
        step_TNK = np.array(figures).reshape(len(figures), n, width)
        entries = entry_names(self.market.feature_names, names, simulator.reward_entries)
        return Recording(start, history_NME.numpy(), np.array(tokens), step_TNK, entries)


def observations_causal(case: Case) -> Iterator[Finding]:
    """Another future after a bar changes no observation, fill or reward up to it."""
    check, count = "observations_causal", 0
    for stretch in stretches(case):
        market = case.assemble(tuple(case.staged_as_is(one) for one in stretch))
        player = Player(case, market)
        for cut in _play_cuts(player):
            start = max(player.first, cut - STEPS)
            cut_ns = int(market.ts_B[cut]) * SECOND_NS
            futures = [case.stage(altered(case, one, cut_ns, seed=4)) for one in stretch]
            other = Player(case, case.assemble(tuple(futures)))
            for begin in (start, cut):
                count += 1
                mine = player.play(begin, cut - begin)
                its = other.play(begin, cut - begin)
                found = _difference(mine, its, player)
                if found is not None:
                    where, what = found
                    after = f"with other bars after {stamp(market.ts_B[cut])}"
                    yield Finding(check, "leak", f"{what} {after}", OBSERVED, where)
                    return
    if not count:
        yield Finding(check, "skipped", "no stretch of the data has 4 bars after the burn-in")
        return
    yield Finding(check, "pass", f"{count} episodes with another future saw and earned the same before it")


OBSERVED = "an observation, fill or reward reads bars that have not closed: see features_causal first"


def _play_cuts(player: Player) -> list[int]:
    """Rows to cut at: after the first decision, a session's last bar, the middle, and near the end."""
    first, last = player.first, player.last
    if last - first < 4:
        return []
    session_B = player.market.session_B
    edge = [row for row in range(first + 1, last - 1) if session_B[row] != session_B[row + 1]]
    wanted = {first + 1, (first + last) // 2, last - 1, *edge[len(edge) // 2 :][:1]}
    return sorted(wanted)


def _difference(mine: Recording, its: Recording, player: Player) -> tuple[dict, str] | None:
    """(where, in words) of the first difference; None where the recordings are the same bit for bit."""
    stamps = player.market.ts_B
    for kind, a, b, offset in (
        ("history token", np.moveaxis(mine.history_NME, 1, 0), np.moveaxis(its.history_NME, 1, 0), -HISTORY),
        ("token", mine.token_TNE, its.token_TNE, 0),
        ("step", mine.step_TNK, its.step_TNK, 1),
    ):
        bits = np.uint32 if a.dtype == np.float32 else np.uint64
        differ = np.ascontiguousarray(a).view(bits) != np.ascontiguousarray(b).view(bits)
        if not differ.any():
            continue
        row, account, entry = (int(i) for i in np.argwhere(differ)[0])
        bar = stamp(stamps[max(mine.start + offset + row, 0)])
        symbols = "all symbols" if player.all_assets else player.market.symbols[player.symbol_NA[account, 0]]
        name = mine.names[entry] if kind != "step" else f"figure {entry} of fills and rewards"
        one, two = float(a[row, account, entry]), float(b[row, account, entry])
        where = {"bar": bar, "symbol": symbols, "feature": name, "values": [one, two]}
        return where, f"{symbols}, bar {bar}, {kind} {name}: {one:.8g}, and {two:.8g}"
    return None


def episodes_isolated(case: Case) -> Iterator[Finding]:
    """An episode played after others, or beside others, is the same bit for bit as played alone."""
    check, stretch = "episodes_isolated", stretches(case)[-1]
    market = case.assemble(tuple(case.staged_as_is(one) for one in stretch))
    alone, after, beside = Player(case, market), Player(case, market), Player(case, market, more=2)
    first, steps = alone.first, min(STEPS, (alone.last - alone.first) // 2)
    if steps < 1:
        yield Finding(check, "skipped", "no stretch of the data has 2 bars after the burn-in")
        return
    start = alone.last - steps
    mine = alone.play(start, steps)
    for number, begin in enumerate((first, start)):
        after.play(begin, steps, seed=10 + number)
    again, wide = after.play(start, steps), beside.play(start, steps)
    narrow = _narrow(wide, alone.n_own)
    for other, what in ((again, "after two other episodes"), (narrow, "beside other accounts")):
        found = _difference(mine, other, alone)
        if found is not None:
            where, said = found
            yield Finding(check, "leak", f"{said} {what}", EPISODES, where)
            return
    yield Finding(
        check, "pass", f"an episode of {steps} steps is the same after two others and beside others"
    )


EPISODES = "state of another episode or account reaches this one: reset all of it when an episode begins"


def _narrow(wide: Recording, n: int) -> Recording:
    """The first ``n`` accounts of a wider recording."""
    tokens, steps = wide.token_TNE[:, :n], wide.step_TNK[:, :n]
    return Recording(wide.start, wide.history_NME[:n], tokens, steps, wide.names)
