"""Checks of features: computed by the code that is here, from bars that had closed, in this session so far.

Equality is bit for bit: a value that depends on the future at all differs somewhere.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from hpcrl.audit.alter import altered, cuts, rows, sample, stretches
from hpcrl.audit.finding import Finding, stamp
from hpcrl.audit.pipeline import Case
from hpcrl.market.bars import SymbolBars
from hpcrl.market.calendar import SECOND_NS
from hpcrl.market.features import FEATURES

SAME = 1e-5
"""Share of a feature's spread by which another TA-Lib or numpy may differ; a leak differs by far more."""


def recomputed(case: Case) -> Iterator[Finding]:
    """The stored features are those that the bars give: a file staged by other code shows here."""
    check, told = "features_recomputed", case.header["feature_definitions"]
    names = [name for name in case.names if name not in case.own]
    other = [name for name in names if told.get(name) != FEATURES[name].definition]
    for name in other:
        yield Finding(
            check,
            "warning",
            f"{name} is defined as {told.get(name)!r} in the file and {FEATURES[name].definition!r} here",
            "stage the file again: what another version computed cannot be checked",
        )
    names = [name for name in names if name not in other]
    if not names:
        yield Finding(check, "skipped", "the file holds no feature that can be computed from its bars")
        return
    columns = [case.names.index(name) for name in names]
    bits = True
    for one, fresh in zip(case.bars, case.staged, strict=True):
        fresh_BF, stored_BF = fresh.features[:, columns], one.features[:, columns]
        bits = bits and bool(_same_bits(fresh_BF, stored_BF).all())
        spread_F = np.maximum(fresh_BF.std(0, dtype=np.float64), 1e-9)
        bad_BF = ~(np.abs(fresh_BF - stored_BF) <= SAME * spread_F)
        if bad_BF.any():
            row, column = (int(i) for i in np.argwhere(bad_BF)[0])
            yield _finding(
                check, one, row, names[column], stored_BF[row, column], fresh_BF[row, column],
                "in the file", f"from its bars ({bad_BF.sum():,} of {bad_BF.size:,} values differ)",
                "the file was staged by other code, perhaps one that reads future bars: stage it again",
            )  # fmt: skip
            return
    exact = "bit for bit" if bits else f"within {SAME:g} of their spread"
    yield Finding(check, "pass", f"{len(names)} features of {len(case.bars)} symbols come out again, {exact}")


def causal(case: Case) -> Iterator[Finding]:
    """Another future, or none, after a bar changes no feature up to it."""
    check, count = "features_causal", 0
    for stretch in stretches(case):
        for turn, one in enumerate(sample(stretch)):
            base = case.staged_as_is(one).features
            # The code is the same for all symbols: with several, each takes half of the cuts.
            mine = cuts(case, one)[turn % 2 :: 2] if len(stretch) > 1 else cuts(case, one)
            for number, cut in enumerate(mine):
                futures = [altered(case, one, one.ts[cut], seed=1)]
                futures += [rows(one, 0, cut + 1)] if number % 2 else []
                for other in futures:
                    count += 1
                    bad = _first_difference(base, case.stage(other).features, cut)
                    if bad is not None:
                        yield _leaky(case, check, one, cut, base, *bad)
                        return
    yield Finding(check, "pass", f"{count} altered futures changed no feature before them, bit for bit")


def session_so_far(case: Case) -> Iterator[Finding]:
    """Other bars in the rest of a session change nothing of its beginning, and no earlier session."""
    check, count = "session_so_far", 0
    for stretch in stretches(case):
        for one in sample(stretch):
            base = case.staged_as_is(one).features
            for cut, last in _inside_sessions(case, one):
                count += 1
                other = altered(case, one, one.ts[cut], seed=2, until_ns=one.ts[last])
                bad = _first_difference(base, case.stage(other).features, cut)
                if bad is not None:
                    yield _leaky(case, check, one, cut, base, *bad)
                    return
    if not count:
        yield Finding(check, "skipped", "no session has 4 bars or more after the burn-in")
        return
    yield Finding(check, "pass", f"the rest of {count} sessions changed nothing in their beginnings")


def _inside_sessions(case: Case, one: SymbolBars, count: int = 3) -> Iterator[tuple[int, int]]:
    """(a row inside a session, the session's last present row), for some sessions after the burn-in."""
    at = np.flatnonzero(one.present)
    _, first, size = np.unique(one.session[at], return_index=True, return_counts=True)
    fit = np.flatnonzero((size >= 4) & (first >= case.burn_in))
    for i in fit[np.unique(np.linspace(0, len(fit) - 1, min(count, len(fit))).astype(int))]:
        yield int(at[first[i] + size[i] // 3]), int(at[first[i] + size[i] - 1])


def _same_bits(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(a).view(np.uint32) == np.ascontiguousarray(b).view(np.uint32)


def _first_difference(base: np.ndarray, other: np.ndarray, cut: int) -> tuple[int, int, np.ndarray] | None:
    """(row, column, the other values) of the first value up to ``cut`` that is not the same bit for bit."""
    differ = ~_same_bits(base[: cut + 1], other[: cut + 1])
    if not differ.any():
        return None
    row, column = (int(i) for i in np.argwhere(differ)[0])
    return row, column, other


def _leaky(
    case: Case,
    check: str,
    one: SymbolBars,
    cut: int,
    base: np.ndarray,
    row: int,
    column: int,
    other: np.ndarray,
) -> Finding:
    return _finding(
        check, one, row, case.names[column], base[row, column], other[row, column],
        "with the bars as they are", f"with other bars after {stamp(one.ts[cut] / SECOND_NS)}",
        f"{case.names[column]} reads bars that have not closed: compute it from bars up to its own",
    )  # fmt: skip


def _finding(
    check: str,
    one: SymbolBars,
    row: int,
    name: str,
    was: float,
    now: float,
    here: str,
    there: str,
    advice: str,
) -> Finding:
    bar = stamp(one.ts[row] / SECOND_NS)
    return Finding(
        check,
        "leak",
        f"{one.symbol}, bar {bar}, {name}: {was:.6g} {here}, {now:.6g} {there}",
        advice,
        {"bar": bar, "symbol": one.symbol, "feature": name, "values": [float(was), float(now)]},
    )
