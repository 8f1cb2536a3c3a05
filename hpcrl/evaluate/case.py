"""Reading a replay case: JSON object in, checked numpy arrays out.

Every mistake is an HpcrlError that names case, bar, asset and value; nothing is clamped or guessed. The
checks of one bar, of the costs and of one number serve the table form too (``case_tables``).
"""

from __future__ import annotations

import difflib
import math
import operator
import reprlib
from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from hpcrl.config.env import CostConfig, EnvConfig, TradeCosts
from hpcrl.env.bars import Rules
from hpcrl.types import HpcrlError

PRICES = ("open", "high", "low", "close")
BAR_KEYS = (*PRICES, "volume", "sigma", "split", "dividend", "delist", "halted")
NULLABLE = ("participation", "max_net")
"""Config keys whose null means no limit."""
BAR_DEFAULTS = {"volume": 0.0, "split": 1.0, "dividend": 0.0, "halted": 0.0}
"""Of what a bar leaves out; NaN for the rest."""
LARGEST = 1e18
"""Of any number; products of a few still fit into float64."""
LEAST_PRICE = 1e-15
LAST_TS = 10**11
"""Unix seconds of the year 5138: what is beyond it was meant as milliseconds."""
ORDER_SLACK = 1e-9
"""Relative: adjusted prices may cross by rounding."""


@dataclass(frozen=True)
class Case:
    """B bars of A assets. Prices are NaN where a bar is missing."""

    name: str  # as errors begin: case 'x', or the table's file
    rules: Rules
    assets: list[str]
    ts_B: np.ndarray  # int64 seconds
    price: dict[str, np.ndarray]  # open, high, low, close: [B, A] float64
    volume_BA: np.ndarray
    halted_BA: np.ndarray  # bool: priced, but nothing trades
    sigma_BA: np.ndarray  # NaN where the case gives none
    split_BA: np.ndarray  # 1 where none
    dividend_BA: np.ndarray  # 0 where none
    delist_BA: np.ndarray  # NaN where none
    weight_TA: np.ndarray  # target weights of every bar but the last

    @classmethod
    def of(
        cls,
        name: str,
        rules: Rules,
        assets: list[str],
        ts_B: np.ndarray,
        columns: dict[str, np.ndarray],
        weight_TA: np.ndarray,
    ) -> Case:
        """From a column [B, A] for each of ``BAR_KEYS``."""
        return cls(
            name=name,
            rules=rules,
            assets=assets,
            ts_B=ts_B,
            price={key: columns[key] for key in PRICES},
            volume_BA=columns["volume"],
            halted_BA=columns["halted"] > 0,
            sigma_BA=columns["sigma"],
            split_BA=columns["split"],
            dividend_BA=columns["dividend"],
            delist_BA=columns["delist"],
            weight_TA=weight_TA,
        )


def fail(where: str, message: str) -> HpcrlError:
    return HpcrlError(f"{where}: {message}")


def quote(value: Any) -> str:
    """The case's own text, cut short however long or deep it is."""
    short = reprlib.Repr()
    short.maxstring = short.maxother = 60
    return short.repr(value)


def read_number(value: Any, where: str, key: str) -> float:
    """A finite float from a number or a numeric string, of at most LARGEST."""
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        raise fail(where, f"{key} = {quote(value)} is not a number")
    try:
        if isinstance(value, str) and ("_" in value or not value.isascii()):  # Python's float reads 1_0 as 10
            raise ValueError
        number = float(value)
    except (ValueError, OverflowError):
        raise fail(where, f"{key} = {quote(value)} is not a number") from None
    if not math.isfinite(number):
        raise fail(where, f"{key} = {quote(value)} is not finite")
    if abs(number) > LARGEST:
        raise fail(where, f"{key} = {number:g} is beyond {LARGEST:g}, the largest number that is read")
    return number


def check_known(given: Any, allowed: tuple[str, ...], where: str, what: str) -> None:
    for key in given:
        if key not in allowed:
            near = difflib.get_close_matches(str(key), allowed, 1)
            hint = f"; did you mean {near[0]!r}?" if near else f"; known are {', '.join(allowed)}"
            raise fail(where, f"unknown {what} {quote(key)}{hint}")


