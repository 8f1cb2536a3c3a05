"""Checks of what is fitted and held out: the scaler saw training rows only; splits keep their distance."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np

from hpcrl.audit.finding import Finding, stamp
from hpcrl.audit.pipeline import Case
from hpcrl.market.splits import Split

ORDER: tuple[Split, ...] = ("train", "validation", "test")
PRICES = ("open_BS", "high_BS", "low_BS", "close_BS", "volume_BS")


def scaler_fits_training(case: Case) -> Iterator[Finding]:
    """Refitted with every row outside the training split changed, the scaler is the same bit for bit."""
    check, market = "scaler_train_only", case.market
    lo, hi = case.train_rows
    rng = np.random.default_rng(3)
    outside_B = np.ones(market.n_bars, dtype=bool)
    outside_B[lo:hi] = False
    feature_BSF = market.feature_BSF.copy()
    feature_BSF[outside_B] += (3 + rng.standard_normal(feature_BSF[outside_B].shape)).astype(np.float32)
    prices: dict[str, Any] = {
        name: np.where(outside_B[:, None], 7.0, getattr(market, name)) for name in PRICES
    }
    again = case.pipeline.scaler(replace(market, feature_BSF=feature_BSF, **prices), lo, hi)
    for what, mine, other in (
        ("mean", case.scaler.mean_F, again.mean_F),
        ("deviation", case.scaler.std_F, again.std_F),
    ):
        if not np.array_equal(mine, other):
            column = int(np.argmax(mine != other))
            name = case.names[column]
            yield Finding(
                check,
                "leak",
                f"{name}: {what} {mine[column]:.6g}, and {other[column]:.6g} when only rows outside the "
                f"training split ({stamp(market.ts_B[lo])} to {stamp(market.ts_B[hi - 1])}) change",
                "fit the scaler on the training split's rows alone",
                {"feature": name, "values": [float(mine[column]), float(other[column])]},
            )
            return
    yield Finding(
        check, "pass", f"{len(case.names)} means and deviations do not see rows outside {lo} to {hi}"
    )


def splits_apart(case: Case) -> Iterator[Finding]:
    """Training, validation and test follow each other in time, at least fill_lag + 1 rows apart."""
    check, market = "splits_purged", case.market
    gap = max(2, case.fill_lag + 1)
    if not (np.diff(market.ts_B) > 0).all():
        row = int(np.argmax(np.diff(market.ts_B) <= 0))
        yield Finding(
            check, "leak", f"bars do not run forward in time at {stamp(market.ts_B[row])}", "sort them"
        )
        return
    ranges = {name: case.pipeline.split(market, name, case.fill_lag) for name in ORDER}
    filled = [name for name in ORDER if ranges[name][1] > ranges[name][0]]
    for before, after in pairwise(filled):
        apart = ranges[after][0] - ranges[before][1]
        if apart < gap:
            said = (
                f"overlaps {before} by {-apart}" if apart < 0 else f"begins {apart} rows after {before} ends"
            )
            bar = stamp(market.ts_B[ranges[after][0]])
            yield Finding(
                check,
                "leak",
                f"{after} {said} (at {bar}); fill_lag {case.fill_lag} needs {gap} rows between them",
                "purge max(2, fill_lag + 1) rows from the start of the later split",
                {"bar": bar, "values": [list(ranges[before]), list(ranges[after])]},
            )
            return
    said = ", ".join(f"{name} {ranges[name][0]} to {ranges[name][1]}" for name in filled)
    yield Finding(check, "pass", f"rows: {said}; {gap} or more purged between them")
