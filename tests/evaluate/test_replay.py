"""Replay: golden ledgers to 1e-9, and a clear refusal of every malformed case."""

import copy
import json
from pathlib import Path

import numpy as np
import pytest
from ledger_compare import assert_same

from hpcrl.evaluate.case import read_case
from hpcrl.evaluate.replay import case_sigma, replay_case, replay_files
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


def nested(depth):
    value = []
    for _ in range(depth):
        value = [value]
    return value


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


def test_delisting_pays_out_and_fills_no_later_order():
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
    assert ledger[2]["flags"] == ["delisted:X", "no_fill:X"]
    assert ledger[2]["cash"] == pytest.approx(30_000)
    assert ledger[3]["flags"] == ledger[4]["flags"] == ["no_fill:X"]
    case["actions"][2:] = [{"X": 0}, {}]
    assert [row["flags"] for row in replay_case(case)["rows"][3:]] == [[], []]
    # prices on the day of the delisting change nothing
    traded = small_case([*bars[:2], bar(600, delist="30"), *bars[3:]], [1, 1, 1, 1])
    assert replay_case(traded)["rows"] == ledger


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


def test_the_weight_of_a_delisted_asset_still_counts_towards_leverage():
    def both(ts, **y):
        return bar(ts) | {"Y": {"open": 10, "high": 10, "low": 10, "close": 10, "volume": 1e6} | y}

    gone = dict.fromkeys(("open", "high", "low", "close"))
    bars = [both(0), both(300, **gone, volume=0, delist=10), both(600, **gone, volume=0)]
    case = small_case(bars, [0, 0]) | {"assets": ["X", "Y"]}
    case["actions"] = [{"X": 0, "Y": 0}, {"X": 1, "Y": 1}]
    ledger = replay_case(case)["rows"]
    assert ledger[2]["flags"] == ["leverage_scaled", "no_fill:Y"]
    assert ledger[2]["position"] == {"X": 500, "Y": 0}
    case["actions"][1] = {"X": 1, "Y": None}
    ledger = replay_case(case)["rows"]
    assert ledger[2]["flags"] == [] and ledger[2]["position"] == {"X": 1000, "Y": 0}


def test_sigma_is_the_deviation_of_the_last_78_returns_between_real_closes():
    rng = np.random.default_rng(3)
    bars, returns, last, want = [], [], None, []
    for b in range(150):
        split = 2.0 if b in (40, 90) else 1.0
        last = last and last / split
        if b in (41, 60, 61):
            bars.append({"ts": 300 * b, "X": {"volume": 0, "split": split}})
        else:
            close = (last or 100.0) * np.exp(0.01 * rng.standard_normal())
            returns += [np.log(close / last)] if last else []
            last = close
            bars.append(bar(300 * b, close, split=split))
        want.append(np.std(returns[-78:], ddof=1) if len(returns) >= 20 else np.nan)
    bars[30]["X"]["sigma"] = want[30] = 0.5
    got = case_sigma(read_case(small_case(bars, [0] * 149)))[:, 0]
    np.testing.assert_allclose(got, want, rtol=1e-10)
    assert np.isnan(got[19]) and np.isfinite(got[20])


def test_rounding_may_cross_prices_a_little_and_null_means_no_cap():
    bars = [bar(0), bar(300, close=100 * (1 + 1e-12)), bar(600, open=100 * (1 - 1e-12))]
    ledger = replay_case(small_case(bars, ["1", 1], participation=None, half_spread="1e-4"))["rows"]
    assert len(ledger) == 3 and ledger[1]["fills"][0]["qty"] == pytest.approx(1000)


