"""What accounts did, step by step, in host memory; and the sum of several accounts.

Step t leads from row ``lo + t`` of the market's grid (the decision) to row ``lo + t + 1`` (fill at its open,
mark at its close). Money in currency. T steps, N accounts, A assets of one account.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np

from hpcrl.evaluate import metrics

FLOWS = ("traded", "fees", "spread", "impact", "financing", "dividend")


@dataclass(frozen=True, eq=False)
class Track:
    equity_TN: np.ndarray  # [T + 1, N], the start first; 0 from a bankruptcy on
    traded_TN: np.ndarray  # |fill x price|
    fees_TN: np.ndarray
    spread_TN: np.ndarray  # half-spread and slippage
    impact_TN: np.ndarray
    financing_TN: np.ndarray  # positive: received
    dividend_TN: np.ndarray
    gross_TN: np.ndarray  # sum of |position| / equity after the step
    net_TN: np.ndarray  # sum of position / equity after the step
    trades_TN: np.ndarray  # fills
    bankrupt_N: np.ndarray  # bool
    target_TNA: np.ndarray | None = None  # float32, the weights asked for; kept where wanted
    weight_TNA: np.ndarray | None = None  # float32, the position after the step

    @property
    def steps(self) -> int:
        return len(self.traded_TN)

    @property
    def n_accounts(self) -> int:
        return self.equity_TN.shape[1]

    def take(self, columns: np.ndarray | slice | list[int], first: int = 0, last: int | None = None) -> Track:
        """Some accounts over the steps [first, last)."""
        last = self.steps if last is None else last
        cut = {}
        for field in fields(self):
            array = getattr(self, field.name)
            if field.name == "equity_TN":
                cut[field.name] = array[first : last + 1][:, columns]
            elif field.name == "bankrupt_N":
                cut[field.name] = array[columns]
            else:
                cut[field.name] = None if array is None else array[first:last][:, columns]
        return Track(**cut)

    def placed(self, steps: int, first_N: np.ndarray, last_N: np.ndarray) -> Track:
        """The same accounts in a longer range of ``steps`` steps, as if nothing happened outside their own.

        This track's step 0 is the range's step ``first_N`` (the same for all its accounts); an account's own
        steps end before ``last_N``: before it was idle with its cash, after it its equity stays.
        """
        first = int(first_N[0]) if len(first_N) else 0
        equity = np.repeat(self.equity_TN[:1], steps + 1, axis=0)
        own_steps = min(self.steps, steps - first)
        equity[first : first + own_steps + 1] = self.equity_TN[: own_steps + 1]
        own_TN = (np.arange(steps)[:, None] >= first) & (np.arange(steps)[:, None] < last_N)
        for account, last in enumerate(last_N):
            equity[last:, account] = equity[last, account]
        grown = {"equity_TN": equity, "bankrupt_N": self.bankrupt_N & (equity[-1] <= 0)}
        for field in fields(self):
            array = getattr(self, field.name)
            if field.name in grown or array is None:
                continue
            wide = np.zeros((steps, *array.shape[1:]), dtype=array.dtype)
            wide[first : first + own_steps] = array[:own_steps]
            own = own_TN if array.ndim == 2 else own_TN[..., None]
            grown[field.name] = np.where(own, wide, 0).astype(array.dtype)
        return Track(**grown)


def side_by_side(tracks: list[Track]) -> Track:
    """Several tracks of the same steps as one, account after account."""
    joined: dict[str, np.ndarray | None] = {}
    for field in fields(Track):
        arrays = [getattr(track, field.name) for track in tracks]
        if any(array is None for array in arrays):
            joined[field.name] = None
        else:
            joined[field.name] = np.concatenate(arrays, axis=0 if field.name == "bankrupt_N" else 1)
    return Track(**joined)  # type: ignore[arg-type]


def total(track: Track, groups: int = 1) -> Track:
    """Sum of the accounts: equity and flows added, exposures weighted by equity.

    ``groups`` > 1: the accounts are that many equal blocks, each summed on its own -> ``groups`` columns.
    """

    def add(array: np.ndarray) -> np.ndarray:
        return array.reshape(len(array), groups, -1).sum(-1)

    equity = add(track.equity_TN)
    after = np.where(equity[1:] > 0, equity[1:], 1.0)
    summed = {name: add(getattr(track, name)) for name in (f"{flow}_TN" for flow in FLOWS)}
    return Track(
        equity_TN=equity,
        gross_TN=add(track.gross_TN * track.equity_TN[1:]) / after,
        net_TN=add(track.net_TN * track.equity_TN[1:]) / after,
        trades_TN=add(track.trades_TN),
        bankrupt_N=equity[-1] <= 0,
        **summed,
    )


def summary(track: Track, session_T: np.ndarray, periods: int) -> dict[str, np.ndarray]:
    """Every metric of every account, [N]. ``session_T``: of the bar that each step ends in.

    Costs and financing are shares of the starting equity, turnover is traded value / equity before per bar.
    """
    found = metrics.performance(track.equity_TN, session_T, periods)
    start_N, before_TN = track.equity_TN[0], track.equity_TN[:-1]
    for flow in FLOWS[1:]:
        found[flow] = getattr(track, f"{flow}_TN").sum(0) / start_N
    found["costs"] = found["fees"] + found["spread"] + found["impact"]
    turnover_TN = np.where(before_TN > 0, track.traded_TN / np.where(before_TN > 0, before_TN, 1.0), 0.0)
    found["turnover"] = metrics.mean(turnover_TN)
    found["turnover_total"] = turnover_TN.sum(0)
    found["exposure"] = metrics.mean(track.gross_TN)
    found["net_exposure"] = metrics.mean(track.net_TN)
    held_TN = track.gross_TN > 0
    # A position closed at the open still earned that bar's gap.
    exposed_TN = held_TN | np.concatenate([np.zeros_like(held_TN[:1]), held_TN[:-1]])
    found["hit_rate"] = metrics.hit_rate(metrics.simple_returns(track.equity_TN), exposed_TN)
    found["trades"] = track.trades_TN.sum(0).astype(np.float64)
    found["bankrupt"] = track.bankrupt_N.astype(np.float64)
    return found
