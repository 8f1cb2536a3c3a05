#!/usr/bin/env python
"""Replay the last sessions of a CSV file bar by bar, as a trading system would run an exported policy:

hpcrl export RUN --out policy.onnx
python tools/paper_trade.py policy.onnx data/sample/MSFT_5min.csv
python tools/paper_trade.py policy.onnx data/sample/MSFT_5min.csv --days 3 --state night.npz

Needs onnxruntime, numpy and TA-Lib; no torch, no pandas. Orders are decided at a close and filled at the next
open, with the half-spread, slippage and commissions of the policy's config. What paper does not show: market
impact, partial fills, interest. With --state the session is saved after each day and taken up by a fresh one,
as where the process ends at night. Replace ``Broker`` and ``read_bars`` by your own to trade.
"""

from __future__ import annotations

import argparse
import csv
import math
import sys
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from hpcrl.export.runtime import Account, Bar, PolicySession
from hpcrl.storage.atomic import check_output, write_bytes
from hpcrl.types import HpcrlError

NEEDED = ("timestamp", "symbol", "open", "high", "low", "close", "volume")


def read_bars(path: Path, own: tuple[str, ...]) -> dict[int, dict[str, Bar]]:
    """stamp -> symbol -> bar. ``own``: features that are columns of the file. HpcrlError: an unusable row."""
    if not path.is_file():
        kind = "is a folder" if path.is_dir() else "no such file"
        raise HpcrlError(f"{path}: {kind}; a CSV with {', '.join(NEEDED)} was expected")
    try:
        return _read_rows(path, own)
    except (UnicodeDecodeError, csv.Error) as error:
        raise HpcrlError(f"{path}: not a readable CSV table ({error})") from None


def _read_rows(path: Path, own: tuple[str, ...]) -> dict[int, dict[str, Bar]]:
    bars: dict[int, dict[str, Bar]] = {}
    with path.open(newline="", encoding="utf-8") as file:
        table = csv.DictReader(file)
        lacking = [name for name in (*NEEDED, *own) if name not in (table.fieldnames or ())]
        if lacking:
            raise HpcrlError(f"{path}: no column {', '.join(lacking)}")
        for row in table:
            try:
                ts = int(_utc(row["timestamp"]).timestamp())
                numbers = (float(row[name]) for name in NEEDED[2:])
                bar = Bar(
                    ts, *numbers, split=float(row.get("split") or 1), features={n: float(row[n]) for n in own}
                )
            except (ValueError, TypeError, OverflowError) as error:
                raise HpcrlError(f"{path}, line {table.line_num}: {error}") from None
            bars.setdefault(ts, {})[row["symbol"]] = bar
    return bars


def _utc(text: str) -> datetime:
    try:
        stamp = datetime.fromisoformat(text)
    except (TypeError, ValueError):
        raise ValueError(f"timestamp {text!r:.60} is not ISO 8601, 2022-04-18T16:00:00Z") from None
    return stamp.replace(tzinfo=UTC) if stamp.tzinfo is None else stamp


