"""Bar-steps per second of vectorbt. Runs in the peers' environment (``make peers``), without hpcrl.

    .venv-peers/bin/python peer_vectorbt.py TABLE.npz REPEATS

TABLE.npz holds what hpcrl was measured on: open and close [B], weight_0, weight_1, ... [B, N] target weights
decided at each bar's close (NaN for no order), fees, slippage and cash. Prints one JSON object: for each
table the best rate of ``Portfolio.from_orders`` (the same orders) and of ``Portfolio.from_signals`` (its
usual call, the same times, all the cash), without and with the equity curves (``value()``), and the last
equities of the orders, so that they can be compared. every_0, every_1, ... are tables with an order in every
bar, which only ``from_orders`` plays. Compilation is done before.
"""

from __future__ import annotations

import json
import sys
import time
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import vectorbt as vbt

CALLS = ("from_orders", "from_signals")


def main() -> None:
    warnings.simplefilter("ignore")
    table = np.load(sys.argv[1])
    repeats = int(sys.argv[2])
    count = sum(name.startswith("weight_") for name in table)
    _measure(table, table["weight_0"][:, :2], 1)  # compiles
    found = [
        _measure(table, table[f"weight_{i}"], repeats)
        | {"every_bar": _measure(table, table[f"every_{i}"], repeats, ("from_orders",))}
        for i in range(count)
    ]
    print(json.dumps({"version": vbt.__version__, "pandas": pd.__version__, "tables": found}))


def _measure(
    table: Any, weight_BN: np.ndarray, repeats: int, names: tuple[str, ...] = CALLS
) -> dict[str, Any]:
    close, opened = pd.Series(table["close"]), pd.Series(table["open"])
    before = close.shift(1).fillna(close.iloc[0])
    order = pd.DataFrame(weight_BN).shift(1)
    entries, exits = order > 0, order == 0
    common = {
        "price": opened,
        "fees": float(table["fees"]),
        "slippage": float(table["slippage"]),
        "init_cash": float(table["cash"]),
    }
    calls: dict[str, Callable[[], Any]] = {
        "from_orders": lambda: vbt.Portfolio.from_orders(
            close, order, size_type="targetpercent", direction="both", val_price=before, **common
        ),
        "from_signals": lambda: vbt.Portfolio.from_signals(close, entries, exits, **common),
    }
    found: dict[str, Any] = {"columns": weight_BN.shape[1]}
    for name in names:
        call = calls[name]
        played, valued = [], []
        for _ in range(repeats):
            start = time.perf_counter()
            portfolio = call()
            played.append(time.perf_counter() - start)
            equity = portfolio.value()
            valued.append(time.perf_counter() - start)
        found[name] = weight_BN.size / min(played)
        found[f"{name}_equity"] = weight_BN.size / min(valued)
        if name == "from_orders":
            found["last_equity"] = np.asarray(equity)[-1].tolist()
    return found


if __name__ == "__main__":
    main()
