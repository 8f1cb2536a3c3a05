from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from hpcrl.export.bars import WINDOW, Bar, BarWindow, Clock, check_bar, iso
from hpcrl.export.export import session_list
from hpcrl.market.calendar import session_grid
from hpcrl.market.features import FEATURES, compute_features, exact_columns
from hpcrl.market.grid import SECOND_NS
from hpcrl.market.sigma import known_sigma
from hpcrl.types import HpcrlError

NAMES = tuple(FEATURES)
SAMPLE = Path(__file__).parents[2] / "data" / "sample" / "MSFT_5min.csv"
GOOD = Bar(0, 10.0, 11.0, 9.0, 10.5, 100.0)


def unix(text: str) -> int:
    return int(datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp())


def msft():
    table = pd.read_csv(SAMPLE)
    stamp = pd.to_datetime(table["timestamp"], utc=True)
    table, stamp = table[stamp.dt.minute % 5 == 0], stamp[stamp.dt.minute % 5 == 0]
    bars = {name: table[name].to_numpy(dtype=float) for name in ("open", "high", "low", "close", "volume")}
    return bars | {"session": (stamp.astype("int64") // (86_400 * 10**9)).to_numpy().astype(np.int32)}


def walk(rows, seed=0, per_session=78):
    rng = np.random.default_rng(seed)
    close = 50 * np.exp(np.cumsum(0.001 * rng.standard_normal(rows))).round(4)
    opens = np.r_[50.0, close[:-1]]
    bars = {"open": opens, "high": np.maximum(opens, close) * 1.001, "low": np.minimum(opens, close) * 0.999}
    bars |= {"close": close, "volume": rng.integers(0, 5000, rows).astype(float)}
    return bars | {"session": (np.arange(rows) // per_session).astype(np.int32)}


def fed(bars, splits=None, keep=0):
    """A window after each bar: (row, window)."""
    window = BarWindow("X", NAMES)
    for row in range(len(bars["close"])):
        prices = (float(bars[name][row]) for name in ("open", "high", "low", "close", "volume"))
        split = 1.0 if splits is None else float(splits[row])
        window.add(Bar(row, *prices, split=split), int(bars["session"][row]), keep)
        yield row, window


def worst(bars, rows, splits=None):
    """Greatest relative difference to the whole series in float64 by feature, and float32 differences."""
    splits = np.ones(len(bars["close"])) if splits is None else splits
    whole = np.stack([value for _, value in exact_columns(bars, splits, NAMES)], axis=1)
    staged = compute_features(bars, splits, "X")
    relative, differ, seen = np.zeros(len(NAMES)), 0, 0
    for row, window in fed(bars, splits):
        if row in rows:
            got, want = window.exact()[0], whole[row]
            apart = np.abs(got - want)
            relative = np.maximum(relative, apart / np.maximum(np.abs(want), 1e-300) * (apart > 1e-12))
            differ += int((window.features()[0] != staged[row]).sum())
            seen += len(NAMES)
    return dict(zip(NAMES, relative, strict=True)), differ, seen


def test_features_of_the_real_sample_bar_by_bar_are_the_staged_ones():
    bars = msft()
    relative, differ, seen = worst(bars, {*range(250, 3198, 31), *range(3000, 3198, 7)})
    assert max(relative.values()) < 1e-9, relative
    assert differ <= 1e-4 * seen


def test_features_after_two_years_are_the_staged_ones():
    """Running sums of the whole series have drifted by then, and the window was cut many times."""
    bars = walk(40_000)
    relative, differ, seen = worst(bars, set(range(39_000, 40_000, 17)))
    assert max(relative.values()) < 1e-9, relative
    assert differ <= 1e-3 * seen


def test_a_session_longer_than_the_window_is_kept_whole():
    """One-minute bars of a market that never closes: VWAP and gap begin at midnight."""
    bars = walk(4 * 3000 + 2900, per_session=3000)
    relative, _, _ = worst(bars, {5999, 6001, 8999, 9500, 11_999, 14_899})
    assert relative["vwap"] < 1e-9 and relative["overnight_gap"] < 1e-9
    assert max(relative.values()) < 1e-9, relative


def test_a_split_is_no_return_and_stays_with_the_window():
    bars, splits = walk(2600), np.ones(2600)
    splits[[300, 2500]] = 2.0
    factor = np.cumprod(splits)
    bars |= {name: bars[name] / factor for name in ("open", "high", "low", "close")}
    bars["volume"] = bars["volume"] * factor
    relative, _, _ = worst(bars, {2499, 2500, 2501, 2599}, splits)
    assert max(relative.values()) < 1e-9, relative


def test_sigma_is_the_markets():
    bars, splits = walk(300), np.ones(300)
    splits[150] = 2.0
    close = bars["close"] / np.cumprod(splits)
    bars = bars | {name: bars[name] / np.cumprod(splits) for name in ("open", "high", "low", "close")}
    whole = np.nan_to_num(known_sigma(close, splits))
    for row, window in fed(bars, splits):
        assert window.sigma() == pytest.approx(whole[row], rel=1e-12)


def test_several_rows_at_once_are_those_of_one_by_one():
    bars = walk(2500)
    single = {row: window.features()[0] for row, window in fed(bars, keep=64) if row >= 2440}
    *_, (_, window) = fed(bars, keep=64)
    assert window.features(60).tobytes() == np.stack([single[row] for row in range(2440, 2500)]).tobytes()


def test_a_window_does_not_grow():
    sizes = {len(window.state()["close"]) for row, window in fed(walk(12_000)) if row > WINDOW}
    assert max(sizes) <= 2 * WINDOW + 2 * 78


def test_a_saved_window_gives_the_same_bits():
    bars = walk(2700)
    *_, (_, window) = fed(bars)
    other = BarWindow("X", NAMES)
    other.load_state(window.state())
    assert other.features().tobytes() == window.features().tobytes() and other.count == window.count


def clock(calendar="XNYS", seconds=300, first="2024-07-01T13:30"):
    sessions, days, _ = session_list(calendar, seconds, unix(first))
    return Clock(
        SimpleNamespace(calendar=calendar, bar_seconds=seconds, sessions=sessions, session_days=days)
    )


@pytest.mark.parametrize(
    ("calendar", "seconds"),
    [("XNYS", 300), ("XNYS", 3600), ("XTKS", 300), ("XNYS", 86_400), ("24/7", 300), ("24/7", 7000)],
)
def test_the_clock_has_the_bars_of_the_calendar(calendar, seconds):
    """Half days, lunch breaks, cut last bars and days: as staging has them."""
    first = unix("2024-07-01T00:00")
    grid = session_grid(calendar, seconds, first * SECOND_NS, unix("2024-12-31T23:00") * SECOND_NS)
    mine = clock(calendar, seconds, "2024-07-01T00:00")
    places = [mine.place(int(ts)) for ts in grid.ts_G // SECOND_NS]
    assert np.diff(places).tolist() == [1] * (len(places) - 1)
    assert [mine.ts(place) for place in places] == (grid.ts_G // SECOND_NS).tolist()
    sessions = [mine.session(place) for place in places]
    assert [day for day, _ in sessions] == grid.session_G.tolist()
    assert [time for _, time in sessions] == grid.session_time_G.astype(float).tolist()


def test_a_stamp_off_the_grid_is_named_with_its_neighbours():
    with pytest.raises(HpcrlError, match=r"2024-07-05T13:32:00Z is no bar's start on the XNYS 300 s grid"):
        clock().place(unix("2024-07-05T13:32"))
    with pytest.raises(HpcrlError, match=r"before it 2024-07-03T16:55:00Z, after it 2024-07-05T13:30:00Z"):
        clock().place(unix("2024-07-04T15:00"))  # a holiday after a half day
    with pytest.raises(HpcrlError, match=r"no bar's start on the 24/7 300 s grid"):
        clock("24/7").place(unix("2024-07-04T15:01"))


@pytest.mark.parametrize("stamp", ["1999-07-05T13:30", "2199-07-05T13:30"])
def test_a_stamp_beyond_the_known_sessions_asks_for_a_new_export(stamp):
    with pytest.raises(HpcrlError, match=r"outside of the sessions that the ONNX file knows.*export"):
        clock().place(unix(stamp))


@pytest.mark.parametrize("ts", [1_700_000_000_000, -1_700_000_000_000, 1_700_000_000_000_000_000])
@pytest.mark.parametrize("calendar", ["XNYS", "24/7"])
def test_milliseconds_are_one_error_that_says_seconds(ts, calendar):
    for place in (clock(calendar).place, iso, lambda ts: check_bar("X", replace(GOOD, ts=ts), ())):
        with pytest.raises(HpcrlError, match=f"ts = {ts} .*unix seconds UTC, not milliseconds"):
            place(ts)


def test_a_gap_names_the_missing_stamps():
    mine = clock()
    before, after = mine.place(unix("2024-07-03T16:50")), mine.place(unix("2024-07-05T13:35"))
    with pytest.raises(HpcrlError, match="2 bars are missing, 2024-07-03T16:55:00Z, 2024-07-05T13:30:00Z;"):
        mine.check_next(before, after)
    with pytest.raises(HpcrlError, match=r"1 bar is missing, 2024-07-03T16:55:00Z;"):
        mine.check_next(before, after - 1)
    with pytest.raises(HpcrlError, match=r"80 bars are missing, .*14:15:00Z and 75 more"):
        mine.check_next(after + 3, after + 84)
    mine.check_next(before, before + 1)
    mine.check_next(None, after)


@pytest.mark.parametrize("back", [0, 1, 50])
def test_a_bar_twice_or_before_the_last_is_out_of_order(back):
    mine = clock()
    last = mine.place(unix("2024-07-05T15:00"))
    with pytest.raises(HpcrlError, match=r"out of order: 2024-07-0.* after 2024-07-05T15:00:00Z"):
        mine.check_next(last, last - back)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"close": float("nan")}, "close is nan"),
        ({"open": -1.0}, "open is -1.0; a finite number above 0"),
        ({"low": 0.0}, "low is 0.0; a finite number above 0"),
        ({"high": float("inf")}, "high is inf"),
        ({"volume": -5.0}, "volume is -5.0; a finite number not below 0"),
        ({"volume": float("nan")}, "volume is nan"),
        ({"split": 0.0}, "split is 0.0"),
        ({"high": 10.2}, "high 10.2, low 9, close 10.5 are no bar"),
        ({"low": 10.2}, "are no bar; open and close must lie between low and high"),
    ],
)
def test_what_is_no_bar_is_refused_by_name_and_value(change, said):
    with pytest.raises(HpcrlError, match=said):
        check_bar("MSFT", replace(GOOD, **change), ())
    check_bar("MSFT", GOOD, ())
    check_bar("MSFT", replace(GOOD, volume=0.0), ())


def test_a_feature_of_the_source_must_come_with_the_bar():
    with pytest.raises(HpcrlError, match="feature mood is missing"):
        check_bar("MSFT", GOOD, ("mood",))
    with pytest.raises(HpcrlError, match="feature mood is nan"):
        check_bar("MSFT", replace(GOOD, features={"mood": float("nan")}), ("mood",))
    check_bar("MSFT", replace(GOOD, features={"mood": 0.5}), ("mood",))