@dataclass
class Broker:
    """A paper account. Prices and money in the bars' currency."""

    env: dict
    cash: float
    name: str = ""
    positions: dict[str, float] = field(default_factory=dict)
    average: dict[str, float] = field(default_factory=dict)
    wanted: dict[str, float] = field(default_factory=dict)
    """Quantity by symbol that the next open shall bring, before rounding to lots."""
    traded: float = 0.0
    """Since the last close."""
    orders: int = 0
    costs: float = 0.0
    """Commissions, half-spread and slippage."""

    def open_bar(self, bars: dict[str, Bar | None]) -> None:
        """Splits, then the orders of the last close at this bar's open. What does not trade is dropped."""
        self.traded = 0.0
        for symbol, bar in bars.items():
            if bar is None or symbol not in self.wanted.keys() | self.positions.keys():
                continue
            held = self.positions.get(symbol, 0.0) * bar.split
            self.average[symbol] = self.average.get(symbol, bar.open) / bar.split
            order = self._lots(self.wanted[symbol] * bar.split) - held if symbol in self.wanted else 0.0
            if abs(order) > abs(held) * 1e-12 and bar.volume > 0:
                held = self._fill(symbol, held, order, bar)
            self.positions[symbol] = held
        self.wanted.clear()

    def _lots(self, quantity: float) -> float:
        """Rounded toward zero."""
        lot, size = self.env["lot"], abs(quantity)
        whole = math.floor(size / lot * (1 + 1e-13) + 1e-9) * lot if lot else size
        return math.copysign(whole, quantity)

    def _fill(self, symbol: str, held: float, order: float, bar: Bar) -> float:
        costs = self.env["costs"] | self.env["costs"]["symbols"].get(symbol, {})
        size = abs(order)
        spread = size * bar.open * (costs["half_spread"] + costs["slippage"])
        value = abs(order * bar.open + spread)
        fee = max(size * costs["per_share"], costs["min_fee"]) + value * costs["bps"] * 1e-4
        self.cash -= order * bar.open + spread + fee
        after = held + order
        kept = min(max(held / after, 0.0), 1.0) if after else 0.0  # of the position, what was there before
        self.average[symbol] = bar.open + kept * (self.average[symbol] - bar.open)
        self.orders, self.traded, self.costs = self.orders + 1, self.traded + value, self.costs + fee + spread
        print(
            f"{clock(bar.ts)}  {'buy' if order > 0 else 'sell'} {size:,.8g} {symbol} "
            f"at {bar.open:,.8g}, now {after:,.8g}; fee {fee:,.2f}, spread {spread:,.2f}"
        )
        return after

    def account(self, close: dict[str, float]) -> Account:
        equity = self.cash + sum(quantity * close[s] for s, quantity in self.positions.items() if quantity)
        held = {symbol: quantity for symbol, quantity in self.positions.items() if quantity}
        average = {symbol: self.average[symbol] for symbol in held}
        return Account(equity, self.cash, held, average, traded=self.traded)

    def decide(self, weights: dict[str, float], equity: float, close: dict[str, float]) -> None:
        """Orders for the next open, sized at this close; scaled to the limits of the config."""
        gross = sum(abs(weight) for weight in weights.values())
        scale = min(1.0, self.env["max_leverage"] / gross) if gross else 1.0
        net = abs(sum(weights.values())) * scale
        scale *= min(1.0, self.env["max_net"] / net) if self.env["max_net"] and net else 1.0
        for symbol, weight in weights.items():
            self.wanted[symbol] = weight * scale * equity / close[symbol]


class Desk:
    """The session, its brokers, and the last closes."""

    def __init__(self, path: Path, symbols: Iterable[str] | None) -> None:
        self.session = session = PolicySession(path, symbols)
        self._path, self._symbols = path, symbols
        env = session.metadata.config["env"]
        if env["fill_lag"] != 1:
            raise HpcrlError(f"{path}: env.fill_lag is {env['fill_lag']}; paper fills at the next open (1)")
        names = session.symbols if session.metadata.assets == "single" else ("",)
        self.brokers = {name: Broker(env, env["initial_cash"], name) for name in names}
        self.close: dict[str, float] = {}

    def step(self, bars: dict[str, Bar | None], ts: int) -> None:
        """One closed bar: fill what was ordered before it, report the account, order anew."""
        self.mark(bars)
        for broker in self.brokers.values():
            broker.open_bar({s: bar for s, bar in bars.items() if broker.name in ("", s)})
        accounts = {name: broker.account(self.close) for name, broker in self.brokers.items()}
        weights = self.session.step(bars, accounts.get("", accounts), ts=ts)
        for name, broker in self.brokers.items():
            mine = {s: weight for s, weight in weights.items() if name in ("", s)}
            broker.decide(mine, accounts[name].equity, self.close)

    def mark(self, bars: dict[str, Bar | None]) -> None:
        self.close |= {symbol: bar.close for symbol, bar in bars.items() if bar is not None}

    @property
    def equity(self) -> float:
        return sum(broker.account(self.close).equity for broker in self.brokers.values())

    @property
    def costs(self) -> float:
        return sum(broker.costs for broker in self.brokers.values())

    @property
    def orders(self) -> int:
        return sum(broker.orders for broker in self.brokers.values())

    def sleep(self, state: Path) -> None:
        """Write the session to disk and go on with another that reads it."""
        write_bytes(state, self.session.state())
        self.session = PolicySession(self._path, self._symbols)
        self.session.load_state(state.read_bytes())


