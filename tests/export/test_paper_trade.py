import importlib.util
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pandas as pd
import pytest
from exported import build, play

from hpcrl.market.stage import stage_files
from hpcrl.types import HpcrlError

ROOT = Path(__file__).parents[2]
TOOL = ROOT / "tools" / "paper_trade.py"
SAMPLE = ROOT / "data" / "sample" / "MSFT_5min.csv"
PAPER = {"impact_coef": 0.0, "participation": None, "borrow_rate": 0.0, "half_spread": 2e-4, "slippage": 1e-4}
SPLITS = [288 * 3 + bar for bar in (60, 100, 150, 200)]
WITHOUT = (
    "import sys, runpy\nfor name in ('torch', 'pandas', 'scipy', 'pydantic'): sys.modules[name] = None\n"
)


@pytest.fixture(scope="module")
def tool():
    spec = importlib.util.spec_from_file_location("paper_trade", TOOL)
    module = importlib.util.module_from_spec(spec)
    sys.modules["paper_trade"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    yield module
    del sys.modules["paper_trade"]


@pytest.fixture(scope="module")
def msft(tmp_path_factory):
    folder = tmp_path_factory.mktemp("msft")
    stage_files(SAMPLE, folder / "msft.h5", bar_seconds=300, calendar="XNYS")
    costs = PAPER | {"per_share": 0.005, "min_fee": 1.0, "bps": 0.5}
    env = {"costs": costs, "lot": 1.0, "max_leverage": 0.8}
    return build(folder, folder / "msft.h5", env=env, policy={"model_type": "lightweight"})


@pytest.fixture(scope="module")
def coins(tmp_path_factory):
    """Two coins in one account, with missing bars and splits on the last day."""
    folder, rng, tables = tmp_path_factory.mktemp("coins"), np.random.default_rng(5), []
    stamp = pd.date_range("2024-03-01", periods=288 * 4, freq="5min", tz="UTC")
    for symbol in ("ADA", "XMR"):
        close = 20 * np.exp(np.cumsum(0.003 * rng.standard_normal(len(stamp))))
        split = np.ones(len(stamp))
        split[SPLITS] = (2.0, 0.5, 3.0, 0.25)
        close /= np.cumprod(split)
        opens = np.r_[20.0, close[:-1]] / split
        table = pd.DataFrame({"timestamp": stamp.strftime("%Y-%m-%dT%H:%M:%SZ"), "symbol": symbol})
        table["open"], table["close"], table["volume"] = opens, close, rng.lognormal(5, 1, len(stamp))
        table["high"], table["low"] = np.maximum(opens, close) * 1.001, np.minimum(opens, close) * 0.999
        table["split"] = split
        gone = rng.random(len(stamp)) < 0.05
        gone[[0, -1, 288 * 3, *SPLITS]] = False
        tables.append(table[~gone])
    pd.concat(tables).to_csv(folder / "coins.csv", index=False)
    stage_files(folder / "coins.csv", folder / "coins.h5", bar_seconds=300, calendar="24/7")
    env = {"costs": PAPER, "lot": 0.01, "assets": "all", "max_net": 0.5}
    return build(folder, folder / "coins.h5", env=env, policy={"model_type": "lightweight"})


def traded(tool, run, csv, days, state=None):
    desk = tool.Desk(run.path / "policy.onnx", None)
    tool.trade(desk, tool.read_bars(csv, ()), days, state)
    return desk


def first_of_last(market, days):
    session = market.session_B
    return int(np.flatnonzero(session == np.unique(session)[-days])[0])


def test_two_days_on_paper_end_with_the_simulators_equity(tool, msft, capsys, tmp_path):
    desk = traded(tool, msft, SAMPLE, 2, tmp_path / "night.npz")
    market = play(msft, 2900, 3198).market
    played = play(msft, first_of_last(market, 2), 3198)
    assert desk.equity == pytest.approx(played.track.equity_TN[-1, 0], rel=1e-12)
    assert desk.orders == played.track.trades_TN.sum() > 20
    costs = played.track.fees_TN.sum() + played.track.spread_TN.sum()
    assert desk.costs == pytest.approx(costs, rel=1e-9)
    said = capsys.readouterr().out.splitlines()
    assert sum(" buy " in line or " sell " in line for line in said) == desk.orders
    assert said[0] == "left out as no bars of the calendar: 1 stamps" and "bars of warm-up" in said[1]
    days = [line for line in said if line[10] == ":"]
    assert [line[:10] for line in days] == ["2022-06-14", "2022-06-15"]
    assert f"-> {desk.equity:,.2f}" in days[1]
    assert traded(tool, msft, SAMPLE, 2).equity == desk.equity  # without the nights on disk


def test_an_account_over_two_coins_with_gaps_and_splits_ends_with_the_simulators_equity(tool, coins):
    desk = traded(tool, coins, coins.path / "coins.csv", 1)
    played = play(coins, 288 * 3, 288 * 4)
    assert desk.equity == pytest.approx(played.track.equity_TN[-1, 0], rel=1e-10)
    assert desk.orders == played.track.trades_TN.sum() > 20


def test_the_command_runs_where_neither_torch_nor_pandas_is(msft, tmp_path):
    arguments = [str(TOOL), str(msft.path / "policy.onnx"), str(SAMPLE), "--state", str(tmp_path / "s.npz")]
    code = f"{WITHOUT}sys.argv = {arguments!r}\nrunpy.run_path(sys.argv[0], run_name='__main__')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1].startswith("2022-06-15: ")
    assert (tmp_path / "s.npz").stat().st_size > 1000


@pytest.mark.parametrize(
    ("change", "arguments", "said"),
    [
        (None, ["--days", "0"], "--days is 0"),
        (None, ["--days", "100"], "the file has 42 sessions; 100 to trade"),
        (None, ["--days", "40"], "MSFT: 126 bars so far, 250 are needed"),
        (None, ["--symbols", "MSFT,AAPL"], "the file has no bar of AAPL; it has MSFT"),
        (None, ["--state", "bars.csv"], "is one of the inputs, and would be lost"),
        (("volume", "size"), [], "no column volume"),
        (("2022-06-15T15:40:00Z,MSFT,", "2022-06-15T15:40:00Z,MSFT,x"), [], "line 3197: could not convert"),
        (("2022-06-15T15:40:00Z,MSFT,2", "2022-06-15T15:40:00Z,MSFT,9"), [], "are no bar"),
        (
            ("2022-06-15T15:40:00Z,", "2022-06-15 x,"),
            [],
            "line 3197: timestamp '2022-06-15 x' is not ISO 8601",
        ),
        (("2022-06-15T15:40:00Z,", "\udcff"), [], "not a readable CSV table"),
    ],
)
def test_bad_input_is_one_line(change, arguments, said, msft, tmp_path):
    text = SAMPLE.read_text()
    if change:
        assert change[0] in text
        text = text.replace(*change)
    (tmp_path / "bars.csv").write_text(text, errors="surrogateescape")
    command = [
        sys.executable,
        str(TOOL),
        str(msft.path / "policy.onnx"),
        str(tmp_path / "bars.csv"),
        *arguments,
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=tmp_path)
    assert done.returncode == 2
    assert said in done.stderr and done.stderr.count("\n") == 1 and done.stderr.startswith("error: ")


def test_a_policy_that_fills_elsewhere_is_refused(tool, msft, tmp_path):
    model = onnx.load(msft.path / "policy.onnx")
    for prop in model.metadata_props:
        prop.value = prop.value.replace('"fill_lag": 1', '"fill_lag": 2')
    onnx.save(model, tmp_path / "late.onnx")
    with pytest.raises(HpcrlError, match="fill_lag is 2; paper fills at the next open"):
        tool.Desk(tmp_path / "late.onnx", None)


def test_each_symbol_of_a_single_policy_has_an_account_of_its_own(tool, msft, tmp_path, capsys):
    """The sample under two names: both end alike, and as alone."""
    text = SAMPLE.read_text()
    (tmp_path / "two.csv").write_text(text + "".join(text.partition("\n")[2]).replace(",MSFT,", ",AAPL,"))
    desk = tool.Desk(msft.path / "policy.onnx", ["AAPL", "MSFT"])
    tool.trade(desk, tool.read_bars(tmp_path / "two.csv", ()), 1, None)
    alone = traded(tool, msft, SAMPLE, 1)
    ends = [broker.account(desk.close).equity for broker in desk.brokers.values()]
    assert ends == [alone.equity, alone.equity]
    assert desk.orders == 2 * alone.orders > 0
