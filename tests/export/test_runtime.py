"""PolicySession against what evaluation plays, and between two processes."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pandas as pd
import pytest
from exported import EVERY_REWARD, build, play

from hpcrl.export.runtime import Account, PolicySession
from hpcrl.market.stage import stage_files, stage_frame
from hpcrl.types import HpcrlError

SAMPLE = Path(__file__).parents[2] / "data" / "sample" / "MSFT_5min.csv"
COINS = ("ADA", "BTC", "XMR")
NEAR = 1e-4
STEPS = 160


def coins(rows=2600):
    """Three made-up coins with a column of their own, missing bars, and a split within the last bars."""
    rng, tables = np.random.default_rng(3), []
    for number, symbol in enumerate(COINS):
        close = 10**number * np.exp(np.cumsum(0.002 * rng.standard_normal(rows)))
        close[-200:] /= 3.0 if number == 1 else 1.0
        opens = np.r_[close[0], close[:-1]] * np.exp(3e-4 * rng.standard_normal(rows))
        split = np.ones(rows)
        if number == 1:
            opens[-200], split[-200] = close[-200], 3.0
        table = pd.DataFrame(
            {
                "timestamp": pd.date_range("2024-03-01", periods=rows, freq="5min", tz="UTC"),
                "symbol": symbol,
                "open": opens,
                "high": np.maximum(opens, close) * 1.001,
                "low": np.minimum(opens, close) * 0.999,
                "close": close,
                "volume": rng.lognormal(8, 1, rows).round(2),
                "split": split,
                "mood": rng.standard_normal(rows),
            }
        )
        gone = rng.random(rows) < 0.03
        gone[[0, -1, -200]] = False
        tables.append(table[~gone])
    return pd.concat(tables, ignore_index=True)


KINDS = {
    "transformer, one symbol": {},
    "lightweight, one account each": {
        "policy": {"model_type": "lightweight", "head": "continuous"},
        "env": {"rewards": EVERY_REWARD},
    },
    "transformer, one account over all": {
        "env": {"assets": "all", "rewards": EVERY_REWARD, "maintenance": 0.2}
    },
    "lightweight, one account over all": {"policy": {"model_type": "lightweight"}, "env": {"assets": "all"}},
    "transformer, one account each": {"env": {"fill_lag": 2, "rewards": EVERY_REWARD}},
}
SLOW = ("lightweight, one account over all", "transformer, one account each")


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bars")
    stage_files(SAMPLE, folder / "msft.h5", bar_seconds=300, calendar="XNYS")
    stage_frame(
        coins(), folder / "coins.h5", source="made up", calendar="24/7", bar_seconds=300, features=("mood",)
    )
    return folder


@pytest.fixture(scope="module")
def plays(files, tmp_path_factory):
    """name -> what evaluation's simulator and torch did in the last bars; built when first asked for."""
    made = {}

    def give(kind):
        if kind not in made:
            data = files / ("msft.h5" if kind == "transformer, one symbol" else "coins.h5")
            run = build(tmp_path_factory.mktemp("run"), data, **KINDS[kind])
            hi = 3198 if data.stem == "msft" else 2600
            made[kind] = play(run, hi - STEPS, hi)
        return made[kind]

    return give


@pytest.fixture
def one(plays):
    return plays("transformer, one symbol")


def begun(played, steps=0, **options):
    """A session warmed up to the first decision and ``steps`` further."""
    session = PolicySession(played.run.path / "policy.onnx", **options)
    session.warm_up(played.bars(row) for row in range(played.first))
    for step in range(steps):
        advance(session, played, step)
    return session


def advance(session, played, step):
    row = played.first + step
    return session.step(played.bars(row), played.report(step), ts=int(played.market.ts_B[row]))


