"""Checks of the source's own columns, whose making nobody can repeat: what their values give away.

A column that is known at the close of its bar may predict; it cannot be *made of* later bars. Three tests:

- made of the future: a regression on the bars up to t leaves a share of the column unexplained; adding later
  bars (returns, highs and lows, labels, the whole session's VWAP) explains ``MADE`` of that share on rows
  that it was not fitted to. A strong honest signal stays well below, since returns hold noise
  that no column known before can hold: the planted market L5 reaches 0.5, L2 0.6.
- equal to a computed feature of a later bar, affine up to ``EQUAL`` of what that feature moves in between.
- a rank correlation with the return to come above ``IMPLAUSIBLE``, three standard errors off. 0.5 for the
  next bar would be a Sharpe ratio of 70 a year on 5-minute bars; honest signals have 0.2 in the planted
  markets and hardly 0.05 in real ones; the bounce between bid and ask stays below 0.5 (Roll 1984).

Below that, a significant correlation with the next return is a warning: such a column is worth a look. What
is exactly a function of bars up to t cannot leak. A column noisier than all this passes: no statistic tells
a weak leak from a weak signal.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pandas as pd

from hpcrl.audit.alter import sample
from hpcrl.audit.finding import Finding, stamp
from hpcrl.audit.pipeline import Case
from hpcrl.market.bars import SymbolBars
from hpcrl.market.calendar import SECOND_NS
from hpcrl.market.clean import PRICES
from hpcrl.market.features import FEATURES, compute_features

CHECK = "source_columns"
MADE = 0.95
"""Share of what the past leaves open that later bars must explain (a guess between 0.6 and 1)."""
KNOWN = 1e-4
"""A share left open below this is float noise: the column is a function of bars that had closed."""
EQUAL = 1e-3
IMPLAUSIBLE = 0.5
NOTABLE = 0.05
SURE = 5.0
"""Standard errors from which a correlation is worth a warning: one false alarm in two million columns."""
HORIZONS = (1, 3, 6, 12, 24, 78)
AHEAD = 24
BEHIND = 12
MOST_ROWS = 20_000
FOLD = 50
"""Rows of a block that is fitted or held out as a whole: neighbours share their future."""
STANDARDISED = 3e-4
"""Mean 0 and deviation 1 over all rows within this: by chance 2 in 100,000 honest columns of 1,000 rows."""
LEAST_ROWS = 600
ADVICE = "make the column from bars that had closed at its stamp's bar, or shift it to where it is known"


@dataclass(frozen=True, eq=False)
class Known:
    """One symbol's R present rows: columns of bars up to t, and of bars after t."""

    one: SymbolBars
    at_R: np.ndarray
    past_RK: np.ndarray
    future: dict[str, np.ndarray]
    return_HR: dict[int, np.ndarray]  # the return over the next h bars


def source_columns(case: Case) -> Iterator[Finding]:
    """One finding for every column of the source among the features."""
    own = [name for name in case.names if name in case.own]
    if not own:
        yield Finding(CHECK, "skipped", "every feature is computed from the bars")
        return
    symbols = [_know(one) for one in sample(case.bars) if one.present.sum() >= LEAST_ROWS]
    if not symbols:
        yield Finding(
            CHECK, "warning", f"columns {', '.join(own)}: fewer than {LEAST_ROWS} bars a symbol say nothing",
            "stage more bars, or make sure that they are known at the close of their bar",
        )  # fmt: skip
        return
    for name in own:
        yield _judge(case, name, symbols)


def _judge(case: Case, name: str, symbols: list[Known]) -> Finding:
    column = case.names.index(name)
    values = [known.one.features[known.at_R, column].astype(np.float64) for known in symbols]
    found = _whole_sample(case, name, column)
    if found is not None:
        return found
    live = [(known, value) for known, value in zip(symbols, values, strict=True) if value.std() > 0]
    if not live:
        return Finding(CHECK, "pass", f"{name} is constant")
    from_past = True
    for known, value in live:
        left, made, like = _made_of_future(known, value)
        if left > KNOWN and value.min() > 0:  # a price: its logarithm is what returns add up to
            made = max(made, _made_of_future(known, np.log(value))[1])
        from_past &= left <= KNOWN
        if left > KNOWN and made > MADE:
            said = f"bars after its own explain {made:.1%} of what bars up to it do not; most like {like}"
            return _leak(name, known, said)
        if left > KNOWN and (twin := _later_twin(known, value)) is not None:
            return _leak(name, known, f"it is {twin}")
    if from_past:
        return Finding(CHECK, "pass", f"{name} is a function of bars up to its own")
    return _predicts(name, live)


