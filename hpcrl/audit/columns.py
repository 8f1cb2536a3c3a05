"""Checks of the source's own columns, whose making nobody can repeat: what their values give away.

A column that is known at the close of its bar may predict; it cannot be *made of* later bars. The tests:

- whole sample: mean 0 and deviation 1, or the range 0 to 1, exactly and over all rows.
- label: a column of two or three values that splits the returns to come without overlap.
- session: one value a session, and the session's return, high, low, VWAP or volume follows from it.
- made of the future: a regression on the bars up to t leaves a share of the column unexplained; adding later
  bars (returns, highs, lows, labels, whole sessions, longer bars before they have closed; for a column that
  is never negative also volatility, ranges and volume) explains ``MADE`` of it on rows that it was not fitted
  to. A strong honest signal stays well below, since returns hold noise that no column known before can hold:
  the planted market L5 reached 0.56, L2 0.45 (56 data sets of 400 to 12,000 bars).
- equal to a computed feature of a later bar, affine up to ``EQUAL`` of what that feature moves in between.
- a rank correlation with the return to come above ``IMPLAUSIBLE``, three standard errors off. 0.5 for the
  next bar would be a Sharpe ratio of 70 a year on 5-minute bars; honest signals have 0.2 in the planted
  markets and hardly 0.05 in real ones; the bounce between bid and ask stays below 0.5 (Roll 1984).

Below that, a significant correlation with the next return is a warning: such a column is worth a look. What
is exactly a function of bars up to t cannot leak. Not seen: a weak leak (no statistic tells it from a weak
signal), and one that is far from linear in all of these, such as interpolation or the peaks of a zigzag.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import numpy as np
import pandas as pd

from hpcrl.audit.alter import sample
from hpcrl.audit.finding import Finding, stamp
from hpcrl.audit.later import EDGES, Known, ago, know
from hpcrl.audit.pipeline import Case
from hpcrl.market.calendar import SECOND_NS
from hpcrl.market.features import FEATURES, compute_features

CHECK = "source_columns"
LEAST_ROWS = 600
STANDARDISED = 3e-4
"""Mean 0 and deviation 1 over all rows within this: by chance 2 in 100,000 honest columns of 1,000 rows."""
LABEL_BARS = 96
CLASS_SHARE = 0.02
MIXED = 0.001
"""Share of a label's rows that may lie on the wrong side: ties at a threshold."""
SESSIONS = 12
FOLLOWS = 0.98
"""Correlation over sessions at which an outcome follows from a value given at its first bar."""
MADE = 0.9
"""Share of what the past leaves open that later bars must explain (a guess between 0.56, the most that an
honest planted column reached, and 1)."""
KNOWN = 1e-4
"""A share left open below this is float noise: the column is a function of bars that had closed."""
SIZE_ROWS = 1000
"""Below it there are too few rows for the more than 200 columns that sizes make."""
ALIKE = 0.5
"""Correlation with a later size that is needed besides: a mere trend may be fitted by so many columns."""
FOLD = 50
"""Rows of a block that is fitted or held out as a whole: neighbours share their future."""
RIDGE = 1e-9
EQUAL = 1e-3
WARM_UP = 300
IMPLAUSIBLE = 0.5
HORIZONS = (1, 3, 6, 12)
"""Over more bars a slow honest signal may reach any correlation (L3: 0.6 over 78)."""
NOTABLE = 0.05
SURE = 5.0
"""Standard errors from which a correlation is worth a warning: one false alarm in two million columns."""
ADVICE = "make the column from bars that had closed at its stamp's bar, or shift it to where it is known"


def source_columns(case: Case) -> Iterator[Finding]:
    """One finding for every column of the source among the features."""
    own = [name for name in case.names if name in case.own]
    if not own:
        yield Finding(CHECK, "skipped", "every feature is computed from the bars")
        return
    symbols = [know(one) for one in sample(case.bars) if one.present.sum() >= LEAST_ROWS]
    if not symbols:
        said = f"columns {', '.join(own)}: fewer than {LEAST_ROWS} bars a symbol say nothing"
        yield Finding(CHECK, "warning", said, "stage more bars, or make sure that they are known in time")
        return
    for name in own:
        yield _judge(case, name, symbols)