def check_object(value: Any, where: str, what: str) -> dict:
    if not isinstance(value, dict):
        raise fail(where, f"{what} must be an object of keys and values, not {quote(value)}")
    return value


def read_rules(config: dict, where: str, assets: list[str]) -> Rules:
    """Costs and limits from a case's ``config`` (or a costs file); HpcrlError names key and value."""
    check_known(config, tuple(f.name for f in fields(Rules)), where, "config key")
    return Rules(**{key: _setting(key, value, where, assets) for key, value in config.items()})


def _setting(key: str, value: Any, where: str, assets: list[str]) -> Any:
    if key == "symbols":
        return _symbol_costs(value, where, assets)
    if key == "sizing":
        if value not in ("decision", "fill"):
            raise fail(where, f"sizing = {quote(value)} must be 'decision' or 'fill'")
        return value
    if key == "intrabar":
        if not isinstance(value, bool):
            raise fail(where, f"intrabar = {quote(value)} must be true or false")
        return value
    if key in NULLABLE and value is None:
        return None
    number = read_number(value, where, key)
    if key == "fill_lag":
        if number not in (0, 1, 2):
            raise fail(where, f"fill_lag = {quote(value)} must be 0, 1 or 2")
        return int(number)
    _check_bounds(key, number, where)
    return number


def _symbol_costs(value: Any, where: str, assets: list[str]) -> dict[str, dict[str, Any]]:
    """Costs in which single assets differ: {asset: {key: value}}."""
    for asset, own in check_object(value, where, "symbols").items():
        check_known((asset,), tuple(assets), f"{where}, symbols", "asset")
        own_where = f"{where}, symbols, {asset}"
        check_known(
            check_object(own, own_where, "its costs"), tuple(TradeCosts.model_fields), own_where, "cost"
        )
    return {
        asset: {key: _setting(key, own, f"{where}, symbols, {asset}", assets) for key, own in costs.items()}
        for asset, costs in value.items()
    }


_BOUNDS = {
    "ge": ("at least", operator.ge),
    "gt": ("above", operator.gt),
    "le": ("at most", operator.le),
    "lt": ("below", operator.lt),
}


def _check_bounds(key: str, value: float, where: str) -> None:
    """The bounds that a training config has for the same key."""
    known = {**EnvConfig.model_fields, **CostConfig.model_fields}[key].metadata
    limits = [(_BOUNDS[n], getattr(limit, n)) for limit in known for n in _BOUNDS if hasattr(limit, n)]
    if not all(holds(value, limit) for (_, holds), limit in limits):
        said = " and ".join(f"{text} {limit:g}" for (text, _), limit in limits)
        raise fail(where, f"{key} = {value:g} must be {said}")


def read_bar(entry: Any, where: str, ended: bool) -> dict[str, float]:
    """One asset's bar. Missing prices are NaN; after its delisting an asset may be left out."""
    if entry is None:
        entry = {}
    check_object(entry, where, "a bar")
    check_known(entry, BAR_KEYS, where, "key")
    given = {key: value for key, value in entry.items() if value is not None and key != "halted"}
    bar = {key: read_number(value, where, key) for key, value in given.items()}
    halted = entry.get("halted") or False
    if not isinstance(halted, bool):
        raise fail(where, f"halted = {quote(halted)} must be true or false")
    bar["halted"] = float(halted)
    prices = [key for key in PRICES if key in bar]
    if prices and len(prices) < 4:
        lacking = next(key for key in PRICES if key not in bar)
        raise fail(where, f"{lacking} is missing while {prices[0]} is given; a missing bar lacks all four")
    for key in prices:
        if bar[key] <= 0:
            raise fail(where, f"{key} = {bar[key]:g} must be above 0")
        if bar[key] < LEAST_PRICE:
            raise fail(where, f"{key} = {bar[key]:g} is below {LEAST_PRICE:g}, the least price that is read")
    _check_order(bar, prices, where)
    if prices and "volume" not in bar and not ended:
        raise fail(where, "volume is missing; give 0 where nothing traded")
    if bar.get("split", 1.0) <= 0:
        raise fail(where, f"split = {bar['split']:g} must be above 0")
    for key in ("volume", "sigma", "dividend", "delist"):
        if bar.get(key, 0.0) < 0:
            raise fail(where, f"{key} = {bar[key]:g} must not be negative")
    return bar


