"""The batched account against a scalar Decimal reference, alone and among others."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from ledger_compare import assert_same
from random_cases import random_case
from reference import Ledger

from hpcrl.env.account import Account, advance, open_accounts
from hpcrl.env.bars import PackedBars
from hpcrl.evaluate.case import read_case
from hpcrl.evaluate.replay import bar_rows, case_sigma, pack_case, replay_case

GOLDEN = sorted((Path(__file__).parent.parent / "golden").glob("[0-9]*.json"))


def compare_with_reference(seed: int) -> None:
    case = random_case(seed)
    expected = Ledger(case).run()
    # float64 cannot tell a cash of 1e-9 from 0 when 1e6 moved: absolute errors are measured against
    # a ten-thousandth of the initial cash
    floor = max(1.0, float(expected[0]["cash"]) * 1e-4)
    assert_same(replay_case(case)["rows"], expected, f"seed {seed}", floor)


@pytest.mark.parametrize("block", range(4))
def test_random_episodes_equal_the_decimal_reference(block):
    for seed in range(25 * block, 25 * block + 25):
        compare_with_reference(seed)


@pytest.mark.soak
@pytest.mark.parametrize("block", range(10))
def test_a_thousand_random_episodes_equal_the_decimal_reference(block):
    for seed in range(1000 + 100 * block, 1100 + 100 * block):
        compare_with_reference(seed)


@pytest.mark.parametrize("path", [p for p in GOLDEN if "16" not in p.stem], ids=lambda p: p.stem)
def test_reference_reproduces_the_golden_ledgers(path):
    case = json.loads(path.read_text())
    assert_same(Ledger(case).run(), case["expected"])


@pytest.mark.parametrize("path", GOLDEN, ids=lambda p: p.stem)
def test_golden_account_is_bit_equal_inside_a_batch_of_64(path):
    """Copies at random places among accounts with other prices and weights."""
    case = read_case(json.loads(path.read_text()))
    packed = pack_case(case, case_sigma(case))
    rules, a, bars = case.rules, len(case.assets), min(len(case.ts_B), 200)
    g = torch.Generator().manual_seed(5)
    copy_N = torch.rand(64, generator=g) < 0.3
    copy_N[7] = True
    noisy = packed.table_RK * (1 + 0.3 * torch.rand(packed.table_RK.shape, generator=g, dtype=torch.float64))
    both = PackedBars(torch.cat([packed.table_RK, noisy]), packed.n_bars)
    offset_N1 = torch.where(copy_N, 0, len(packed.table_RK))[:, None]
    alone = open_accounts(1, a, rules, torch.device("cpu"))
    batch = open_accounts(64, a, rules, torch.device("cpu"))
    for b in range(1, bars):
        weight = torch.from_numpy(case.weight_TA[b - 1 : b])
        random_weight = torch.randn(64, a, generator=g, dtype=torch.float64)
        weight_NA = torch.where(copy_N[:, None], weight, random_weight)
        one = advance(alone, weight, packed.at(bar_rows(packed, b)), rules)
        many = advance(batch, weight_NA, both.at(bar_rows(packed, b) + offset_N1), rules)
        alone, batch = one.account, many.account
        for single, field in zip(one, many, strict=True):
            if isinstance(field, torch.Tensor):
                assert torch.equal(field[copy_N], single.expand_as(field)[copy_N])
        for single, field in zip(alone[:4], batch[:4], strict=True):
            assert torch.equal(field[copy_N], single.expand_as(field)[copy_N])
        if bool(one.bankrupt_N1):
            break
        revived = Account(*(x.clone() for x in batch[:4]))
        revived.equity_N1[many.bankrupt_N1] = rules.initial_cash
        revived.cash_N1[many.bankrupt_N1] = rules.initial_cash
        batch = revived


def test_a_split_changes_nothing():
    case = random_case(11)
    case["config"] |= {"lot": "0", "participation": None, "impact_coef": "0", "per_share": "0"}
    plain = json.loads(json.dumps(case))
    for bar in plain["bars"]:
        for asset in plain["assets"]:
            bar[asset].pop("split", None)
            bar[asset].pop("dividend", None)
    split = json.loads(json.dumps(plain))
    for bar in split["bars"][10:]:
        for key in ("open", "high", "low", "close"):
            if bar["A"][key] is not None:
                bar["A"][key] = float(bar["A"][key]) / 4
    split["bars"][10]["A"]["split"] = 4
    before, after = replay_case(plain)["rows"], replay_case(split)["rows"]
    np.testing.assert_allclose([r["equity"] for r in after], [r["equity"] for r in before], rtol=1e-12)
    assert sorted(after[10]["flags"]) == sorted(["split:A", *before[10]["flags"]])


def test_higher_costs_never_help_a_fixed_table():
    for seed in range(8):
        case = random_case(seed)
        case["config"] |= {"maintenance": "0", "participation": None, "lot": "0", "sizing": "decision"}
        totals = []
        for bps in (0, 5, 50):
            case["config"]["bps"] = bps
            rows = replay_case(case)["rows"]
            totals.append((len(rows), sum(row["reward"] for row in rows[1:])))
        if len({length for length, _ in totals}) == 1:
            assert totals[0][1] >= totals[1][1] >= totals[2][1]


def test_order_of_assets_is_irrelevant():
    case = next(c for c in map(random_case, range(100)) if len(c["assets"]) == 3)
    turned = case | {"assets": case["assets"][::-1]}
    equity = [row["equity"] for row in replay_case(case)["rows"]]
    np.testing.assert_allclose([r["equity"] for r in replay_case(turned)["rows"]], equity, rtol=1e-12)


def test_prices_times_a_constant_scale_the_quantities_only():
    case = random_case(21)
    case["config"] |= {"lot": "0", "participation": None, "impact_coef": "0", "per_share": "0"}
    scaled = json.loads(json.dumps(case))
    for bar in scaled["bars"]:
        for asset in scaled["assets"]:
            for key in ("open", "high", "low", "close", "dividend", "delist"):
                if bar[asset].get(key) is not None:
                    bar[asset][key] = float(bar[asset][key]) * 8
    equity = [row["equity"] for row in replay_case(case)["rows"]]
    np.testing.assert_allclose([r["equity"] for r in replay_case(scaled)["rows"]], equity, rtol=1e-12)
