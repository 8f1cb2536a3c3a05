"""Replay: golden ledgers to 1e-9, and a clear refusal of every malformed case."""

import copy
import json
from pathlib import Path

import pytest
from ledger_compare import assert_same

from hpcrl.evaluate.replay import replay_case
from hpcrl.types import HpcrlError

GOLDEN = sorted((Path(__file__).parent.parent / "golden").glob("[0-9]*.json"))


@pytest.mark.parametrize("path", GOLDEN, ids=lambda p: p.stem)
def test_golden_ledger_is_reproduced(path):
    case = json.loads(path.read_text())
    ledger = replay_case(case)
    assert_same(ledger["rows"], case["expected"])
    assert json.loads(json.dumps(ledger, allow_nan=False)) == ledger


def bar(ts, price=100.0, **more):
    return {"ts": ts, "X": {"open": price, "high": price, "low": price, "close": price, "volume": 1e5} | more}


def small_case(bars, weights, **config):
    return {
        "name": "t",
        "config": config,
        "assets": ["X"],
        "bars": bars,
        "actions": [{"X": w} for w in weights],
    }


def flags(case):
    return [row["flags"] for row in replay_case(case)["rows"]]


def test_intrabar_bankruptcy_closes_longs_at_the_low():
    bars = [bar(0), bar(300, low=40.0), bar(600)]
    ledger = replay_case(small_case(bars, [2, 2], max_leverage="2"))["rows"]
    assert len(ledger) == 2
    assert ledger[1]["flags"] == ["bankrupt_intrabar"]
    assert ledger[1]["equity"] == 0
    assert ledger[1]["cash"] == ledger[1]["equity_raw"] == pytest.approx(-20_000)
    assert ledger[1]["position"] == {"X": 0}
    assert ledger[1]["fills"][0]["qty"] == 2000


def test_without_the_intrabar_check_the_same_bar_is_survived():
    bars = [bar(0), bar(300, low=40.0), bar(600)]
    ledger = replay_case(small_case(bars, [2, 2], max_leverage="2", intrabar=False))["rows"]
    assert [row["flags"] for row in ledger] == [[], [], []]


def test_bankruptcy_at_the_close_ends_the_ledger():
    bars = [bar(0), bar(300, close=40.0, low=40.0), bar(600)]
    assert flags(small_case(bars, [2, 2], max_leverage=2, intrabar=False)) == [[], ["bankrupt_close"]]


def test_margin_call_forces_the_next_weights_to_zero():
    bars = [bar(0), bar(300, close=70.0, low=70.0), bar(600, 70.0), bar(900, 70.0)]
    case = small_case(bars, [2, 2, 2], max_leverage=2, maintenance=0.5)
    ledger = replay_case(case)["rows"]
    assert ledger[1]["flags"] == ["margin_call"]
    assert ledger[2]["flags"] == ["margin_call_liquidation"]
    assert ledger[2]["position"] == {"X": 0}
    assert ledger[3]["position"]["X"] > 0


def test_delisting_pays_out_and_ends_orders():
    gone = dict.fromkeys(("open", "high", "low", "close"))
    bars = [
        bar(0),
        bar(300),
        bar(600, volume=0, **gone, delist="30"),
        bar(900, volume=0, **gone),
        {"ts": 1200},
    ]
    case = small_case(bars, [1, 1, 1, 1])
    ledger = replay_case(case)["rows"]
    assert ledger[2]["flags"] == ["delisted:X"]
    assert ledger[2]["cash"] == pytest.approx(30_000)
    assert ledger[3]["flags"] == ledger[4]["flags"] == []


def test_holding_pays_no_minimum_fee_for_float_noise():
    bars = [bar(300 * i, 37.77) for i in range(6)]
    ledger = replay_case(small_case(bars, ["0.7"] * 5, min_fee="1"))["rows"]
    assert ledger[1]["fees"] == 1
    # the fee changed equity: one real order, of 0.7 / 37.77 shares less, and then ever smaller ones
    free = replay_case(small_case(bars, ["0.7"] * 5))["rows"]
    assert [len(row["fills"]) for row in free] == [0, 1, 0, 0, 0, 0]