def _check_order(bar: dict[str, float], prices: list[str], where: str) -> None:
    for upper in ("high", "open", "close"):
        for lower in ("low",) if upper != "high" else ("low", "open", "close"):
            if prices and bar[upper] < bar[lower] * (1 - ORDER_SLACK):
                raise fail(where, f"{upper} = {bar[upper]:.12g} is below {lower} = {bar[lower]:.12g}")


def _bars(name: str, bars: list, assets: list[str]) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    ts_B = np.zeros(len(bars), dtype=np.int64)
    columns = {key: np.full((len(bars), len(assets)), BAR_DEFAULTS.get(key, np.nan)) for key in BAR_KEYS}
    ended = [False] * len(assets)
    for b, bar in enumerate(bars):
        where = f"{name}, bar {b}"
        check_object(bar, where, "a bar")
        check_known(bar, ("ts", *assets), where, "asset")
        ts = read_number(bar.get("ts"), where, "ts")
        if ts != int(ts):
            raise fail(where, f"ts = {ts!r} must be whole unix seconds")
        if abs(ts) > LAST_TS:
            raise fail(where, f"ts = {ts:g} must be unix seconds; this is after the year 5000")
        ts_B[b] = int(ts)
        if b and ts_B[b] <= ts_B[b - 1]:
            raise fail(where, f"ts = {ts_B[b]} is not after the previous bar's {ts_B[b - 1]}")
        for a, asset in enumerate(assets):
            if asset not in bar and not ended[a]:
                raise fail(where, f"asset {asset!r} is missing; give nulls where it has no bar")
            for key, value in read_bar(bar.get(asset), f"{where}, asset {asset}", ended[a]).items():
                columns[key][b, a] = value
            ended[a] = ended[a] or not math.isnan(columns["delist"][b, a])
    return ts_B, columns


def _actions(name: str, actions: list, assets: list[str], delist_BA: np.ndarray) -> np.ndarray:
    weight_TA = np.zeros((len(actions), len(assets)))
    for t, action in enumerate(actions):
        where = f"{name}, action {t}"
        check_object(action, where, "an action")
        check_known(action, tuple(assets), where, "asset")
        for a, asset in enumerate(assets):
            if np.isfinite(delist_BA[: t + 1, a]).any() and action.get(asset) is None:
                continue  # no order is possible any more
            if asset not in action:
                raise fail(where, f"asset {asset!r} has no weight; 0 is flat")
            weight_TA[t, a] = read_number(action[asset], f"{where}, asset {asset}", "weight")
    return weight_TA


def read_case(case: Any) -> Case:
    """Check a case. HpcrlError names the first thing that is wrong."""
    if not isinstance(case, dict):
        raise HpcrlError(f"a case must be a JSON object, not {type(case).__name__}")
    name = f"case {quote(case.get('name', '(unnamed)'))}"
    for key in ("assets", "bars", "actions"):
        if not isinstance(case.get(key), list):
            raise fail(name, f"{key} must be a list")
    assets, bars, actions = case["assets"], case["bars"], case["actions"]
    if not assets or not all(isinstance(a, str) and a != "ts" for a in assets):
        raise fail(name, f"assets = {quote(assets)} must be names")
    if len(set(assets)) != len(assets):
        raise fail(name, f"assets = {quote(assets)} names one twice")
    if not bars:
        raise fail(name, "there is no bar")
    if len(actions) != len(bars) - 1:
        raise fail(
            name,
            f"{len(actions)} actions for {len(bars)} bars; every bar but the last needs one: {len(bars) - 1}",
        )
    rules = read_rules(check_object(case.get("config", {}), name, "config"), name, assets)
    check_known(rules.symbols, tuple(assets), name, "asset in symbols")
    ts_B, columns = _bars(name, bars, assets)
    weight_TA = _actions(name, actions, assets, columns["delist"])
    return Case.of(name, rules, assets, ts_B, columns, weight_TA)