def _judge(case: Case, name: str, symbols: list[Known]) -> Finding:
    column = case.names.index(name)
    found = _whole_sample(case, name, column)
    if found is not None:
        return found
    values = [known.one.features[known.at_R, column].astype(np.float64) for known in symbols]
    live = [(known, value) for known, value in zip(symbols, values, strict=True) if value.std() > 0]
    if not live:
        return Finding(CHECK, "pass", f"{name} is constant")
    open_left = []
    for known, value in live:
        left, said = _made_of_future(known, value)
        open_left.append(left)
        if left > KNOWN:
            said = said or _label(known, value) or _tells_session(known, value) or _later_twin(known, value)
            if said:
                return _leak(name, known, said)
    if max(open_left) <= KNOWN:
        return Finding(CHECK, "pass", f"{name} is a function of bars up to its own")
    for known, value in live:
        if steps := _factor_steps(known, value):
            return Finding(
                CHECK,
                "warning",
                f"{known.one.symbol}, {name}: the close times a factor that steps {steps} times",
                "a price adjusted afterwards tells later splits and dividends: use returns",
                {"symbol": known.one.symbol, "feature": name, "values": [steps]},
            )
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


def _made_of_future(known: Known, value_R: np.ndarray) -> tuple[float, str]:
    """(share of the column that the past leaves open, what the future explains of it if that is a leak)."""
    forms = [value_R]
    if value_R.min() >= 0:  # prices and volumes: logarithms are what adds up
        forms.append(np.log(np.maximum(value_R, 1e-12)) if value_R.min() > 0 else np.log1p(value_R))
    left, said = _explained(known.past_RK, known.future, forms)
    if left <= KNOWN or said or value_R.min() < 0 or len(value_R) < SIZE_ROWS:
        return left, said
    # How much will happen, whichever way: volatility, ranges, volume. A deviation's square is what adds up.
    past_RK = np.hstack([known.past_RK, known.past_sizes_RK])
    return left, _explained(past_RK, known.future_sizes, [*forms, value_R**2], ALIKE)[1]


def _explained(
    past_RK: np.ndarray, future: dict[str, np.ndarray], forms: list[np.ndarray], alike: float = 0.0
) -> tuple[float, str]:
    """(share of the first form that the past leaves open, what the future explains of any if a leak)."""
    use = slice(EDGES[0], len(past_RK) - EDGES[1])
    future_RK = np.column_stack(list(future.values()))[use]
    both_RK = np.hstack([past_RK[use], future_RK])
    lefts = []
    for form_R in forms:
        lefts.append(left := _left_open(past_RK[use], form_R[use]))
        if lefts[0] <= KNOWN:
            break
        made = 1 - _left_open(both_RK, form_R[use]) / left if left > KNOWN else 0.0
        if made > MADE:
            corr_K = [abs(_correlation(form_R[use], column)) for column in future_RK.T]
            if max(corr_K) < alike:
                continue
            like = list(future)[int(np.argmax(corr_K))]
            said = f"bars after its own explain {made:.1%} of what bars up to it do not; most like {like}"
            return lefts[0], f"{said} (correlation {max(corr_K):.2f})"
    return lefts[0], ""