def _predicts(name: str, live: list[tuple[Known, np.ndarray]]) -> Finding:
    for horizon in HORIZONS:
        rho, n = _rank_correlation(live, horizon)
        if abs(rho) - 3 * np.sqrt(horizon / n) > IMPLAUSIBLE:
            said = f"its rank correlation with the return of the next {horizon} bars is {rho:.2f}"
            return _leak(name, live[0][0], f"{said} ({n:,} bars): nothing known before has that", rho)
    rho, n = _rank_correlation(live, 1)
    if abs(rho) >= NOTABLE and abs(rho) * np.sqrt(n) > SURE:
        return Finding(
            CHECK,
            "warning",
            f"{name} predicts the next return with correlation {rho:.2f} ({n:,} bars)",
            "make sure that it is known at the close of its bar",
            {"feature": name, "values": [rho]},
        )
    return Finding(CHECK, "pass", f"{name} shows nothing of later bars (next return {rho:+.3f}, {n:,} bars)")


def _leak(name: str, known: Known, said: str, *values: float) -> Finding:
    bar = stamp(known.one.ts[known.at_R[0]] / SECOND_NS)
    where = {"bar": bar, "symbol": known.one.symbol, "feature": name, "values": list(values)}
    return Finding(CHECK, "leak", f"{known.one.symbol}, from {bar} on, {name}: {said}", ADVICE, where)


def _know(one: SymbolBars) -> Known:
    at_R = np.flatnonzero(one.present)[-MOST_ROWS:]
    bars = {name: getattr(one, name)[at_R] for name in (*PRICES, "volume")}
    session_R = one.session[at_R]
    carried = np.cumprod(one.split[at_R])
    log = {name: np.log(bars[name] * carried) for name in PRICES}
    close_R, volume_R = log["close"], np.log1p(bars["volume"])
    step_R = np.diff(close_R, prepend=close_R[0])
    past = {"level": close_R, "volume": volume_R, "raw": np.log(bars["close"])}
    past |= {name: log[name] - close_R for name in ("open", "high", "low")}
    past |= {f"return {lag}": _ago(step_R, lag) for lag in range(BEHIND)}
    past |= {f"level {lag}": close_R - _ago(close_R, lag) for lag in (24, 48, 78)}
    past |= {f"volume {lag}": _ago(volume_R, lag) for lag in (1, 2, 3)}
    past |= {"size": np.abs(step_R), "time": one.session_time[at_R].astype(np.float64)}
    returns = {h: _ago(close_R, -h) - close_R for h in HORIZONS}
    typical_R = (bars["high"] + bars["low"] + bars["close"]) / 3 * carried
    sums = pd.DataFrame(
        {"s": session_R, "v": bars["volume"] / carried, "m": typical_R * bars["volume"] / carried}
    )
    first_R = pd.Series(close_R).groupby(session_R).transform("first").to_numpy()
    spent = sums.groupby("s")[["v", "m"]].cumsum()
    with np.errstate(divide="ignore", invalid="ignore"):
        past |= {"session": close_R - first_R, "vwap": np.log(spent["m"] / spent["v"]).to_numpy() - close_R}
    past_RK = np.nan_to_num(np.column_stack(list(past.values())), posinf=0.0, neginf=0.0)
    future = _future(log, volume_R, step_R, returns, sums)
    return Known(one, at_R, past_RK, future, returns)


def _future(
    log: dict[str, np.ndarray], volume_R: np.ndarray, step_R: np.ndarray, returns: dict, sums: pd.DataFrame
) -> dict[str, np.ndarray]:
    """What only later bars tell, by name; relative to the last close."""
    close_R = log["close"]
    found = {f"the return of bar t+{ahead}": _ago(step_R, -ahead) for ahead in range(1, AHEAD + 1)}
    found |= {f"the return of the next {h} bars": value for h, value in returns.items() if h > AHEAD}
    found |= {f"the sign of the next {h} bars' return": np.sign(value) for h, value in returns.items()}
    found |= {f"the next bar's {name}": _ago(log[name], -1) - close_R for name in ("open", "high", "low")}
    found |= {"the next bar's volume": _ago(volume_R, -1), "the next return's size": np.abs(returns[1])}
    by = pd.DataFrame({"c": close_R, "h": log["high"], "l": log["low"]}).groupby(sums["s"].to_numpy())
    found["the session's last close"] = by["c"].transform("last").to_numpy() - close_R
    found["the whole session's high"] = by["h"].transform("max").to_numpy() - close_R
    found["the whole session's low"] = by["l"].transform("min").to_numpy() - close_R
    whole = sums.groupby("s")[["v", "m"]].transform("sum")
    with np.errstate(divide="ignore", invalid="ignore"):
        vwap_R = np.log((whole["m"] / whole["v"]).to_numpy()) - close_R
    found["the whole session's VWAP"] = np.nan_to_num(vwap_R, posinf=0.0, neginf=0.0)
    found["the whole session's volume"] = np.log1p(whole["v"].to_numpy())
    return found