MALFORMED = {
    "unknown config key": (lambda c: c["config"].update(bsp=1), r"unknown config key 'bsp'.*'bps'"),
    "value not a number": (lambda c: c["config"].update(bps="ten"), "bps = 'ten' is not a number"),
    "negative cost": (lambda c: c["config"].update(half_spread=-1), "half_spread = -1"),
    "participation over 1": (
        lambda c: c["config"].update(participation="1.5"),
        "participation = 1.5 must be above 0 and at most 1",
    ),
    "participation 0": (lambda c: c["config"].update(participation=0), "participation = 0 must be above 0"),
    "half spread": (lambda c: c["config"].update(half_spread=0.5), "half_spread = 0.5 must be .*below 0.5"),
    "slippage": (lambda c: c["config"].update(slippage=2), "slippage = 2 must be at least 0 and below 0.5"),
    "fee": (lambda c: c["config"].update(min_fee=-1), "min_fee = -1 must be at least 0"),
    "debit rate": (lambda c: c["config"].update(debit_rate=7), "debit_rate = 7 must be .*at most 1"),
    "borrow rate": (lambda c: c["config"].update(borrow_rate=-0.1), "borrow_rate = -0.1"),
    "maintenance": (lambda c: c["config"].update(maintenance=1), "maintenance = 1 must be .*below 1"),
    "leverage": (lambda c: c["config"].update(max_leverage=0), "max_leverage = 0 must be above 0"),
    "fill lag": (lambda c: c["config"].update(fill_lag=3), "fill_lag = 3 must be 0, 1 or 2"),
    "half a bar's lag": (lambda c: c["config"].update(fill_lag="0.5"), "fill_lag = '0.5' must be 0, 1 or 2"),
    "no fill lag": (lambda c: c["config"].update(fill_lag=None), "fill_lag = None is not a number"),
    "true as fill lag": (lambda c: c["config"].update(fill_lag=True), "fill_lag = True is not a number"),
    "net limit": (lambda c: c["config"].update(max_net=0), "max_net = 0 must be above 0"),
    "costs of an unknown asset": (
        lambda c: c["config"].update(symbols={"XY": {"bps": 1}}),
        "symbols: unknown asset 'XY'; did you mean 'X'",
    ),
    "unknown cost of an asset": (
        lambda c: c["config"].update(symbols={"X": {"lot": 1}}),
        "symbols, X: unknown cost 'lot'; known are half_spread, ",
    ),
    "misspelt cost of an asset": (
        lambda c: c["config"].update(symbols={"X": {"bsp": 1}}),
        "symbols, X: unknown cost 'bsp'; did you mean 'bps'",
    ),
    "cost of an asset": (
        lambda c: c["config"].update(symbols={"X": {"slippage": "0.5"}}),
        "symbols, X: slippage = 0.5 must be .*below 0.5",
    ),
    "no cost of an asset": (
        lambda c: c["config"].update(symbols={"X": {"bps": None}}),
        "symbols, X: bps = None is not a number",
    ),
    "symbols as a list": (lambda c: c["config"].update(symbols=["X"]), "symbols must be an object"),
    "costs as a number": (lambda c: c["config"].update(symbols={"X": 1}), "X: its costs must be an object"),
    "reward floor": (lambda c: c["config"].update(reward_floor=1), "reward_floor = 1 must be .*below 1"),
    "cash": (lambda c: c["config"].update(initial_cash=0), "initial_cash = 0 must be above 0"),
    "huge fee": (lambda c: c["config"].update(per_share=1e308), r"per_share = 1e\+308 is beyond 1e\+18"),
    "endless integer": (lambda c: c["config"].update(bps=10**400), "bps = 10+.* is not a number"),
    "huge time": (lambda c: c["bars"][2].update(ts=1e300), "bar 2: ts = 1e\\+300"),
    "milliseconds": (lambda c: c["bars"][2].update(ts=1_650_000_000_000), "must be unix seconds"),
    "huge price": (lambda c: c["bars"][1]["X"].update(high=1e308), r"high = 1e\+308 is beyond"),
    "tiny price": (lambda c: c["bars"][1]["X"].update(low=1e-300), "low = 1e-300 is below"),
    "open above high": (lambda c: c["bars"][1]["X"].update(open=101), "high = 100 is below open = 101"),
    "close below low": (lambda c: c["bars"][1]["X"].update(close=99.9), "close = 99.9 is below low = 100"),
    "negative dividend": (lambda c: c["bars"][1]["X"].update(dividend=-1), "dividend = -1 must not be neg"),
    "deep value": (lambda c: c["bars"][1]["X"].update(close=nested(5000)), "close = .* is not a number"),
    "deep name": (lambda c: c.update(name=nested(5000), bars=[]), "there is no bar"),
    "sizing": (lambda c: c["config"].update(sizing="close"), "sizing = 'close'"),
    "asset left out of a bar": (lambda c: c["bars"][1].pop("X"), "bar 1: asset 'X' is missing"),
    "unknown asset in a bar": (lambda c: c["bars"][1].update(Y={}), "bar 1: unknown asset 'Y'"),
    "unknown field": (lambda c: c["bars"][1]["X"].update(dividned=1), "unknown key 'dividned'.*'dividend'"),
    "NaN price": (lambda c: c["bars"][1]["X"].update(close=float("nan")), "bar 1, asset X: close = nan"),
    "infinite volume": (lambda c: c["bars"][1]["X"].update(volume="inf"), "volume = 'inf' is not finite"),
    "zero price": (lambda c: c["bars"][1]["X"].update(low=0), "low = 0 must be above 0"),
    "half a bar": (lambda c: c["bars"][1]["X"].update(high=None), "high is missing while open is given"),
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


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    "change",
    [
        lambda c: c["config"].update(initial_cash=1e18, per_share=1e18, min_fee=1e18),
        lambda c: [
            b["X"].update(open=1e18, high=1e18, low=1e18, close=1e18, dividend=1e18) for b in c["bars"]
        ],
        lambda c: [b["X"].update(split=1e18, dividend=1e18) for b in c["bars"]],
        lambda c: [b["X"].update(split=1e-300) for b in c["bars"]],
        lambda c: [b["X"].update(sigma=1e18, volume=1e-300) for b in c["bars"]],
        lambda c: c["config"].update(max_leverage=1e18, initial_cash=1e-300),
        lambda c: c["config"].update(lot=1e-300),
        lambda c: c["config"].update(reward_floor=1e-320),
    ],
)
def test_extreme_numbers_give_a_ledger_of_numbers_or_one_error(change):
    case = small_case([bar(300 * i, 100.0 + i % 3) for i in range(40)], [1e18, -1] * 19 + [0], impact_coef=1)
    change(case)
    try:
        json.dumps(replay_case(case), allow_nan=False)
    except HpcrlError as error:
        assert "case 't', " in str(error)


def test_a_ledger_is_not_written_over_its_case(tmp_path):
    path = tmp_path / "case.json"
    path.write_text(json.dumps(small_case([bar(0), bar(300)], [1])))
    before = path.read_bytes()
    (tmp_path / "link.json").symlink_to(path)
    for out in (path, tmp_path / "link.json"):
        with pytest.raises(HpcrlError, match="one of the inputs"):
            replay_files(out, path)
    with pytest.raises(HpcrlError, match="a folder"):
        replay_files(tmp_path, path)
    assert path.read_bytes() == before and sorted(tmp_path.iterdir()) == [path, tmp_path / "link.json"]
