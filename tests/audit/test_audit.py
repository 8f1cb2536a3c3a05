"""The leak audit on honest markets (no alarm), on leaky ones, and on input that it cannot judge."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from hpcrl.audit import alter, planted
from hpcrl.audit.audit import CHECKS, audit_case
from hpcrl.audit.columns import source_columns
from hpcrl.audit.pipeline import Case, load_case
from hpcrl.audit.self_test import CLEAN, small_case, small_market
from hpcrl.config.load import validate
from hpcrl.market.calendar import session_grid
from hpcrl.market.stage import stage_files, stage_frame, stage_planted, stage_synthetic
from hpcrl.types import HpcrlError

SAMPLE = Path(__file__).resolve().parents[2] / "data" / "sample" / "MSFT_5min.csv"


def case_of(path: Path, **env) -> Case:
    return load_case(validate({"market": {"path": str(path)}, "env": env}, "test"))


def alarms(case: Case) -> list[str]:
    return [f"{found.check}: {found.evidence}" for found in audit_case(case) if found.verdict == "leak"]


@pytest.fixture(scope="module")
def honest(tmp_path_factory) -> Case:
    return small_case(tmp_path_factory.mktemp("honest"), small_market())


@pytest.mark.parametrize("env", CLEAN.values(), ids=CLEAN)
def test_a_clean_pipeline_raises_no_alarm(tmp_path, env):
    case = small_case(tmp_path, small_market(seed=7), **env)
    findings = audit_case(case)
    assert [found.evidence for found in findings if found.verdict == "leak"] == []
    assert {found.check for found in findings if found.verdict == "pass"} >= {
        "features_recomputed", "features_causal", "session_so_far", "labelled_by_start", "splits_purged",
        "marks_not_backfilled", "scaler_train_only", "observations_causal", "episodes_isolated",
        "fills_after_decision",
    }  # fmt: skip


@pytest.mark.parametrize("assets", ["single", "all"])
def test_the_real_sample_raises_no_alarm(tmp_path, assets):
    stage_files(SAMPLE, tmp_path / "msft.h5", price_adjustment="splits")
    findings = audit_case(case_of(tmp_path / "msft.h5", assets=assets))
    assert {found.verdict for found in findings} == {"pass", "skipped"}


@pytest.mark.parametrize("task", ["L0", "L1", "L2", "L3", "L4", "L4b", "L5", "control"])
def test_an_honest_column_that_predicts_is_no_leak(tmp_path, task):
    for bars, seed in ((400, 0), (400, 1), (800, 2), (2000, 3)):
        path = tmp_path / f"{seed}.h5"
        stage_planted(path, task, bars=bars, paths=4, seed=seed)
        assert {found.verdict for found in source_columns(case_of(path))} <= {"pass", "warning"}


@pytest.mark.parametrize("task", ["L2", "L5"])
def test_a_planted_market_raises_no_alarm(tmp_path, task):
    stage_planted(tmp_path / "market.h5", task, bars=600, paths=2)
    assert alarms(case_of(tmp_path / "market.h5", lot=0)) == []


def test_a_column_that_predicts_is_named_with_its_correlation(tmp_path):
    stage_planted(tmp_path / "L2.h5", "L2", bars=4000, paths=2)
    warned = [found for found in audit_case(case_of(tmp_path / "L2.h5")) if found.verdict == "warning"]
    assert len(warned) == 1 and warned[0].where["feature"] == "signal"
    assert warned[0].where["values"][0] == pytest.approx(0.19, abs=0.03)


def test_short_splits_and_splits_of_a_share_raise_no_alarm(tmp_path):
    frame = small_market(seed=3).assign(split=1.0, dividend=0.0)
    row = 700
    frame.loc[row, "split"] = 4.0
    after = frame.index[(frame.index >= row) & (frame["symbol"] == frame.loc[row, "symbol"])]
    frame.loc[after, ["open", "high", "low", "close"]] /= 4.0
    frame.loc[row + 100, "dividend"] = 0.3
    path = tmp_path / "market.h5"
    stage_frame(frame, path, source="test", features=("signal",), price_adjustment="unadjusted")
    assert alarms(case_of(path, fill_lag=2, assets="all")) == []
    short = validate(
        {"market": {"path": str(path), "train_fraction": 0.9, "validation_fraction": 0.0}}, "test"
    )
    assert alarms(load_case(short)) == []


def test_a_leak_is_named_with_bar_symbol_feature_and_both_values(honest):
    leak = next(leak for leak in planted.LEAKS if leak.name == "future high in the feature")
    found = next(found for found in audit_case(leak.case(honest)) if found.verdict == "leak")
    assert found.check == "features_causal" and found.advice
    assert found.where["symbol"] == "AAA" and found.where["feature"] == "range"
    was, now = found.where["values"]
    assert was != now and f"{was:.6g}" in found.evidence and found.where["bar"] in found.evidence


@pytest.mark.parametrize(
    ("name", "check"),
    [
        ("scaler of the whole sample", "scaler_train_only"),
        ("splits without a purge", "splits_purged"),
        ("fill at the close just seen", "fills_after_decision"),
        ("history of the episode before", "episodes_isolated"),
        ("back-fill: missing bars marked at the next close", "marks_not_backfilled"),
        ("next return in the observation", "observations_causal"),
        ("file staged by leaky code", "features_recomputed"),
    ],
)
def test_a_planted_leak_is_found_by_its_check(honest, name, check):
    leak = next(leak for leak in planted.LEAKS if leak.name == name)
    assert leak.case is not None
    assert check in {found.check for found in audit_case(leak.case(honest)) if found.verdict == "leak"}


@pytest.mark.parametrize("noise", [0.0, 0.5, 1.0])
def test_a_column_made_of_the_next_return_is_found_through_noise(tmp_path, noise):
    frame, rng = small_market(seed=5), np.random.default_rng(1)
    later = np.log(frame["close"].shift(-1) / frame["close"]).where(
        frame["symbol"].eq(frame["symbol"].shift(-1))
    )
    value = later.fillna(0.0).to_numpy()
    case = small_case(
        tmp_path, frame.assign(signal=value + noise * value.std() * rng.standard_normal(len(value)))
    )
    assert any(line.startswith("source_columns") for line in alarms(case))


def column_of(tmp_path, frame: pd.DataFrame, column) -> list:
    """What ``source_columns`` says of a column made by ``column(one symbol's rows)``."""
    parts = [np.asarray(column(rows), dtype=float) for _, rows in frame.groupby("symbol", sort=False)]
    return list(source_columns(small_case(tmp_path, frame.assign(signal=np.concatenate(parts)))))


def whole(rows: pd.DataFrame):
    return rows.groupby(rows["timestamp"].dt.date)


def moves(rows: pd.DataFrame) -> pd.Series:
    return np.log(rows["close"]).diff().fillna(0.0)


LEAKY = {
    "the day's close": lambda rows: whole(rows)["close"].transform("last"),
    "the day's return": lambda rows: np.log(
        whole(rows)["close"].transform("last") / whole(rows)["open"].transform("first")
    ),
    "the day's high": lambda rows: whole(rows)["high"].transform("max"),
    "next volume": lambda rows: rows["volume"].shift(-1).ffill(),
    "volume of the next 24 bars": lambda rows: rows["volume"].rolling(24).mean().shift(-24).ffill().bfill(),
    "volatility of the next 24 bars": lambda rows: moves(rows).rolling(24).std().shift(-24).ffill().bfill(),
    "mean move of the next 6 bars": lambda rows: (
        moves(rows).abs().rolling(6).mean().shift(-6).ffill().bfill()
    ),
    "smoothed over 101 bars": lambda rows: rows["close"].rolling(101, center=True, min_periods=1).mean(),
    "label with a threshold": lambda rows: rows["close"].shift(-7).ffill() / rows["close"] > 1.001,
    "scaled to 0 and 1": lambda rows: (
        (rows["close"] - rows["close"].min()) / (rows["close"].max() - rows["close"].min())
    ),
}
HONEST = {
    "volatility of the last 12 bars": lambda rows: moves(rows).rolling(12, min_periods=2).std().bfill(),
    "a walk that never is negative": lambda rows: np.exp(
        0.01 * np.random.default_rng(2).standard_normal(len(rows)).cumsum()
    ),
    "volume so far": lambda rows: rows["volume"].cumsum(),
    "the day's high so far": lambda rows: whole(rows)["high"].cummax(),
    "the day before's close": lambda rows: (
        rows["timestamp"].dt.date.map(whole(rows)["close"].last().shift(1)).bfill()
    ),
    "minutes of the day": lambda rows: rows["timestamp"].dt.hour * 60 + rows["timestamp"].dt.minute,
    "a trend in time": lambda rows: np.arange(len(rows)),
    "a score between 0 and 1": lambda rows: rows["close"].rolling(50, min_periods=1).rank(pct=True).round(1),
    "the sign of the last return": lambda rows: np.sign(rows["close"].diff().fillna(0.0)),
    "a constant": lambda rows: np.full(len(rows), 3.0),
    "a long mean": lambda rows: rows["close"].ewm(span=300).mean(),
    "another asset": lambda rows: np.random.default_rng(1).standard_normal(len(rows)).cumsum(),
}


@pytest.mark.parametrize("name", LEAKY)
def test_columns_of_the_future_are_found(tmp_path, name):
    (found,) = column_of(tmp_path, small_market(seed=8), LEAKY[name])
    assert found.verdict == "leak", found.evidence


@pytest.mark.parametrize("name", HONEST)
def test_columns_of_the_past_are_not(tmp_path, name):
    (found,) = column_of(tmp_path, small_market(seed=8), HONEST[name])
    assert found.verdict in ("pass", "warning"), found.evidence


def test_a_column_made_of_the_past_is_no_leak_however_well_it_fits(tmp_path):
    frame = small_market(seed=6)
    past = frame.groupby("symbol")["close"].transform(
        lambda close: close / close.rolling(10, min_periods=1).mean()
    )
    assert alarms(small_case(tmp_path, frame.assign(signal=past))) == []


def test_fill_lag_0_is_a_leak_and_exits_with_1(hpcrl, tmp_path):
    stage_synthetic(tmp_path / "market.h5", symbols=("AAA",), bars=300)
    options = ("--set", f"market.path={tmp_path / 'market.h5'}", "--json")
    code, out, _ = hpcrl("audit", *options)
    report = json.loads(out)
    assert code == 0 and report["verdict"] == "clean" and report["fill_lag"] == 1
    assert {found["check"] for found in report["findings"]} >= {"scaler_train_only", "splits_purged"}
    assert len({found["check"] for found in report["findings"]}) == len(CHECKS)
    code, out, _ = hpcrl("audit", "--set", "env.fill_lag=0", *options)
    assert code == 1 and json.loads(out)["verdict"] == "leak"
    code, out, _ = hpcrl("audit", *options[:2])
    assert code == 0 and "no leak found" in out and "fills_after_decision" in out


def test_input_that_cannot_be_audited_is_one_line(hpcrl, tmp_path):
    code, _, err = hpcrl("audit", "--set", "market.path=nowhere.h5")
    assert code == 2 and err.count("\n") == 1 and "nowhere.h5: no such file" in err
    (tmp_path / "text.h5").write_text("no bars")
    code, _, err = hpcrl("audit", "--set", "market.path=text.h5")
    assert code == 2 and err.count("\n") == 1 and "not a whole market file" in err
    stage_synthetic(tmp_path / "short.h5", symbols=("AAA",), bars=10)
    code, _, err = hpcrl("audit", "--set", "market.path=short.h5")
    assert code == 2 and err.count("\n") == 1 and "training split holds" in err
    frame = small_market()
    stage_frame(frame.groupby("symbol").head(200), tmp_path / "burn.h5", source="test", features=("signal",))
    code, _, err = hpcrl("audit", "--set", "market.path=burn.h5")
    assert code == 2 and err.count("\n") == 1 and "burn-in" in err
    code, _, err = hpcrl("audit", "--self-test", "--set", "market.path=short.h5")
    assert code == 2 and err.count("\n") == 1 and "--self-test" in err
    code, _, err = hpcrl("audit", "--config", "none.yaml")
    assert code == 2 and "none.yaml" in err


def test_a_symbol_that_comes_late_leaves_the_others_checked(tmp_path):
    frame = small_market(seed=4)
    late = frame["symbol"].eq("AAA") & (frame["timestamp"] < frame["timestamp"].max() - pd.Timedelta(days=2))
    path = tmp_path / "market.h5"
    stage_frame(frame[~late], path, source="test", features=("signal",))
    costs = {"symbols": {"AAA": {"bps": 5.0}}}
    findings = audit_case(case_of(path, costs=costs))
    assert [found.check for found in findings if found.verdict not in ("pass", "warning")] == []


def test_a_long_data_set_is_audited_in_stretches(tmp_path, monkeypatch):
    monkeypatch.setattr(alter, "STRETCH", 380)
    frame = small_market(seed=4)
    late = frame["symbol"].eq("AAA") & (frame["timestamp"] < frame["timestamp"].max() - pd.Timedelta(days=4))
    path = tmp_path / "market.h5"
    stage_frame(frame[~late], path, source="test", features=("signal",))
    case = case_of(path, costs={"symbols": {"AAA": {"bps": 5.0}}})
    parts = alter.stretches(case)
    assert len(parts) == 3 and all(len(one.ts) <= 380 for part in parts for one in part)
    assert len(parts[0]) == 1  # AAA has no bars there, and costs of its own
    assert alarms(case) == []
    leak = next(leak for leak in planted.LEAKS if leak.name == "fill at the next bar's low")
    assert any(line.startswith("fills_after_decision") for line in alarms(leak.case(case)))


def test_daily_bars_and_an_adjusted_price(tmp_path):
    days = pd.bdate_range("2015-01-05", periods=900, tz="UTC")
    days = days[days.isin(session_days("XNYS", days))]
    close = 50 * np.exp(np.cumsum(0.01 * np.random.default_rng(0).standard_normal(len(days))))
    factor = np.where(np.arange(len(days)) < 400, 0.5, 0.97)
    bars = {"open": close, "high": close * 1.01, "low": close * 0.99, "close": close, "volume": 1e6}
    frame = pd.DataFrame({"timestamp": days, "symbol": "AAA", **bars, "adjusted": close * factor})
    path = tmp_path / "daily.h5"
    stage_frame(frame, path, source="test", features=("adjusted",), bar_seconds=86_400)
    findings = audit_case(case_of(path))
    assert [found.evidence for found in findings if found.verdict == "leak"] == []
    (warned,) = [found for found in findings if found.verdict == "warning"]
    assert "adjusted: the close times a factor that steps 1 times" in warned.evidence


def session_days(calendar: str, days: pd.DatetimeIndex) -> pd.DatetimeIndex:
    grid = session_grid(calendar, 86_400, days[0].value, days[-1].value)
    return pd.DatetimeIndex(grid.ts_G, tz="UTC")


def test_a_past_that_was_rewritten_shows_against_an_earlier_file(hpcrl, tmp_path):
    frame = small_market(seed=2)
    last = frame["timestamp"].max()
    options = {"source": "test", "features": ("signal",)}
    older = frame[frame["timestamp"] < last - pd.Timedelta(days=3)]
    stage_frame(older, tmp_path / "older.h5", **options)
    stage_frame(frame, tmp_path / "now.h5", **options)
    row = older.index[50]
    stage_frame(
        frame.assign(signal=frame["signal"].where(frame.index != row, 9.0)), tmp_path / "new.h5", **options
    )
    audit = ("audit", "--earlier", str(tmp_path / "older.h5"), "--json", "--set")
    code, out, _ = hpcrl(*audit, f"market.path={tmp_path / 'now.h5'}")
    (found,) = [found for found in json.loads(out)["findings"] if found["check"] == "not_restated"]
    assert code == 0 and found["verdict"] == "pass" and f"{len(older):,} bars" in found["evidence"]
    code, out, _ = hpcrl(*audit, f"market.path={tmp_path / 'new.h5'}")
    (found,) = [found for found in json.loads(out)["findings"] if found["check"] == "not_restated"]
    assert code == 1 and found["verdict"] == "leak" and found["where"]["feature"] == "signal"
    assert found["where"]["values"][1] == 9.0 and found["where"]["symbol"] == frame.loc[row, "symbol"]
    code, _, err = hpcrl("audit", "--earlier", "gone.h5", "--set", f"market.path={tmp_path / 'now.h5'}")
    assert code == 2 and err.count("\n") == 1 and "gone.h5: no such file" in err
    stage_synthetic(tmp_path / "other.h5", symbols=("ZZZ",), bars=30)
    code, _, err = hpcrl("audit", "--earlier", "other.h5", "--set", f"market.path={tmp_path / 'now.h5'}")
    assert code == 2 and "no bar of AAA, BBB in common" in err


def test_symbols_and_features_of_the_config_are_what_is_audited(tmp_path):
    frame = small_market()
    late = frame["symbol"].eq("BBB").to_numpy()
    spoilt = frame.assign(signal=np.where(late, frame["close"].shift(-1).ffill(), frame["signal"]))
    path = tmp_path / "market.h5"
    stage_frame(pd.DataFrame(spoilt), path, source="test", features=("signal",))
    tree = {"market": {"path": str(path)}}
    assert alarms(load_case(validate(tree, "test")))
    tree["market"] |= {"symbols": ["AAA"]}
    assert alarms(load_case(validate(tree, "test"))) == []
    tree["market"] |= {"symbols": ["BBB"], "features": ["rsi14", "return_1"]}
    case = load_case(validate(tree, "test"))
    assert case.names == ("rsi14", "return_1") and alarms(case) == []


def test_an_unknown_symbol_is_named():
    with pytest.raises(HpcrlError, match="no such file"):
        case_of(Path("nothing.h5"))