def _left_open(x_RK: np.ndarray, y_R: np.ndarray) -> float:
    """1 - R2 of a linear fit, on the blocks that it was not fitted to."""
    x_RK = np.column_stack([np.ones(len(y_R)), (x_RK - x_RK.mean(0)) / np.maximum(x_RK.std(0), 1e-12)])
    fitted_R = (np.arange(len(y_R)) // FOLD) % 2 == 0
    fit_RK = x_RK[fitted_R]
    # Many columns are sums of others: the ridge keeps the equations solvable and is far below KNOWN.
    square_KK = fit_RK.T @ fit_RK + RIDGE * len(fit_RK) * np.eye(fit_RK.shape[1])
    weight_K = np.linalg.solve(square_KK, fit_RK.T @ y_R[fitted_R])
    held = y_R[~fitted_R]
    rest = held - x_RK[~fitted_R] @ weight_K
    return float((rest**2).sum() / max(((held - held.mean()) ** 2).sum(), 1e-300))


def _label(known: Known, value_R: np.ndarray) -> str:
    """Whether two or three values split the returns of some later bars without overlap, in words."""
    kinds, share = np.unique(value_R, return_counts=True)
    if not 2 <= len(kinds) <= 3:
        return ""
    kinds = kinds[share / len(value_R) >= CLASS_SHARE]
    for bars in range(1, LABEL_BARS + 1) if len(kinds) > 1 else ():
        return_R = known.return_R(bars)[:-bars]
        groups = [return_R[value_R[:-bars] == kind] for kind in kinds]
        for ordered in (groups, groups[::-1]):
            ends = [np.quantile(group, [MIXED, 1 - MIXED]) for group in ordered if len(group)]
            if len(ends) > 1 and all(low[1] <= high[0] for low, high in pairwise(ends)):
                return f"its {len(kinds)} values split the returns of the next {bars} bars without overlap"
    return ""


def _tells_session(known: Known, value_R: np.ndarray) -> str:
    """Whether a column of one value a session tells how the session goes, in words."""
    first = np.flatnonzero(np.r_[True, known.session_R[1:] != known.session_R[:-1]])[1:-1]  # whole ones
    if (
        len(first) < SESSIONS
        or np.median(np.diff(first)) < 4
        or (pd.Series(value_R).groupby(known.session_R).nunique() > 1).any()
    ):
        return ""
    tells = [value_R[first]]
    if value_R.min() > 0:
        tells += [np.log(value_R[first]), np.log(value_R[first]) - known.log_R["open"][first]]
    for name, outcome_R in known.future.items():
        if name.startswith("the whole session's"):
            outcome = outcome_R[first] + (known.log_R["close"] - known.log_R["open"])[first]
            follows = max(abs(_correlation(tell, outcome)) for tell in tells)
            if follows > FOLLOWS:
                return f"at a session's first bar it tells {name} (correlation {follows:.3f} over sessions)"
    return ""


def _later_twin(known: Known, value_R: np.ndarray) -> str:
    """The computed feature of a later bar that the column equals, in words."""
    bars = {**known.bars, "session": known.session_R}
    feature_RF = compute_features(bars, np.ones(len(value_R)), known.one.symbol).astype(np.float64)
    for column, name in enumerate(FEATURES):
        for ahead in (1, 2, 3, 12):
            use = slice(WARM_UP, len(value_R) - ahead)
            now_R, later_R = feature_RF[use, column], ago(feature_RF[:, column], -ahead)[use]
            moved = 1 - _correlation(now_R, later_R) ** 2
            if moved > KNOWN and 1 - _correlation(value_R[use], later_R) ** 2 < EQUAL * moved:
                return f"it is the feature {name} of bar t+{ahead}"
    return ""


def _factor_steps(known: Known, value_R: np.ndarray) -> int:
    """How often the factor of an adjusted price steps; 0 where the column is none."""
    if value_R.min() <= 0:
        return 0
    factor_R = np.log(value_R / known.one.close[known.at_R])
    steps = int((np.abs(np.diff(factor_R)) > 1e-4).sum())
    still = float((np.abs(np.diff(factor_R)) < 1e-5).mean())
    return steps if still > 0.9 and np.ptp(factor_R) > 1e-3 else 0


def _rank_correlation(live: list[tuple[Known, np.ndarray]], horizon: int) -> tuple[float, int]:
    """Spearman's, of the column and the return of the next bars; ranks within each symbol. (value, rows)"""
    ranks = [
        [pd.Series(x[EDGES[0] : -horizon]).rank(pct=True) - 0.5 for x in (value, known.return_R(horizon))]
        for known, value in live
    ]
    x, y = (np.concatenate(part) for part in zip(*ranks, strict=True))
    return _correlation(x, y), len(x)


def _correlation(x: np.ndarray, y: np.ndarray) -> float:
    x, y = x - x.mean(), y - y.mean()
    size = np.sqrt((x @ x) * (y @ y))
    return float(x @ y / size) if size > 0 else 0.0


def _whole_sample(case: Case, name: str, column: int) -> Finding | None:
    """A column that is exactly standardised, or exactly spans 0 to 1, was scaled with all of its rows."""
    parts = [one.features[one.present, column].astype(np.float64) for one in case.bars]
    named = {"all symbols": np.concatenate(parts)} | {
        one.symbol: part for one, part in zip(case.bars, parts, strict=True)
    }
    for symbol, value in named.items():
        if len(value) < LEAST_ROWS or len(np.unique(value[:LEAST_ROWS])) <= 10:  # coins have deviation 1
            continue
        said = ""
        if abs(value.mean()) < STANDARDISED and abs(value.std() - 1) < STANDARDISED + 1 / len(value):
            said = f"mean {value.mean():.1e} and deviation {value.std():.6f}"
        ends = np.flatnonzero((value == 0) | (value == 1))
        if (value.min(), value.max()) == (0.0, 1.0) and len(ends) <= 4:  # a bounded score is there often
            said = "range from exactly 0 to exactly 1, reached once"
        if said:
            return Finding(
                CHECK,
                "leak",
                f"{name}, {symbol}: {said} over all {len(value):,} rows: scaled with the held-out rows",
                "store it unscaled (the run's scaler sees training rows only), or scale it by its past",
                {"symbol": symbol, "feature": name, "values": [float(value.mean()), float(value.std())]},
            )
    return None
