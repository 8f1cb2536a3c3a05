"""The batched account against a scalar Decimal reference, alone and among others."""

import json
from pathlib import Path

import numpy as np
import pytest
from ledger_compare import assert_same
from random_cases import random_case
from reference import Ledger

from hpcrl.evaluate.replay import replay_case

GOLDEN = sorted((Path(__file__).parent.parent / "golden").glob("[0-9]*.json"))


@pytest.mark.parametrize("path", [p for p in GOLDEN if "16" not in p.stem], ids=lambda p: p.stem)
def test_reference_reproduces_the_golden_ledgers(path):
    case = json.loads(path.read_text())
    assert_same(Ledger(case).run(), case["expected"])


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
