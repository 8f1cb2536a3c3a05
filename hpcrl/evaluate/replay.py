"""Replay: the simulator's account driven by a given table of target weights.

It runs the same ``advance`` that trains the agent, with one account, and gives a ledger: one row per bar,
the first being the start, the last the bankrupt one if there is one. In Python:

    from hpcrl.evaluate.replay import replay_case, replay_frame, replay_tables
    frame = replay_frame("bars.csv", "weights.csv", {"half_spread": 1e-4, "bps": 1})  # or data frames
    frame = replay_frame(case)                               # a case: bars, weights and costs in one
    rows = replay_tables(bars, weights, costs)["rows"]       # the same as plain Python numbers
    rows = replay_case(case)["rows"]

Every fill, flag and cost of one account is here; many accounts at once without a ledger: ``rules.play_rule``.
"""

from __future__ import annotations

import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from hpcrl.config.env import HINDSIGHT
from hpcrl.env.account import Account, Outcome, advance, open_accounts
from hpcrl.env.bars import PackedBars, pack
from hpcrl.evaluate.case import Case, read_case
from hpcrl.evaluate.case_tables import case_of_tables, ledger_csv, ledger_frame
from hpcrl.market.sigma import known_sigma
from hpcrl.storage.atomic import check_output, read_json, write_json, write_text
from hpcrl.types import HpcrlError

SCALE_SLACK = 1e-12


def replay_case(case: dict) -> dict:
    """Run one case (format in the documentation of ``hpcrl replay``) and return its ledger.

    Returns ``{"rows": [...]}`` of plain Python numbers. HpcrlError if the case is not well formed.
    """
    return replay(read_case(case))


def replay(parsed: Case) -> dict:
    """The ledger of a checked case."""
    sigma_BA = case_sigma(parsed)
    packed = pack_case(parsed, sigma_BA)
    account = open_accounts(1, len(parsed.assets), parsed.rules, torch.device("cpu"))
    rows = [_start_row(parsed)]
    for b in range(1, len(parsed.ts_B)):
        bar = packed.at(bar_rows(packed, b))
        weight_NA = torch.from_numpy(parsed.weight_TA[b - 1 : b])
        outcome = advance(account, weight_NA, bar, parsed.rules)
        rows.append(_row(parsed, b, account, outcome, sigma_BA[b - 1]))
        _check_finite(parsed, rows[-1])
        account = outcome.account
        if bool(outcome.bankrupt_N1):
            break
    return {"rows": rows}


def _check_finite(case: Case, row: dict[str, Any]) -> None:
    """JSON has no infinity, and a ledger with one says nothing."""
    numbers = {key: value for key, value in row.items() if isinstance(value, float)}
    numbers |= {f"position of {asset}": value for asset, value in row["position"].items()}
    for fill in row["fills"]:
        numbers |= {f"{key} of {fill['asset']}": fill[key] for key in ("qty", "price", "commission")}
    for key, value in numbers.items():
        if not math.isfinite(value):
            where = f"{case.name}, bar {row['bar']}"
            raise HpcrlError(f"{where}: {key} becomes {value}; its numbers are too large or too small")


def replay_tables(
    bars: pd.DataFrame | str | Path, weights: pd.DataFrame | str | Path, costs: dict | str | Path
) -> dict:
    """The ledger of a table of weights over a table of bars (see ``case_tables``), as ``replay_case``'s."""
    return replay(case_of_tables(bars, weights, costs))


def replay_frame(
    bars: dict | pd.DataFrame | str | Path,
    weights: pd.DataFrame | str | Path | None = None,
    costs: dict | str | Path | None = None,
) -> pd.DataFrame:
    """The ledger as a table, one row per bar: columns as of ``hpcrl replay --out LEDGER.csv``, timestamps in
    UTC, NaN where a step has no fill.

    ``bars``: a case (a dictionary; then nothing else is given), else the three tables as of
    ``replay_tables``. HpcrlError if something is not well formed or is missing.
    """
    if isinstance(bars, dict):
        if weights is not None or costs is not None:
            raise HpcrlError("a case holds bars, weights and costs itself: give it alone")
        parsed = read_case(bars)
    elif weights is None or costs is None:
        lacking = "weights" if weights is None else "costs"
        raise HpcrlError(f"{lacking} is missing: bars, weights and costs belong together")
    else:
        parsed = case_of_tables(bars, weights, costs)
    return ledger_frame(replay(parsed), parsed)