def clock(ts: int) -> str:
    return datetime.fromtimestamp(ts, UTC).strftime("%Y-%m-%d %H:%M")


def trade(desk: Desk, bars: dict[int, dict[str, Bar]], days: int, state: Path | None) -> None:
    """Warm up on what lies before the last ``days`` sessions, then trade those."""
    session = desk.session
    there = {symbol for each in bars.values() for symbol in each}
    for symbol in session.symbols:
        if symbol not in there:
            raise HpcrlError(f"the file has no bar of {symbol}; it has {', '.join(sorted(there)) or 'none'}")
    stamps = sorted(ts for ts in bars if session.day(ts) is not None)
    if len(stamps) < len(bars):
        print(f"left out as no bars of the calendar: {len(bars) - len(stamps)} stamps")
    dates = sorted({session.day(ts) for ts in stamps})
    if len(dates) <= days:
        raise HpcrlError(
            f"the file has {len(dates)} sessions; {days} to trade and some to warm up on are needed"
        )

    def row(ts: int) -> dict[str, Bar | None]:
        return {symbol: bars.get(ts, {}).get(symbol) for symbol in session.symbols}

    first = next(ts for ts in stamps if session.day(ts) == dates[-days])
    ts, warm = stamps[0], 0
    while ts < first:
        desk.mark(row(ts))
        warm += session.warm_up([row(ts)], ts=ts)
        ts = session.next_ts
    print(f"{warm:,} bars of warm-up, {clock(stamps[0])} to {clock(session.last_ts)} UTC")
    while ts <= stamps[-1]:
        date, count, before, costs, orders = desk.session.day(ts), 0, desk.equity, desk.costs, desk.orders
        while ts <= stamps[-1] and desk.session.day(ts) == date:
            desk.step(row(ts), ts)
            ts, count = desk.session.next_ts, count + 1
        print(
            f"{date}: {count} bars, {desk.orders - orders} orders, costs {desk.costs - costs:,.2f}; "
            f"equity {before:,.2f} -> {desk.equity:,.2f} ({desk.equity / before - 1:+.3%})"
        )
        if state is not None:
            desk.sleep(state)


def main() -> None:
    summary, _, rest = str(__doc__).partition("\n\n")
    parser = argparse.ArgumentParser(
        description=summary, epilog=rest, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("policy", type=Path, help="ONNX file of `hpcrl export`")
    parser.add_argument("bars", type=Path, help=f"CSV: {', '.join(NEEDED)}; stamps UTC, of a bar's start")
    parser.add_argument("--days", type=int, default=1, help="sessions to trade, the last ones of the file")
    parser.add_argument("--state", type=Path, help="file that holds the session between days")
    parser.add_argument("--symbols", help="comma-separated; default: those of training")
    given = parser.parse_args()
    try:
        if given.days < 1:
            raise HpcrlError(f"--days is {given.days}; at least 1 is needed")
        if given.state is not None:
            check_output(given.state, [given.policy, given.bars])
        desk = Desk(given.policy, given.symbols.split(",") if given.symbols else None)
        metadata = desk.session.metadata
        print(
            f"{given.policy.name}: {metadata.run}, epoch {metadata.epoch}, {', '.join(desk.session.symbols)}"
        )
        if metadata.synthetic:
            print("trained on made-up bars: no claim about a market follows")
        trade(desk, read_bars(given.bars, desk.session.own_features), given.days, given.state)
    except HpcrlError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)


if __name__ == "__main__":
    main()
