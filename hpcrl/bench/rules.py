"""``hpcrl bench rules``: bar-steps per second of rules through the simulator, beside vectorbt in one run.

A bar-step is one bar of one column: an order where one is given, costs, the mark. The rules are
moving-average crosses of many parameters on one symbol, given as tables of target weights, to both the same;
fees and slippage are on, quantities fractional. Both give the equity of every column at every bar, and the
bench fails where the two do not end alike. A second table has an order in every bar: the worst case. Rounds
alternate, so that a busy machine slows both: the ratio is what counts.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

from rich.table import Table

from hpcrl.types import HpcrlError, RunFailed

PEERS = Path(".venv-peers/bin/python")
PEER_SCRIPT = Path(__file__).with_name("peer_vectorbt.py")
REPEATS = 2
"""Of each measurement in a round, the faster counts: the first one warms the memory up."""
WEIGHT = 0.9
"""Below 1, as vectorbt lends no cash."""
FEES_BPS, SLIPPAGE = 2.0, 1e-4
SAME = 1e-9
SIMPLE = {
    "lot": 0,
    "intrabar": False,
    "costs": {
        "half_spread": 0,
        "impact_coef": 0,
        "participation": None,
        "per_share": 0,
        "min_fee": 0,
        "borrow_rate": 0,
        "slippage": SLIPPAGE,
        "bps": FEES_BPS,
    },
}
"""What vectorbt knows too."""


def numbers(text: str) -> tuple[int, ...]:
    """ "1,100" as (1, 100). HpcrlError: something else."""
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise HpcrlError(
            f"--columns {text}: whole numbers with commas between are needed, as 1,100,1000"
        ) from None


def bench_rules(
    columns: tuple[int, ...],
    *,
    bars: int = 5_000,
    threads: int = 1,
    rounds: int = 3,
    peers: Path | None = None,
) -> dict[str, Any]:
    """Medians over ``rounds`` for every number of columns. ``peers``: a Python that has vectorbt; one from
    ``make peers`` is taken where it is there.

    HpcrlError: a number below 1, fewer than 300 bars, or that Python is missing; RunFailed: the peer fails,
    or its equities are not ours.
    """
    for what, value in (("columns", min(columns, default=0)), ("threads", threads), ("rounds", rounds)):
        if value < 1:
            raise HpcrlError(f"bench rules: {what} is {value}; at least 1 is needed")
    if bars < 300:
        raise HpcrlError(f"bench rules: {bars} bars; at least 300 are needed for averages of up to 200")
    if peers is not None and not peers.exists():
        raise HpcrlError(f"bench rules: {peers} is not there; make peers sets up {PEERS}")
    if peers is None and PEERS.exists():
        peers = PEERS
    import torch

    from hpcrl.bench.machine import machine

    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        with tempfile.TemporaryDirectory() as folder:
            made = _Made(bars, columns)
            result = {"bench": "rules", "machine": machine(), "bars": bars, "rounds": rounds}
            return result | _measure(made, rounds, peers, Path(folder))
    finally:
        torch.set_num_threads(before)


class _Made:
    """A random walk, and for each number of columns a table of crosses [B, N]."""

    def __init__(self, bars: int, columns: tuple[int, ...]) -> None:
        import numpy as np

        from hpcrl.evaluate.prices import read_prices
        from hpcrl.evaluate.rules import MovingAverageCross

        draw = np.random.default_rng(0)
        close = 100 * np.exp(draw.normal(0, 1e-3, bars).cumsum())
        opened = np.r_[100.0, close[:-1]]
        edge = {"high": np.maximum(opened, close), "low": np.minimum(opened, close)}
        prices = {"open": opened, "close": close} | edge
        self.bars = {"ts": 300 * np.arange(bars), "volume": np.full(bars, 1e9)} | prices
        self.columns = columns
        read = read_prices(self.bars)
        widest = max(columns)
        fast_N, more_N = draw.integers(2, 50, widest), draw.integers(5, 150, widest)
        table_BN = np.empty((bars, widest))
        for n in range(widest):
            rule = MovingAverageCross(int(fast_N[n]), int(fast_N[n] + more_N[n]), WEIGHT)
            table_BN[:, n] = rule.targets(read, 1).numpy()[:, 0]
        self.tables = [np.ascontiguousarray(table_BN[:, :n]) for n in columns]
        every_BN = draw.uniform(0.0, WEIGHT, (bars, widest))
        self.every = [np.ascontiguousarray(every_BN[:, :n]) for n in columns]
        self.orders = [int((~np.isnan(table)).sum()) for table in self.tables]


def _measure(made: _Made, rounds: int, peers: Path | None, folder: Path) -> dict[str, Any]:
    kinds: tuple[tuple[str, list[Any], dict[str, Any], bool], ...] = (
        ("equity", made.tables, SIMPLE, False),
        ("every_flow", made.tables, SIMPLE, True),
        ("default_costs", made.tables, {}, False),
        ("every_bar", made.every, SIMPLE, False),
    )
    rates: list[dict[str, list[float]]] = [{kind: [] for kind, *_ in kinds} for _ in made.columns]
    found: list[dict[str, Any]] = []
    last: list[list[list[float]]] = []
    table = _table(made, folder) if peers is not None else None
    for _ in range(rounds):
        last = []
        for index, rates_of in enumerate(rates):
            ends = {}
            for kind, tables, env, flows in kinds:
                rate, ends[kind] = _rate(made, tables[index], env, flows)
                rates_of[kind].append(rate)
            last.append([ends["equity"], ends["every_bar"]])
        if peers is not None and table is not None:
            found.append(_run_peer(peers, table))
    ours = [
        {"columns": n, "orders": orders}
        | {kind: statistics.median(each) for kind, each in of.items()}
        | {"rounds": of["equity"], "rounds_every_bar": of["every_bar"]}
        for n, orders, of in zip(made.columns, made.orders, rates, strict=True)
    ]
    for theirs in found:
        _check_same(last, theirs)
    return {"ours": ours, "peer": against_peer(ours, found) if found else None}


def _rate(made: _Made, weight_BN: Any, env: dict[str, Any], flows: bool) -> tuple[float, list[float]]:
    """(bar-steps per second, last equity of every column)."""
    from hpcrl.evaluate.rules import play_rule

    passed = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        played = play_rule(weight_BN, made.bars, env=env, flows=flows)
        passed.append(time.perf_counter() - start)
    return weight_BN.size / min(passed), played.track.equity_TN[-1].tolist()


def _table(made: _Made, folder: Path) -> Path:
    import numpy as np

    path = folder / "rules.npz"
    arrays = {f"weight_{i}": table for i, table in enumerate(made.tables)}
    arrays |= {f"every_{i}": table for i, table in enumerate(made.every)}
    arrays |= {"open": made.bars["open"], "close": made.bars["close"]}
    costs = {"fees": FEES_BPS * 1e-4, "slippage": SLIPPAGE, "cash": 100_000.0}
    arrays |= {name: np.array(value) for name, value in costs.items()}
    np.savez(path, allow_pickle=False, **arrays)
    return path


def _run_peer(python: Path, table: Path) -> dict[str, Any]:
    # One thread, as for us.
    threads = ("OMP_NUM_THREADS=1", "NUMBA_NUM_THREADS=1")
    command = ["env", *threads, str(python), str(PEER_SCRIPT), str(table), str(REPEATS)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise RunFailed(f"vectorbt did not run in {python}: {last}")
    return json.loads(done.stdout.splitlines()[-1])


def _check_same(last: list[list[list[float]]], theirs: dict[str, Any]) -> None:
    for ends, found in zip(last, theirs["tables"], strict=True):
        for ours, other_N in zip(
            ends, (found["last_equity"], found["every_bar"]["last_equity"]), strict=True
        ):
            for n, (mine, other) in enumerate(zip(ours, other_N, strict=True)):
                if not abs(mine - other) <= SAME * abs(mine):
                    said = f"column {n} of {len(ours)} ends at {mine!r} here and at {other!r} in vectorbt"
                    raise RunFailed(f"bench rules: {said}: not the same rule is measured")


def against_peer(ours: list[dict[str, Any]], rounds: list[dict[str, Any]]) -> dict[str, Any]:
    """The peer's medians, and medians over the rounds of our rate over its own in the same round: with equity
    curves on both sides, and over its faster call without them (which ours always has)."""
    tables = []
    for index, row in enumerate(ours):
        per_round = [found["tables"][index] for found in rounds]
        bare = [max(each["from_orders"], each["from_signals"]) for each in per_round]
        whole = [max(each["from_orders_equity"], each["from_signals_equity"]) for each in per_round]
        names = ("from_orders", "from_signals", "from_orders_equity", "from_signals_equity")
        every = [each["every_bar"] for each in per_round]
        busy = row["rounds_every_bar"]
        tables.append(
            {"columns": row["columns"]}
            | {name: statistics.median(each[name] for each in per_round) for name in names}
            | {"every_bar": statistics.median(each["from_orders"] for each in every)}
            | {"ratio": _ratio(row["rounds"], whole), "ratio_without_its_equity": _ratio(row["rounds"], bare)}
            | {"ratio_every_bar": _ratio(busy, [each["from_orders_equity"] for each in every])}
            | {"ratio_every_bar_without": _ratio(busy, [each["from_orders"] for each in every])}
        )
    versions = {name: rounds[0][name] for name in ("version", "pandas")}
    return {"name": "vectorbt", "versions": versions, "tables": tables}


def _ratio(ours: list[float], theirs: list[float]) -> float:
    return statistics.median(a / b for a, b in zip(ours, theirs, strict=True))


def render(result: dict[str, Any]) -> Table:
    """The result for a person: million bar-steps per second."""
    machine, peer = result["machine"], result["peer"]
    table = Table(
        title=f"rules, million bar-steps per second: {machine['cpu']}, {machine['threads']} of "
        f"{machine['cores']} cores, load {machine['load_1min']}, {result['bars']:,} bars"
    )
    rows = {
        "crosses: equity": [row["equity"] for row in result["ours"]],
        "  every flow recorded": [row["every_flow"] for row in result["ours"]],
        "  default costs": [row["default_costs"] for row in result["ours"]],
        "an order in every bar": [row["every_bar"] for row in result["ours"]],
    }
    tables = peer["tables"] if peer else []
    for suffix, said in (("", "vectorbt, crosses"), ("_equity", "  with equity")) if peer else ():
        rows[said] = [max(each[f"from_orders{suffix}"], each[f"from_signals{suffix}"]) for each in tables]
    table.add_column("")
    for row in result["ours"]:
        table.add_column(f"{row['columns']:,} columns", justify="right")
    for name, rates in rows.items():
        table.add_row(name, *(f"{rate / 1e6:.2f}" for rate in rates))
    ratios = {
        "ours over it, crosses": "ratio_without_its_equity",
        "  both with equity, crosses": "ratio",
        "ours over it, every bar": "ratio_every_bar_without",
        "  both with equity, every bar": "ratio_every_bar",
    }
    for name, key in ratios.items() if peer else ():
        table.add_row(name, *(f"{each[key]:.2f} x" for each in tables))
    return table
