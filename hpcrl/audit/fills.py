"""Checks of prices: an order fills after its decision, and a missing bar keeps its last close.

The price of a fill is found from the account alone (cash moves by what was bought), so that it does not
matter what a simulator says about itself. Opens are moved off the closes before them first: in many markets
the two are the same, and nothing could be told.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch

from hpcrl.audit.alter import stretches, together, without
from hpcrl.audit.finding import Finding, stamp
from hpcrl.audit.pipeline import Case
from hpcrl.market.bars import SymbolBars
from hpcrl.market.calendar import SECOND_NS
from hpcrl.market.dataset import Market
from hpcrl.market.tensors import MarketTensors

STARTS = 12
TOLERANCE = 1e-9
"""Of a price, and of the equity over the traded value: what is left of float64 in a difference."""


@dataclass(frozen=True)
class Fill:
    row: int  # the decision
    symbol: int
    side: float
    price: float  # without spread, slippage and impact
    slack: float  # share of the price by which float64 may be off


def fills_after_decision(case: Case) -> Iterator[Finding]:
    """Every fill lies at the open that fill_lag names, never at a price that the decision has seen."""
    check, lag = "fills_after_decision", case.fill_lag
    if lag == 0:
        yield Finding(
            check,
            "leak",
            "env.fill_lag = 0: orders fill at the close of the bar that was just seen",
            "research only: set env.fill_lag to 1 before believing any result",
        )
    count = 0
    for stretch in stretches(case):
        market = case.assemble(tuple(case.stage(_moved_opens(one)) for one in stretch))
        for fill in _fills(case, market, max(lag, 1)):
            count += 1
            expected = market.open_BS[fill.row + lag, fill.symbol]
            if lag and abs(fill.price / expected - 1) > fill.slack:
                yield _astray(check, market, fill, lag, expected)
                return
    if not count:
        yield Finding(check, "skipped", "no order filled: no tradable bars with volume after the burn-in")
    elif lag:
        yield Finding(check, "pass", f"{count} orders filled at the open of {lag} bar{'s' * (lag > 1)} later")


def _moved_opens(one: SymbolBars) -> SymbolBars:
    """Opens up to 0.3 % off, inside a range that still holds them."""
    rng = np.random.default_rng(5)
    opened = one.open * np.exp(rng.uniform(0.001, 0.003, len(one.open)) * rng.choice([-1, 1], len(one.open)))
    return replace(one, open=opened, high=np.fmax(one.high, opened), low=np.fmin(one.low, opened))


def _fills(case: Case, market: Market, steps: int) -> Iterator[Fill]:
    """What one order from a flat account paid, for several bars, symbols and sides."""
    env = case.env(market).model_copy(update={"lot": 0.0})  # a share may cost more than the account has
    tensors = case.tensors(market)
    every = env.assets == "all"
    width = len(market.symbols)
    traded = together(market, every)[:: max(width // 4, 1) if every else 1]
    symbol_NA = torch.arange(width).repeat(len(traded), 1) if every else torch.as_tensor(traded)[:, None]
    simulator = case.pipeline.simulator(
        tensors, env, env_ids_N=torch.arange(len(traded)), seed=0, bars=(0, market.n_bars), history=1
    )
    played = np.arange(width) if every else traded
    first, last = int(market.first_bar_S[played].max()), int(market.last_bar_S[played].min()) - steps
    if last < first:
        return
    for number, row in enumerate(np.unique(np.linspace(first, last, STARTS).astype(int))):
        side_N = (-1.0) ** (number + np.arange(len(traded)))
        weight_NA = torch.zeros(symbol_NA.shape, dtype=torch.float64)
        own = torch.as_tensor(traded) if every else torch.zeros(len(traded), dtype=torch.int64)
        weight_NA[torch.arange(len(traded)), own] = torch.as_tensor(0.5 * min(env.max_leverage, 1.0) * side_N)
        simulator.begin_at(symbol_NA, torch.full((len(traded),), int(row)))
        flows_N, costs_N = np.zeros(len(traded)), np.zeros(len(traded))
        for _ in range(steps):
            step = simulator.step(weight_NA)
            flows_N += (step.financing_N + step.dividend_N - step.fees_N).numpy()
            costs_N += (step.spread_N + step.impact_N).numpy()
        quantity_N = simulator.quantity_NA.numpy()[np.arange(len(traded)), own.numpy()]
        for n, symbol in enumerate(traded):
            if quantity_N[n] == 0 or not _calm(market, int(row), steps, int(symbol)):
                continue
            size = abs(quantity_N[n])
            paid = (env.initial_cash + flows_N[n] - float(step.equity_N[n])) / quantity_N[n]
            price = market.close_BS[row + steps, symbol] + paid - np.sign(quantity_N[n]) * costs_N[n] / size
            slack = TOLERANCE * (1 + env.initial_cash / (size * price))
            yield Fill(int(row), int(symbol), float(np.sign(quantity_N[n])), float(price), float(slack))


def _calm(market: Market, row: int, steps: int, symbol: int) -> bool:
    """Whether the bars after ``row`` are there and no corporate action comes between."""
    span = slice(row, row + steps + 1)
    return bool(
        market.present_BS[span, symbol].all()
        and (market.split_BS[span, symbol] == 1).all()
        and (market.dividend_BS[span, symbol] == 0).all()
        and np.isnan(market.delist_BS[span, symbol]).all()
    )


def _astray(check: str, market: Market, fill: Fill, lag: int, expected: float) -> Finding:
    places = {
        f"the {name} of {when}": getattr(market, f"{name}_BS")[fill.row + ahead, fill.symbol]
        for ahead, when in ((0, "the bar just seen"), (1, "the next bar"))
        for name in ("open", "high", "low", "close")
    }
    nearest = min(places, key=lambda name: abs(places[name] - fill.price))
    hit = abs(places[nearest] / fill.price - 1) <= 1e-6
    symbol, bar = market.symbols[fill.symbol], stamp(market.ts_B[fill.row])
    order = "buy" if fill.side > 0 else "sell"
    return Finding(
        check,
        "leak",
        f"{symbol}, {order} decided at the close of {bar}: filled at {fill.price:.8g}"
        + (f", {nearest}" if hit else "")
        + f"; the open {lag} bar{'s' * (lag > 1)} later is {expected:.8g}",
        "an order must fill at a price that comes after the decision: the open of the bar fill_lag later",
        {"bar": bar, "symbol": symbol, "values": [fill.price, float(expected)]},
    )


def marks_not_backfilled(case: Case) -> Iterator[Finding]:
    """Bars taken out are marked at the last close before them, and hold the last features."""
    check, count = "marks_not_backfilled", 0
    found = _backfilled_bars(case)
    if found is not None:
        yield found
        return
    for stretch in stretches(case):
        gone = [_gaps(case, one) for one in stretch]
        thinned = tuple(without(one, rows_G) for one, rows_G in zip(stretch, gone, strict=True))
        market = case.assemble(tuple(case.stage(one) for one in thinned))
        tensors = case.tensors(market)
        for s, (one, rows_G) in enumerate(zip(thinned, gone, strict=True)):
            for row in rows_G:
                at = int(np.searchsorted(market.ts_B, one.ts[row] // SECOND_NS))
                count += 1
                wrong = _wrong_mark(tensors, at, s)
                if wrong:
                    bar = stamp(market.ts_B[at])
                    yield Finding(
                        check,
                        "leak",
                        f"{one.symbol}, missing bar {bar}: {wrong}",
                        "carry the last known values forward; never fill from later bars",
                        {"bar": bar, "symbol": one.symbol},
                    )
                    return
    yield Finding(check, "pass", f"{count} bars taken out kept the marks and features of the bar before them")


def _gaps(case: Case, one: SymbolBars) -> np.ndarray:
    """Rows to take out: single ones and three in a row, after the burn-in, without corporate actions."""
    at = np.flatnonzero(one.present)[case.burn_in + 5 : -2]
    if len(at) < 12:
        return np.empty(0, dtype=np.int64)
    ranks = np.array([0, len(at) // 3, len(at) // 2, len(at) // 2 + 1, len(at) // 2 + 2, len(at) - 1])
    rows_G = at[np.unique(ranks)]
    acting = (one.split[rows_G] != 1) | (one.dividend[rows_G] != 0) | ~np.isnan(one.delist[rows_G])
    return rows_G[~acting]


def _wrong_mark(tensors: MarketTensors, row: int, symbol: int) -> str:
    """What is wrong with a missing bar; empty where it repeats the bar before it."""
    for name in ("open", "high", "low", "close"):
        value = float(getattr(tensors, f"{name}_BS")[row, symbol])
        last = float(tensors.close_BS[row - 1, symbol])
        if value != last:
            return f"its {name} is {value:.8g}, the last close {last:.8g}"
    if float(tensors.volume_BS[row, symbol]) != 0 or bool(tensors.present_BS[row, symbol]):
        return "it is there, with volume"
    before, here = tensors.feature_BSF[row - 1, symbol], tensors.feature_BSF[row, symbol]
    if not torch.equal(before, here):
        column = int(torch.argmax((before != here).int()))
        return f"feature {column} is {float(here[column]):.6g}, the last known {float(before[column]):.6g}"
    return ""


LEAST_BACKFILLED = 5
"""Bars without volume that show the next open: fewer may be chance."""


def _backfilled_bars(case: Case) -> Finding | None:
    """Bars of the source itself: without trades a price cannot move, least of all to the next bar's open."""
    for one in case.bars:
        at = np.flatnonzero(one.present)
        price = {name: getattr(one, name)[at] for name in ("open", "high", "low", "close")}
        before, here, after = price["close"][:-2], price["close"][1:-1], price["open"][2:]
        still = (one.volume[at][1:-1] == 0) & (price["high"][1:-1] == price["low"][1:-1]) & (before != after)
        back, forward = still & (here == after), still & (here == before)
        if back.sum() >= LEAST_BACKFILLED and back.sum() > forward.sum():
            row = int(at[1:-1][np.argmax(back)])
            bar = stamp(one.ts[row] / SECOND_NS)
            return Finding(
                "marks_not_backfilled",
                "leak",
                f"{one.symbol}: {back.sum()} bars without volume stand at the next bar's open, "
                f"{forward.sum()} at the last close; the first at {bar}: {one.close[row]:.8g}",
                "the source fills gaps from later bars: leave such bars out, they are then masked",
                {"bar": bar, "symbol": one.symbol, "values": [int(back.sum()), int(forward.sum())]},
            )
    return None