def replay_files(
    out: Path,
    case: Path | None = None,
    bars: Path | None = None,
    weights: Path | None = None,
    costs: Path | None = None,
) -> None:
    """``hpcrl replay``: read a case, or the three tables, and write the ledger whole or not at all.

    The ledger's form follows ``out``: .csv or .json; by another name it is JSON for a case, CSV for tables.
    """
    tables = {"--bars": bars, "--weights": weights, "--costs": costs}
    missing = [name for name, path in tables.items() if path is None]
    if case and len(missing) < 3:
        given = next(name for name in tables if name not in missing)
        raise HpcrlError(
            f"--case and {given} exclude each other: a case holds bars, weights and costs itself"
        )
    if case:
        check_output(out, [case])
        parsed = read_case(read_json(case))
    elif bars and weights and costs:
        check_output(out, [bars, weights, costs])
        parsed = case_of_tables(bars, weights, costs)
    elif len(missing) == 3:
        raise HpcrlError("nothing to replay: give --case, or --bars, --weights and --costs")
    else:
        raise HpcrlError(f"--bars, --weights and --costs belong together: {' and '.join(missing)} is missing")
    if parsed.rules.fill_lag == 0:
        print(f"WARNING: {HINDSIGHT}", file=sys.stderr)
    ledger = replay(parsed)
    suffix = out.suffix.lower()
    if suffix == ".csv" or (suffix != ".json" and not case):
        write_text(out, ledger_csv(ledger, parsed))
    else:
        write_json(out, ledger)


def bar_rows(packed: PackedBars, b: int) -> Tensor:
    """Rows of bar b in the packed table, one per asset, [1, A]."""
    return torch.arange(b, len(packed.table_RK), packed.n_bars)[None]


def pack_case(case: Case, sigma_BA: np.ndarray) -> PackedBars:
    """The case's bars in the form that the account reads; missing bars get the last close as mark."""
    present_BA = np.isfinite(case.price["close"])
    mark_BA = case.price["close"].copy()
    for b in range(1, len(mark_BA)):
        mark_BA[b] = np.where(present_BA[b], mark_BA[b], mark_BA[b - 1])
    price = {f"{k}_BS": torch.from_numpy(np.where(present_BA, v, mark_BA)) for k, v in case.price.items()}
    return pack(
        case.rules,
        case.assets,
        ts_B=torch.from_numpy(case.ts_B),
        **price,
        volume_BS=torch.from_numpy(np.where(present_BA & ~case.halted_BA, case.volume_BA, 0.0)),
        present_BS=torch.from_numpy(present_BA),
        sigma_BS=torch.from_numpy(np.nan_to_num(sigma_BA)),
        split_BS=torch.from_numpy(case.split_BA),
        dividend_BS=torch.from_numpy(case.dividend_BA),
        delist_BS=torch.from_numpy(case.delist_BA),
    )


def case_sigma(case: Case) -> np.ndarray:
    """[B, A]: the case's own sigma, else that of the market's data (``features.known_sigma``)."""
    columns = [known_sigma(case.price["close"][:, a], case.split_BA[:, a]) for a in range(len(case.assets))]
    return np.where(np.isnan(case.sigma_BA), np.stack(columns, axis=1), case.sigma_BA)


def _start_row(case: Case) -> dict[str, Any]:
    cash = case.rules.initial_cash
    zero = dict.fromkeys(("fees", "spread_cost", "impact_cost", "financing", "dividends"), 0.0)
    position = dict.fromkeys(case.assets, 0.0)
    return {
        "bar": 0,
        "cash": cash,
        "equity": cash,
        "equity_raw": cash,
        "position": position,
        **zero,
        "fills": [],
        "flags": [],
        "reward": None,
    }


