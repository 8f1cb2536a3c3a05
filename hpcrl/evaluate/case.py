"""Reading a replay case: JSON object in, checked numpy arrays out.

Every mistake is an HpcrlError that names case, bar, asset and value; nothing is clamped or guessed.
"""

from __future__ import annotations

import difflib
import math
from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from hpcrl.env.bars import Rules
from hpcrl.types import HpcrlError

PRICES = ("open", "high", "low", "close")
BAR_KEYS = (*PRICES, "volume", "sigma", "split", "dividend", "delist", "halted")


@dataclass(frozen=True)
class Case:
    """B bars of A assets. Prices are NaN where a bar is missing."""

    name: str
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


def _fail(where: str, message: str) -> HpcrlError:
    return HpcrlError(f"case {where}: {message}")


def _number(value: Any, where: str, key: str) -> float:
    """A finite float from a number or a numeric string."""
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        raise _fail(where, f"{key} = {value!r} is not a number")
    try:
        number = float(value)
    except (ValueError, OverflowError):
        raise _fail(where, f"{key} = {value!r} is not a number") from None
    if not math.isfinite(number):
        raise _fail(where, f"{key} = {value!r} is not finite")
    return number


def _known(given: Any, allowed: tuple[str, ...], where: str, what: str) -> None:
    for key in given:
        if key not in allowed:
            near = difflib.get_close_matches(str(key), allowed, 1)
            hint = f"; did you mean {near[0]!r}?" if near else f"; known are {', '.join(allowed)}"
            raise _fail(where, f"unknown {what} {key!r}{hint}")


def _object(value: Any, where: str, what: str) -> dict:
    if not isinstance(value, dict):
        raise _fail(where, f"{what} must be a JSON object, not {value!r:.60}")
    return value


def _rules(config: dict, where: str) -> Rules:
    names = tuple(f.name for f in fields(Rules))
    _known(config, names, where, "config key")
    values: dict[str, Any] = {}
    for key, value in config.items():
        if key == "sizing":
            if value not in ("decision", "fill"):
                raise _fail(where, f"sizing = {value!r} must be 'decision' or 'fill'")
            values[key] = value
        elif key == "intrabar":
            if not isinstance(value, bool):
                raise _fail(where, f"intrabar = {value!r} must be true or false")
            values[key] = value
        elif key == "participation" and value is None:
            values[key] = None
        else:
            values[key] = _number(value, where, key)
    rules = Rules(**values)
    for key in names:
        value = getattr(rules, key)
        if isinstance(value, float) and value < 0 and key != "credit_rate":
            raise _fail(where, f"{key} = {value:g} must not be negative")
    for key in ("initial_cash", "max_leverage", "reward_floor", "participation"):
        if getattr(rules, key) == 0:
            raise _fail(where, f"{key} must be above 0")
    if rules.reward_floor >= 1:
        raise _fail(where, f"reward_floor = {rules.reward_floor:g} must be below 1")
    return rules


def _read_bar(entry: Any, where: str, ended: bool) -> dict[str, float]:
    """One asset's bar. Missing prices are NaN; after its delisting an asset may be left out."""
    if entry is None:
        entry = {}
    _object(entry, where, "a bar")
    _known(entry, BAR_KEYS, where, "key")
    given = {key: value for key, value in entry.items() if value is not None and key != "halted"}
    bar = {key: _number(value, where, key) for key, value in given.items()}
    halted = entry.get("halted") or False
    if not isinstance(halted, bool):
        raise _fail(where, f"halted = {halted!r} must be true or false")
    bar["halted"] = float(halted)
    prices = [key for key in PRICES if key in bar]
    if prices and len(prices) < 4:
        lacking = next(key for key in PRICES if key not in bar)
        raise _fail(where, f"{lacking} is null while {prices[0]} is given; a missing bar has four nulls")
    for key in prices:
        if bar[key] <= 0:
            raise _fail(where, f"{key} = {bar[key]:g} must be above 0")
    if prices and bar["high"] < bar["low"]:
        raise _fail(where, f"high = {bar['high']:g} is below low = {bar['low']:g}")
    if prices and "volume" not in bar and not ended:
        raise _fail(where, "volume is missing; give 0 where nothing traded")
    if bar.get("split", 1.0) <= 0:
        raise _fail(where, f"split = {bar['split']:g} must be above 0")
    for key in ("volume", "sigma", "delist"):
        if bar.get(key, 0.0) < 0:
            raise _fail(where, f"{key} = {bar[key]:g} must not be negative")
    return bar