@pytest.mark.parametrize(
    "kind", [pytest.param(kind, marks=pytest.mark.slow if kind in SLOW else ()) for kind in KINDS]
)
def test_tokens_and_weights_bar_by_bar_are_those_of_evaluation(kind, plays):
    played = plays(kind)
    session, market = begun(played), played.market
    columns = len(market.feature_names) * played.run.n_assets
    continuous = played.run.config.policy.head == "continuous"
    ties = feature_differs = seen = 0
    traded = set()
    for step, noted in enumerate(played.seen):
        weights = advance(session, played, step)
        staged = market.feature_BSF[played.first + step].reshape(len(noted["token"]), -1)
        feature_differs += int((session.token_NE[:, :columns] != staged).sum())
        seen += staged.size
        # A continuous target differs in its last digits, and the next token shows it.
        slack = 1e-5 if continuous else 1e-7
        assert session.token_NE[:, columns:] == pytest.approx(
            noted["token"][:, columns:], rel=1e-6, abs=slack
        )
        want = noted["target"].ravel()
        got = np.array([weights[symbol] for symbol in market.symbols])
        assert session.params_NAP.ravel() == pytest.approx(noted["params"].ravel(), abs=NEAR)
        if continuous:
            assert got == pytest.approx(want, abs=NEAR)
        else:
            best = np.sort(noted["params"].reshape(len(want), -1), axis=1)
            tie = best[:, -1] - best[:, -2] < NEAR
            ties += int(tie.sum())
            assert (got == want)[~tie].all()
        traded |= set(want.tolist())
    assert len(traded) >= 3  # else anything would agree
    assert ties <= 1e-3 * STEPS * len(market.symbols)
    assert feature_differs <= 1e-4 * seen


def test_the_sample_decides_the_same_after_a_warm_up_of_the_bars_it_wants(one):
    session = PolicySession(one.run.path / "policy.onnx")
    lo = one.first - session.bars_wanted
    assert lo > 0
    assert session.warm_up(one.bars(row) for row in range(lo, one.first)) == session.bars_wanted
    for step in range(40):
        weights = advance(session, one, step)
        assert list(weights.values()) == one.seen[step]["target"].ravel().tolist()


@pytest.mark.parametrize("first", [250, 251, 255])
def test_a_first_decision_right_after_the_burn_in_has_the_short_history_of_evaluation(first, one):
    """Fewer bars after the burn-in than the memory could take in, or none."""
    played = play(one.run, first, first + 35)
    assert played.first == first
    session = begun(played)
    for step, noted in enumerate(played.seen):
        advance(session, played, step)
        assert session.params_NAP == pytest.approx(noted["params"], abs=NEAR / 10)


RESTORED = """
import sys
for name in ("torch", "pandas", "scipy", "pydantic", "h5py", "onnx", "exchange_calendars"):
    sys.modules[name] = None  # as where they are not installed
import json
from pathlib import Path
from hpcrl.export.runtime import Account, Bar, PolicySession
folder = Path(sys.argv[1])
session = PolicySession(folder / "policy.onnx")
session.load_state((folder / "state.npz").read_bytes())
for row in json.loads((folder / "day.json").read_text()):
    bars = {symbol: bar and Bar(**bar) for symbol, bar in row["bars"].items()}
    if isinstance(row["account"], list):
        account = {symbol: Account(**each) for symbol, each in zip(bars, row["account"])}
    else:
        account = Account(**row["account"])
    print(json.dumps({s: weight.hex() for s, weight in session.step(bars, account, ts=row["ts"]).items()}))
"""