def _ago(value_R: np.ndarray, lag: int) -> np.ndarray:
    """The value ``lag`` rows ago (negative: ahead); the ends repeat."""
    return value_R[np.clip(np.arange(len(value_R)) - lag, 0, len(value_R) - 1)]


def _made_of_future(known: Known, value_R: np.ndarray) -> tuple[float, float, str]:
    """(share of the column that the past leaves open, share of that which the future explains, most like)."""
    edge = max(BEHIND, 1)
    use = slice(edge, len(value_R) - HORIZONS[-1])
    future_RK = np.column_stack(list(known.future.values()))[use]
    past_RK, value_R = known.past_RK[use], value_R[use]
    left = _left_open(past_RK, value_R)
    if left <= KNOWN:
        return left, 0.0, ""
    with_future = _left_open(np.hstack([past_RK, future_RK]), value_R)
    corr_K = [abs(_correlation(value_R, column)) for column in future_RK.T]
    like = list(known.future)[int(np.argmax(corr_K))]
    return left, 1 - with_future / left, f"{like} (correlation {max(corr_K):.2f})"


def _left_open(x_RK: np.ndarray, y_R: np.ndarray) -> float:
    """1 - R2 of a linear fit, on the blocks that it was not fitted to."""
    x_RK = np.column_stack([np.ones(len(y_R)), (x_RK - x_RK.mean(0)) / np.maximum(x_RK.std(0), 1e-12)])
    fitted_R = (np.arange(len(y_R)) // FOLD) % 2 == 0
    weight_K = np.linalg.lstsq(x_RK[fitted_R], y_R[fitted_R], rcond=1e-9)[0]
    held = y_R[~fitted_R]
    rest = held - x_RK[~fitted_R] @ weight_K
    return float((rest**2).sum() / max(((held - held.mean()) ** 2).sum(), 1e-300))


def _later_twin(known: Known, value_R: np.ndarray) -> str | None:
    """The computed feature of a later bar that the column equals, in words."""
    one, at_R = known.one, known.at_R
    bars = {name: getattr(one, name)[at_R] for name in (*PRICES, "volume")} | {"session": one.session[at_R]}
    feature_RF = compute_features(bars, one.split[at_R], one.symbol).astype(np.float64)
    for column, name in enumerate(FEATURES):
        for ahead in (1, 2, 3, 12):
            now_R, later_R = feature_RF[300:-ahead, column], feature_RF[300 + ahead :, column]
            moved = 1 - _correlation(now_R, later_R) ** 2
            if moved > KNOWN and 1 - _correlation(value_R[300:-ahead], later_R) ** 2 < EQUAL * moved:
                return f"the feature {name} of bar t+{ahead}"
    return None


def _rank_correlation(live: list[tuple[Known, np.ndarray]], horizon: int) -> tuple[float, int]:
    """Spearman's, of the column and the return of the next bars; ranks within each symbol. (value, rows)"""
    ranks = [
        [pd.Series(x[BEHIND:-horizon]).rank(pct=True) - 0.5 for x in (value, known.return_HR[horizon])]
        for known, value in live
    ]
    x, y = (np.concatenate(part) for part in zip(*ranks, strict=True))
    return _correlation(x, y), len(x)


def _correlation(x: np.ndarray, y: np.ndarray) -> float:
    x, y = x - x.mean(), y - y.mean()
    size = np.sqrt((x @ x) * (y @ y))
    return float(x @ y / size) if size > 0 else 0.0


def _whole_sample(case: Case, name: str, column: int) -> Finding | None:
    """A column whose mean is 0 and deviation 1 over every row was scaled with all of them."""
    parts = [one.features[one.present, column].astype(np.float64) for one in case.bars]
    named = {"all symbols": np.concatenate(parts)} | {
        one.symbol: part for one, part in zip(case.bars, parts, strict=True)
    }
    for symbol, value in named.items():
        if len(value) < LEAST_ROWS or len(np.unique(value[:LEAST_ROWS])) <= 10:  # coins have deviation 1
            continue
        if abs(value.mean()) < STANDARDISED and abs(value.std() - 1) < STANDARDISED + 1 / len(value):
            return Finding(
                CHECK,
                "leak",
                f"{name}, {symbol}: mean {value.mean():.1e} and deviation {value.std():.6f} over all "
                f"{len(value):,} rows: it was scaled with the held-out rows",
                "store it unscaled (the run's scaler sees training rows only), or scale it by its past",
                {"symbol": symbol, "feature": name, "values": [float(value.mean()), float(value.std())]},
            )
    return None