def _row(
    case: Case,
    b: int,
    before: Account,
    outcome: Outcome,
    sigma_A: np.ndarray,
) -> dict[str, Any]:
    after = outcome.account
    quantity_A = after.quantity_NA[0].tolist()
    return {
        "bar": b,
        "cash": after.cash_N1.item(),
        "equity": after.equity_N1.item(),
        "equity_raw": outcome.equity_raw_N1.item(),
        "position": dict(zip(case.assets, quantity_A, strict=True)),
        "fees": outcome.commission_NA.sum().item(),
        "spread_cost": outcome.spread_NA.sum().item(),
        "impact_cost": outcome.impact_NA.sum().item(),
        "financing": outcome.financing_N1.item(),
        "dividends": outcome.dividend_N1.item(),
        "fills": _fills(case, outcome),
        "flags": _flags(case, b, before, outcome, sigma_A),
        "reward": outcome.log_return_N1.item(),
    }


def _processing_order(outcome: Outcome) -> list[int]:
    """Assets with an order: sells before buys, else in the assets' order."""
    order_A = outcome.order_NA[0].tolist()
    sells = [a for a, order in enumerate(order_A) if order < 0]
    return sells + [a for a, order in enumerate(order_A) if order > 0]


def _fills(case: Case, outcome: Outcome) -> list[dict[str, Any]]:
    fills = []
    for a in _processing_order(outcome):
        quantity = outcome.fill_NA[0, a].item()
        if quantity:
            # price x (1 + side x cost share); the cost share is spread and impact over |fill| x price
            cost = (outcome.spread_NA[0, a] + outcome.impact_NA[0, a]).item()
            price = outcome.price_NA[0, a].item() + cost / quantity
            commission = outcome.commission_NA[0, a].item()
            fills.append({"asset": case.assets[a], "qty": quantity, "price": price, "commission": commission})
    return fills


def _order_flags(case: Case, b: int, called: bool, outcome: Outcome, sigma_A: np.ndarray) -> list[str]:
    """What the limits and the market did to the orders that fill in this step."""
    rules, flags = case.rules, []
    decided = b - max(rules.fill_lag, 1)
    if decided >= 0 and not called:
        # Every given weight counts, a delisted asset's too: what it asks for is scaled, then not traded.
        weight_A = case.weight_TA[decided]
        scale = min(1.0, rules.max_leverage / max(np.abs(weight_A).sum(), rules.max_leverage))
        flags += ["leverage_scaled"] if scale < 1 - SCALE_SLACK else []
        net = abs(weight_A.sum()) * scale
        flags += ["net_scaled"] if rules.max_net and net > rules.max_net * (1 + SCALE_SLACK) else []
    for a in _processing_order(outcome):
        order, fill = abs(outcome.order_NA[0, a].item()), abs(outcome.fill_NA[0, a].item())
        if not fill:
            flags.append(f"no_fill:{case.assets[a]}")
        elif fill < order:
            flags.append(f"partial:{case.assets[a]}")
        if fill and rules.of(case.assets[a]).impact_coef and np.isnan(sigma_A[a]):
            flags.append(f"no_sigma:{case.assets[a]}")
    return flags


def _flags(case: Case, b: int, before: Account, outcome: Outcome, sigma_A: np.ndarray) -> list[str]:
    """Flags in the order of the step."""
    called, gap = bool(before.called_N1), not bool(outcome.solvent_N1)
    flags = ["margin_call_liquidation"] if called else []
    orders = _order_flags(case, b, called, outcome, sigma_A)
    flags += orders if case.rules.fill_lag == 0 else []
    for a, asset in enumerate(case.assets):
        flags += [f"split:{asset}"] if case.split_BA[b, a] != 1 else []
        flags += [f"dividend:{asset}"] if case.dividend_BA[b, a] != 0 else []
    flags += [f"delisted:{a}" for a, price in zip(case.assets, case.delist_BA[b], strict=True) if price >= 0]
    if gap:
        return [*flags, "bankrupt_gap"]
    flags += orders if case.rules.fill_lag else []
    if outcome.intrabar_N1 is not None and bool(outcome.intrabar_N1):
        flags.append("bankrupt_intrabar")
    elif bool(outcome.bankrupt_N1):
        flags.append("bankrupt_close")
    elif case.rules.maintenance and bool(outcome.account.called_N1):
        flags.append("margin_call")
    return flags
