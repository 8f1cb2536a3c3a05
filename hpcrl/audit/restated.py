"""Check against an older copy of the same data: what was written then must still be there.

One file cannot show that its past is rewritten; two files of different days can.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from hpcrl.audit.finding import Finding, stamp
from hpcrl.audit.pipeline import Case
from hpcrl.market.bars import SymbolBars
from hpcrl.market.calendar import SECOND_NS
from hpcrl.market.clean import PRICES
from hpcrl.market.store import read_store
from hpcrl.types import HpcrlError

CHECK = "not_restated"
SAME = 1e-6
"""Relative difference that another rounding of the same number may make."""


def not_restated(case: Case, earlier: Path) -> Iterator[Finding]:
    """Columns of the source that changed since ``earlier`` (a leak), and prices that did (a warning).

    HpcrlError: no market file, or one without a bar and symbol in common.
    """
    then, header = read_store(earlier)
    count, said = 0, False
    for one in case.bars:
        old = then.get(one.symbol)
        if old is None:
            continue
        _, now_at, then_at = np.intersect1d(one.ts, old.ts, assume_unique=True, return_indices=True)
        both = one.present[now_at] & old.present[then_at]
        now_at, then_at = now_at[both], then_at[both]
        count += len(now_at)
        pairs = {name: (getattr(one, name), getattr(old, name)) for name in (*PRICES, "volume")}
        for name in sorted(case.own & set(header["feature_names"])):
            column = header["feature_names"].index(name)
            pairs[name] = (one.features[:, case.names.index(name)], old.features[:, column])
        for name, (now, before) in pairs.items():
            changed = ~np.isclose(now[now_at], before[then_at], rtol=SAME, atol=1e-12)
            if changed.any():
                row = int(np.argmax(changed))
                values = (float(before[then_at][row]), float(now[now_at][row]))
                yield _changed(case, one, name, int(now_at[row]), int(changed.sum()), values)
                said = True
    if not count:
        raise HpcrlError(f"{earlier}: no bar of {', '.join(one.symbol for one in case.bars)} in common")
    if not said:
        yield Finding(CHECK, "pass", f"{count:,} bars stand as they did in {earlier.name}")


def _changed(
    case: Case, one: SymbolBars, name: str, row: int, count: int, values: tuple[float, float]
) -> Finding:
    bar, own = stamp(one.ts[row] / SECOND_NS), name in case.own
    said = f"{one.symbol}, bar {bar}, {name}: {values[0]:.8g} in the earlier file, {values[1]:.8g} now"
    return Finding(
        CHECK,
        "leak" if own else "warning",
        f"{said} ({count:,} bars changed)",
        "its past is rewritten: store what was known at the time"
        if own
        else "prices were corrected or adjusted since: an agent would have seen the earlier ones",
        {"bar": bar, "symbol": one.symbol, "feature": name, "values": list(values)},
    )