_DEFAULTS = {"volume": 0.0, "split": 1.0, "dividend": 0.0, "halted": 0.0}


def _bars(name: str, bars: list, assets: list[str]) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    ts_B = np.zeros(len(bars), dtype=np.int64)
    columns = {key: np.full((len(bars), len(assets)), _DEFAULTS.get(key, np.nan)) for key in BAR_KEYS}
    ended = [False] * len(assets)
    for b, bar in enumerate(bars):
        where = f"{name}, bar {b}"
        _object(bar, where, "a bar")
        _known(bar, ("ts", *assets), where, "asset")
        ts = _number(bar.get("ts"), where, "ts")
        if ts != int(ts):
            raise _fail(where, f"ts = {ts!r} must be whole unix seconds")
        ts_B[b] = int(ts)
        if b and ts_B[b] <= ts_B[b - 1]:
            raise _fail(where, f"ts = {ts_B[b]} is not after the previous bar's {ts_B[b - 1]}")
        for a, asset in enumerate(assets):
            if asset not in bar and not ended[a]:
                raise _fail(where, f"asset {asset!r} is missing; give nulls where it has no bar")
            for key, value in _read_bar(bar.get(asset), f"{where}, asset {asset}", ended[a]).items():
                columns[key][b, a] = value
            ended[a] = ended[a] or not math.isnan(columns["delist"][b, a])
    return ts_B, columns


def _actions(name: str, actions: list, assets: list[str], delist_BA: np.ndarray) -> np.ndarray:
    weight_TA = np.zeros((len(actions), len(assets)))
    for t, action in enumerate(actions):
        where = f"{name}, action {t}"
        _object(action, where, "an action")
        _known(action, tuple(assets), where, "asset")
        for a, asset in enumerate(assets):
            if np.isfinite(delist_BA[: t + 1, a]).any() and action.get(asset) is None:
                continue  # no order is possible any more
            if asset not in action:
                raise _fail(where, f"asset {asset!r} has no weight; 0 is flat")
            weight_TA[t, a] = _number(action[asset], f"{where}, asset {asset}", "weight")
    return weight_TA


def read_case(case: Any) -> Case:
    """Check a case. HpcrlError names the first thing that is wrong."""
    if not isinstance(case, dict):
        raise HpcrlError(f"a case must be a JSON object, not {type(case).__name__}")
    name = repr(case.get("name", "(unnamed)"))
    for key in ("assets", "bars", "actions"):
        if not isinstance(case.get(key), list):
            raise _fail(name, f"{key} must be a list")
    assets, bars, actions = case["assets"], case["bars"], case["actions"]
    if not assets or not all(isinstance(a, str) and a != "ts" for a in assets):
        raise _fail(name, f"assets = {assets!r} must be names")
    if len(set(assets)) != len(assets):
        raise _fail(name, f"assets = {assets!r} names one twice")
    if not bars:
        raise _fail(name, "there is no bar")
    if len(actions) != len(bars) - 1:
        raise _fail(
            name,
            f"{len(actions)} actions for {len(bars)} bars; every bar but the last needs one: {len(bars) - 1}",
        )
    rules = _rules(_object(case.get("config", {}), name, "config"), name)
    ts_B, columns = _bars(name, bars, assets)
    return Case(
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
        weight_TA=_actions(name, actions, assets, columns["delist"]),
    )