def test_whole_lots_survive_float_noise():
    bars = [bar(300 * i, 0.1) for i in range(3)]
    ledger = replay_case(small_case(bars, ["0.3", "0.3"], lot="0.1", initial_cash="1"))["rows"]
    assert ledger[1]["position"]["X"] == pytest.approx(3.0, abs=1e-12)
    assert ledger[2]["fills"] == []


def test_too_few_returns_leave_the_fill_without_impact_and_flagged():
    bars = [bar(300 * i, 100.0 + i % 3) for i in range(30)]
    got = flags(small_case(bars, ["0.5", "0"] * 14 + ["0.5"], impact_coef=1))
    assert got[20] == ["no_sigma:X"] and got[21] == []


MALFORMED = {
    "unknown config key": (lambda c: c["config"].update(bsp=1), r"unknown config key 'bsp'.*'bps'"),
    "value not a number": (lambda c: c["config"].update(bps="ten"), "bps = 'ten' is not a number"),
    "negative cost": (lambda c: c["config"].update(half_spread=-1), "half_spread = -1"),
    "sizing": (lambda c: c["config"].update(sizing="close"), "sizing = 'close'"),
    "asset left out of a bar": (lambda c: c["bars"][1].pop("X"), "bar 1: asset 'X' is missing"),
    "unknown asset in a bar": (lambda c: c["bars"][1].update(Y={}), "bar 1: unknown asset 'Y'"),
    "unknown field": (lambda c: c["bars"][1]["X"].update(dividned=1), "unknown key 'dividned'.*'dividend'"),
    "NaN price": (lambda c: c["bars"][1]["X"].update(close=float("nan")), "bar 1, asset X: close = nan"),
    "infinite volume": (lambda c: c["bars"][1]["X"].update(volume="inf"), "volume = 'inf' is not finite"),
    "zero price": (lambda c: c["bars"][1]["X"].update(low=0), "low = 0 must be above 0"),
    "half a bar": (lambda c: c["bars"][1]["X"].update(high=None), "high is null while open is given"),
    "high below low": (lambda c: c["bars"][1]["X"].update(high=90), "high = 90 is below low"),
    "no volume": (lambda c: c["bars"][1]["X"].pop("volume"), "volume is missing"),
    "split of 0": (lambda c: c["bars"][1]["X"].update(split=0), "split = 0 must be above 0"),
    "unsorted time": (lambda c: c["bars"][1].update(ts=0), "bar 1: ts = 0 is not after"),
    "too many actions": (lambda c: c["actions"].append({"X": 0}), "3 actions for 3 bars.*: 2"),
    "NaN weight": (lambda c: c["actions"][1].update(X="nan"), "action 1, asset X: weight = 'nan'"),
    "no weight": (lambda c: c["actions"][1].pop("X"), "action 1: asset 'X' has no weight"),
    "unknown asset in an action": (lambda c: c["actions"][0].update(Z=1), "action 0: unknown asset 'Z'"),
    "no bars": (lambda c: c.update(bars=[], actions=[]), "there is no bar"),
    "assets twice": (lambda c: c.update(assets=["X", "X"]), "names one twice"),
    "no assets": (lambda c: c.pop("assets"), "assets must be a list"),
}


@pytest.mark.parametrize("what", MALFORMED)
def test_malformed_case_is_refused_by_name(what):
    spoil, message = MALFORMED[what]
    case = copy.deepcopy(small_case([bar(0), bar(300), bar(600)], [1, 0]))
    replay_case(case)
    spoil(case)
    with pytest.raises(HpcrlError, match=message) as error:
        replay_case(case)
    assert "'t'" in str(error.value) or "case" in str(error.value)
    assert error.value.exit_code == 2
