"""The picture of coverage: what it counts, which class a cell gets, and that nothing is smoothed away."""

import io

import numpy as np
import pandas as pd
import pytest
from market_data import SAMPLE, walk
from matplotlib.image import imread

from hpcrl.market.bars import SymbolBars
from hpcrl.market.calendar import session_grid
from hpcrl.market.coverage import MISSING, draw_coverage, picture, plot_coverage, session_coverage
from hpcrl.market.quality import add_symbol, empty_report
from hpcrl.market.stage import stage_files, stage_frame
from hpcrl.market.store import read_store
from hpcrl.types import RunFailed


def ns(stamp):
    return pd.Timestamp(stamp, tz="UTC").value


def made(symbol, first, last, *, calendar="XNYS", bar_seconds=1800, gaps=(), idle=()):
    """Bars from ``first`` to the end of ``last``; those of ``gaps`` missing, of ``idle`` without volume."""
    grid = session_grid(calendar, bar_seconds, ns(first), ns(last))
    inside = (grid.ts_G >= ns(first)) & (grid.ts_G < ns(last) + 86_400 * 10**9)
    ts, session, time = grid.ts_G[inside], grid.session_G[inside], grid.session_time_G[inside]
    present, volume = np.ones(len(ts), dtype=bool), np.full(len(ts), 10.0)
    for start, end in gaps:
        present[(ts >= ns(start)) & (ts < ns(end))] = False
    for start, end in idle:
        volume[(ts >= ns(start)) & (ts < ns(end))] = 0
    one = np.ones(len(ts))
    price = np.where(present, one, np.nan)
    features = np.zeros((len(ts), 0), dtype=np.float32)
    volume = np.where(present, volume, np.nan)
    actions = (one, one * 0, one * np.nan)
    return SymbolBars(symbol, ts, *[price] * 4, volume, present, session, time, *actions, features)


def drawn(*all_bars, source="supabase", calendar="XNYS", bar_seconds=1800):
    """(report, coverage) of these bars."""
    report = empty_report({"source": source, "files": [], "calendar": calendar, "bar_seconds": bar_seconds})
    first, last = min(bars.ts[0] for bars in all_bars), max(bars.ts[-1] for bars in all_bars)
    grid = session_grid(calendar, bar_seconds, int(first), int(last))
    coverage = {}
    for bars in all_bars:
        add_symbol(report, bars, grid, "splits")
        coverage[bars.symbol] = session_coverage(bars, grid)
    return report, coverage


def classes(report, coverage, map_number=0):
    """Class of every cell, and the labels of columns."""
    axes = picture(report, coverage).axes[map_number]
    return axes.images[0].get_array()


def test_counts_of_the_sample_agree_with_the_table(tmp_path):
    result = stage_files(SAMPLE, tmp_path / "m.h5", price_adjustment="splits")
    (bars,) = read_store(result.path)[0].values()
    grid = session_grid("XNYS", 300, int(bars.ts[0]), int(bars.ts[-1]))
    found = session_coverage(bars, grid)
    counts = result.report["symbols"]["MSFT"]
    assert (found["present"] == found["expected"]).sum() == counts["complete_sessions"] == 40
    assert len(found["day"]) == counts["sessions"] == 42 and (found["expected"] == 78).all()
    assert found["present"].sum() == counts["present"] == 3198
    assert found["zero_volume"].sum() == counts["zero_volume"] == 1
    texts = [text.get_text() for text in picture(result.report, {"MSFT": found}).axes[0].texts]
    assert texts[1].split() == ["0", "0.03", "%", "40", "of", "42"]


def test_half_days_are_whole_with_half_the_bars_and_missing_sessions_are_counted():
    bars = made("A", "2024-11-25", "2024-12-06", gaps=[("2024-12-03", "2024-12-04")])
    (found,) = drawn(bars)[1].values()
    day = dict(zip(found["day"].astype("datetime64[D]").astype(str), range(9), strict=True))
    assert "2024-11-28" not in day  # Thanksgiving
    assert found["expected"][day["2024-11-29"]] == found["present"][day["2024-11-29"]] == 7  # closes at 13:00
    assert found["expected"][day["2024-12-03"]] == 13 and found["present"][day["2024-12-03"]] == 0


def test_a_session_is_expected_whole_where_a_symbol_begins_within_it():
    (found,) = drawn(made("A", "2024-03-04 16:00", "2024-03-06"))[1].values()
    assert found["expected"].tolist() == [13, 13, 13] and found["present"].tolist() == [10, 13, 13]