@pytest.mark.parametrize(
    ("kind", "half"),
    [
        ("transformer, one symbol", 39),
        ("lightweight, one account each", 77),
        ("transformer, one account over all", 0),
    ],
)
def test_saved_after_half_a_day_a_new_process_goes_on_bit_for_bit(kind, half, plays, tmp_path):
    """Which knows neither torch nor pandas. Half 0: saved before the first decision."""
    played = plays(kind)
    session = begun(played, half)
    (tmp_path / "state.npz").write_bytes(session.state())
    (tmp_path / "policy.onnx").write_bytes((played.run.path / "policy.onnx").read_bytes())
    rows, want = [], []
    for step in range(half, half + 39):
        report, row = played.report(step), played.first + step
        bars = played.bars(row)
        accounts = [vars(each) for each in report.values()] if isinstance(report, dict) else vars(report)
        named = {symbol: None if bar is None else vars(bar) for symbol, bar in bars.items()}
        rows.append({"bars": named, "account": accounts, "ts": int(played.market.ts_B[row])})
        want.append({symbol: weight.hex() for symbol, weight in advance(session, played, step).items()})
    (tmp_path / "day.json").write_text(json.dumps(rows))
    done = subprocess.run(
        [sys.executable, "-c", RESTORED, str(tmp_path)], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert [json.loads(line) for line in done.stdout.splitlines()] == want


def test_the_runtime_itself_asks_for_no_training_package():
    """TA-Lib imports pandas where it finds it; nothing else does."""
    code = (
        "import sys; sys.modules['pandas'] = None\n"
        "import hpcrl.export.runtime\n"
        "rooms = ('torch', 'scipy', 'pydantic', 'h5py', 'onnx', 'typer', 'exchange_calendars')\n"
        "print([name for name in rooms if name in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "[]\n"


def test_what_is_refused_changes_nothing(one):
    session = begun(one, 20)
    before = session.state()
    row = one.first + 20
    good, account = one.bars(row)["MSFT"], one.report(20)["MSFT"]
    refused = [
        ({"MSFT": replace(good, close=float("nan"))}, account, "close is nan"),
        ({"MSFT": replace(good, high=good.low - 1)}, account, "are no bar"),
        ({"MSFT": replace(good, ts=good.ts - 300)}, account, "out of order"),
        ({"MSFT": replace(good, ts=good.ts + 300)}, account, "a gap before .* 1 bar is missing"),
        ({"MSFT": replace(good, ts=good.ts + 7)}, account, "no bar's start"),
        ({"MSFT": replace(good, ts=good.ts + 10**10)}, account, "outside of the sessions"),
        ({"MSFT": replace(good, ts=float(good.ts))}, account, "whole unix seconds"),
        ({"MSFT": replace(good, ts=good.ts * 1000)}, account, "unix seconds UTC, not milliseconds"),
        ({"MSFT": good, "AAPL": good}, account, "unknown symbol 'AAPL'"),
        (None, account, "bars are NoneType"),
        ({"MSFT": 441.5}, account, "MSFT: float is no Bar"),
        ({"MSFT": replace(good, open="10")}, account, "open is '10'; a finite number"),
        (
            {"MSFT": replace(good, open=1e300, high=1e300, close=1e300)},
            account,
            "feature .* is .*; check its bars",
        ),
        ({"MSFT": good}, None, "account: an Account is needed"),
        ({"MSFT": good}, {"MSFT": 1e5}, "account: an Account is needed"),
        ({"MSFT": good}, replace(account, cash="much"), "cash is 'much'"),
        ({}, account, "no bar of MSFT; give None"),
        ({"MSFT": None}, account, "no ts was given"),
        ({"MSFT": good}, replace(account, equity=-1.0), "equity is -1"),
        ({"MSFT": good}, replace(account, positions={"AAPL": 1.0}), "positions name 'AAPL'"),
        ({"MSFT": good}, {"AAPL": account}, "accounts of AAPL; MSFT was expected"),
    ]
    for bars, report, said in refused:
        with pytest.raises(HpcrlError, match=said):
            session.step(bars, report)
        assert session.state() == before
    with pytest.raises(HpcrlError, match="not milliseconds"):
        session.day(good.ts * 1000)
    with pytest.raises(HpcrlError, match="bars of different stamps"):
        session.step({"MSFT": good}, account, ts=good.ts + 300)
    with pytest.raises(HpcrlError, match="warm_up after the first step"):
        session.warm_up([{"MSFT": good}])
    assert session.state() == before
    assert session.next_ts == good.ts and session.last_ts < good.ts
    assert session.step(good, account) == {"MSFT": one.seen[20]["target"].item()}


@pytest.mark.parametrize(
    ("was", "now", "said"),
    [
        (
            "(RSI14 - 50) / 50",
            "RSI14",
            r"feature rsi14 was made as 'RSI14', hpcrl .* has '\(RSI14 - 50\) / 50'",
        ),
        ('"name": "rsi14"', '"name": "rsi15"', "feature rsi15 was made as .* has 'no such feature'"),
    ],
)
def test_features_of_another_version_are_refused(was, now, said, one, tmp_path):
    model = onnx.load(one.run.path / "policy.onnx")
    for prop in model.metadata_props:
        assert prop.key != "hpcrl.metadata" or was in prop.value
        prop.value = prop.value.replace(was, now)
    onnx.save(model, tmp_path / "other.onnx")
    with pytest.raises(HpcrlError, match=said):
        PolicySession(tmp_path / "other.onnx")


def test_too_few_bars_before_the_first_decision_are_counted(one):
    session = PolicySession(one.run.path / "policy.onnx")
    session.warm_up(one.bars(row) for row in range(one.first - 200, one.first))
    with pytest.raises(HpcrlError, match=r"MSFT: 200 bars so far, 250 are needed before the first decision"):
        advance(session, one, 0)


@pytest.mark.parametrize("start", ["the first bars of all", "bars_needed"])
def test_the_least_warm_up_will_do(start, one):
    session = PolicySession(one.run.path / "policy.onnx")
    lo = 0 if start == "the first bars of all" else one.first - session.bars_needed
    session.warm_up(one.bars(row) for row in range(lo, lo + session.bars_needed))
    bar = one.bars(lo + session.bars_needed)["MSFT"]
    assert session.step(bar, Account(1e5, 1e5))["MSFT"] in one.run.config.policy.positions


def test_other_symbols_may_be_traded_each_from_its_own_account(one):
    session = begun(one)
    other = PolicySession(one.run.path / "policy.onnx", symbols=("AAPL", "MSFT"))
    other.warm_up({"AAPL": bar, "MSFT": bar} for row in range(one.first) for bar in one.bars(row).values())
    for step in range(10):
        alone = advance(session, one, step)
        bar, account = one.bars(one.first + step)["MSFT"], one.account(step, 0)
        named = {"AAPL": Account(1e5, 1e5), "MSFT": account}
        both = other.step({"AAPL": bar, "MSFT": bar}, named)
        assert both["MSFT"] == alone["MSFT"]
    bar = one.bars(one.first + 10)["MSFT"]
    with pytest.raises(HpcrlError, match="each of AAPL, MSFT is traded from its own"):
        other.step({"AAPL": bar, "MSFT": bar}, account)
    with pytest.raises(HpcrlError, match="a bare bar, but symbols AAPL, MSFT"):
        other.step(bar, named)


@pytest.mark.parametrize("symbols", [(), ("A", "A"), ("ADA", "BTC"), ("ADA", "BTC", "ETH")])
def test_symbols_that_a_common_account_does_not_trade_are_refused(symbols, plays):
    path = plays("transformer, one account over all").run.path / "policy.onnx"
    with pytest.raises(HpcrlError, match="symbols are"):
        PolicySession(path, symbols=symbols)
    assert PolicySession(path, symbols=COINS[::-1]).symbols == COINS


def test_a_state_that_is_none_of_this_session_is_refused(one, plays):
    session, other = (
        begun(one),
        PolicySession(plays("transformer, one account over all").run.path / "policy.onnx"),
    )
    before = session.state()
    with pytest.raises(HpcrlError, match=r"of another session: its (policy|config)"):
        session.load_state(other.state())
    with pytest.raises(HpcrlError, match="of another session: its symbols is"):
        PolicySession(one.run.path / "policy.onnx", symbols="AAPL").load_state(before)
    for broken in (b"", b"no archive", before[:-100], before[:5000]):
        with pytest.raises(HpcrlError, match=r"none of PolicySession\.state"):
            session.load_state(broken)
    assert session.state() == before