def test_every_cell_has_the_class_of_its_share():
    gaps = [("2024-03-05 14:30", "2024-03-05 15:00"), ("2024-03-06 14:30", "2024-03-06 17:30"),
            ("2024-03-07 14:30", "2024-03-07 20:30"), ("2024-03-08", "2024-03-09")]  # fmt: skip
    late = made("B", "2024-03-07", "2024-03-11")
    report, coverage = drawn(made("A", "2024-03-04", "2024-03-11", gaps=gaps), late)
    cells = classes(report, coverage)
    names = [MISSING[int(cell)][0] if np.isfinite(cell) else None for cell in np.ma.filled(cells[0], np.nan)]
    assert names == ["none", "up to 10 %", "up to 50 %", "over 50 %", "all", "none"]
    assert np.isnan(np.ma.filled(cells[1], np.nan)).tolist() == [True, True, True, False, False, False]


@pytest.mark.parametrize(
    ("years", "unit", "columns"), [(1, "sessions", 252), (9, "weeks", 471), (20, "months", 240)]
)
def test_one_missing_bar_shows_however_long_the_time(years, unit, columns):
    end = f"{2003 + years}-12-31"
    report, coverage = drawn(made("A", "2004-01-01", end, gaps=[("2004-06-15 15:00", "2004-06-15 15:30")]))
    cells = classes(report, coverage)
    assert cells.shape == (1, columns) and (cells > 0).sum() == 1
    title = picture(report, coverage).get_suptitle()
    assert f"{columns} {unit}" in title and f"2004-01-02T14:30:00Z to {end[:8]}" in title
    assert sum(array.nbytes for array in coverage["A"].values()) < years * 5_000


def test_zero_volume_has_a_map_of_its_own_where_there_is_any():
    busy = made("A", "2024-03-04", "2024-03-08")
    quiet = made("B", "2024-03-04", "2024-03-08", idle=[("2024-03-05 15:00", "2024-03-05 15:30")])
    assert len(picture(*drawn(busy)).axes) == 1
    figure = picture(*drawn(busy, quiet))
    assert [label.get_text() for label in figure.axes[1].get_yticklabels()] == ["B"]
    assert figure.axes[1].images[0].get_array().tolist() == [[0, 2, 0, 0, 0]]


def test_of_very_many_symbols_those_that_lack_the_most_are_shown():
    whole = [made(f"W{n}", "2024-03-04", "2024-03-08") for n in range(98)]
    gap = [("2024-03-05 15:00", "2024-03-05 15:30")]
    holed = [made(f"H{n}", "2024-03-04", "2024-03-08", gaps=gap) for n in range(4)]
    report, coverage = drawn(*whole, *holed)
    axes = picture(report, coverage).axes[0]
    names = [label.get_text() for label in axes.get_yticklabels()]
    assert len(names) == 100 and names[-4:] == ["H0", "H1", "H2", "H3"]
    assert "the 100 of 102 symbols that lack the most" in picture(report, coverage).get_suptitle()
    height, width = imread(io.BytesIO(draw_coverage(report, coverage))).shape[:2]
    assert height / 100 > 15 and width < 2000  # a line of text needs 11 pixels


@pytest.mark.parametrize(
    ("source", "made_up"), [("synthetic-fallback", True), ("planted:L2", True), ("supabase", False)]
)
def test_made_up_bars_are_called_so_in_red(source, made_up):
    figure = picture(*drawn(made("A", "2024-03-04", "2024-03-08"), source=source))
    assert ("made-up bars: no performance claim" in figure.get_suptitle()) == made_up
    assert source in figure.get_suptitle()
    assert (figure._suptitle.get_color() != "black") == made_up


@pytest.mark.parametrize("name", ["$SPX$_a^b", "BRK/B {x} \\alpha", "株式", "N" * 300, " "])
def test_no_symbol_breaks_the_picture(name, recwarn):
    report, coverage = drawn(made(name, "2024-03-04", "2024-03-04"))
    report["source"] = "$x_{"
    pixels = imread(io.BytesIO(draw_coverage(report, coverage)))
    assert pixels.shape[1] == 1430 and not [one for one in recwarn if "Glyph" in str(one.message)]


def test_a_day_a_crypto_market_and_daily_bars(tmp_path):
    result = stage_frame(
        walk(500, freq="1min"), tmp_path / "c.h5", source="test", calendar="24/7", bar_seconds=60
    )
    for bars, calendar, seconds in (
        (read_store(result.path)[0]["BTC/USD"], "24/7", 60),
        (made("A", "2024-03-04", "2024-03-04"), "XNYS", 1800),
        (made("D", "2004-01-02", "2023-12-29", bar_seconds=86400), "XNYS", 86400),
    ):
        report, coverage = drawn(bars, calendar=calendar, bar_seconds=seconds)
        path = plot_coverage(report, coverage, tmp_path / "c.png")
        assert path.read_bytes().startswith(b"\x89PNG") and imread(path).shape[1] == 1430


def test_it_is_written_whole_or_not_at_all(tmp_path):
    report, coverage = drawn(made("A", "2024-03-04", "2024-03-08"))
    with pytest.raises(RunFailed, match=r"cannot write .*nowhere/c\.png: No such file"):
        plot_coverage(report, coverage, tmp_path / "nowhere" / "c.png")
    assert list(tmp_path.iterdir()) == []
