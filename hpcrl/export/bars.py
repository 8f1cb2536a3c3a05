"""Closed bars as a trading system hands them in, one by one: judged, put on the exchange's grid, and kept.

Stamps are unix seconds UTC and label a bar's START. Refuses, and then changes nothing: stamps off the grid,
out of order, behind a gap or beyond the sessions that the file knows; prices that are none. numpy only.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime

import numpy as np

from hpcrl import __version__
from hpcrl.export.metadata import Metadata
from hpcrl.market.features import BURN_IN, FEATURES, OF_THE_SOURCE, exact_columns
from hpcrl.market.grid import SECOND_NS, Sessions
from hpcrl.market.indicators import Columns
from hpcrl.market.sigma import SIGMA_BARS, known_sigma
from hpcrl.types import HpcrlError

WINDOW = 2048
"""Present bars behind a feature. EMA78 forgets slowest: what lies before weighs 1e-22 (of 1,024 bars 5e-12,
which a difference of prices would show), in Wilder's smoothing 1e-66."""
DAY = 86_400
LAST_TS = 10**11
"""Unix seconds of the year 5138: what lies beyond is no stamp in seconds."""
NAMED = 5
"""Missing stamps that an error names; it counts them all."""
PRICES = ("open", "high", "low", "close")


@dataclass(frozen=True)
class Bar:
    """One closed bar of one symbol."""

    ts: int
    """Unix seconds UTC of its START."""
    open: float
    high: float
    low: float
    close: float
    volume: float
    split: float = 1.0
    """Shares after / before at the bar's open (2.0: two for one); from this bar on all is in new shares."""
    features: Mapping[str, float] = field(default_factory=dict)
    """Values of the policy's features that are columns of its data source, and not computed."""


def check_ts(ts: int) -> None:
    """HpcrlError: so far away that it cannot be seconds."""
    if abs(ts) > LAST_TS:
        raise HpcrlError(
            f"ts = {ts} lies thousands of years away; stamps are unix seconds UTC, not milliseconds"
        )


def iso(ts: int) -> str:
    """HpcrlError: as ``check_ts``."""
    check_ts(ts)
    return datetime.fromtimestamp(int(ts), UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


class Clock:
    """The grid of bars that a policy knows: places are numbers of bars, in order of time."""

    def __init__(self, metadata: Metadata) -> None:
        self.name, self.step = metadata.calendar, metadata.bar_seconds
        self._grid = None
        self._in_day = -(-DAY // self.step)  # of a market that never closes
        if metadata.sessions:
            part_P2 = np.array(metadata.sessions, dtype=np.int64) * SECOND_NS
            days_P = np.array(metadata.session_days, dtype=np.int64)
            self._grid = Sessions(part_P2[:, 0], part_P2[:, 1], days_P, self.step * SECOND_NS).grid()
            self._ts_G = self._grid.ts_G // SECOND_NS

    def place(self, ts: int) -> int:
        """HpcrlError: no bar begins there, no session of that time is known, as ``check_ts``."""
        check_ts(ts)
        if self._grid is None:
            day, second = divmod(ts, DAY)
            if second % self.step:
                near = ts - second % self.step
                raise self._off_grid(ts, near, min(near + self.step, (day + 1) * DAY))
            return day * self._in_day + second // self.step
        place = int(np.searchsorted(self._ts_G, ts))
        if place < len(self._ts_G) and self._ts_G[place] == ts:
            return place
        if not 0 < place < len(self._ts_G):
            raise HpcrlError(
                f"the bar at {iso(ts)} lies outside of the sessions that the ONNX file knows, "
                f"{iso(self._ts_G[0])} to {iso(self._ts_G[-1])}; export the checkpoint again for later ones"
            )
        raise self._off_grid(ts, int(self._ts_G[place - 1]), int(self._ts_G[place]))

    def _off_grid(self, ts: int, before: int, after: int) -> HpcrlError:
        return HpcrlError(
            f"{iso(ts)} is no bar's start on the {self.name} {self.step} s grid (before it {iso(before)}, "
            f"after it {iso(after)}); stamps are unix seconds UTC of a bar's START"
        )

    def ts(self, place: int) -> int:
        """The place's stamp; HpcrlError beyond the known sessions."""
        if self._grid is None:
            day, bar = divmod(place, self._in_day)
            return day * DAY + bar * self.step
        if place >= len(self._ts_G):
            raise HpcrlError(
                f"the ONNX file knows no session after the bar at {iso(self._ts_G[-1])}; export again"
            )
        return int(self._ts_G[place])

    def session(self, place: int) -> tuple[int, float]:
        """The date (days since 1970-01-01), and 0 at the session's first bar to 1 at its last (float32)."""
        if self._grid is None:
            day, bar = divmod(place, self._in_day)
            return day, float(np.float32(bar / max(self._in_day - 1, 1)))
        return int(self._grid.session_G[place]), float(self._grid.session_time_G[place])

    def check_next(self, last: int | None, place: int) -> None:
        """HpcrlError unless ``place`` follows ``last`` (None: nothing was fed yet)."""
        if last is None or place == last + 1:
            return
        if place <= last:
            raise HpcrlError(
                f"bars out of order: {iso(self.ts(place))} after {iso(self.ts(last))}, which was fed already"
            )
        missing = range(last + 1, place)
        named = ", ".join(iso(self.ts(each)) for each in missing[:NAMED])
        more = f" and {len(missing) - NAMED:,} more" if len(missing) > NAMED else ""
        bars = "1 bar is" if len(missing) == 1 else f"{len(missing):,} bars are"
        raise HpcrlError(
            f"a gap before {iso(self.ts(place))}: {bars} missing, {named}{more}; feed them, with None for a "
            "symbol that did not trade"
        )


def is_finite(value: object) -> bool:
    return isinstance(value, (float, int, np.floating, np.integer)) and math.isfinite(value)


def own_features(metadata: Metadata) -> tuple[str, ...]:
    """The policy's features that are columns of its data source. HpcrlError: one that this version computes
    otherwise, or not at all."""
    for note in metadata.features:
        mine = FEATURES[note.name].definition if note.name in FEATURES else "no such feature"
        if note.definition not in (mine, OF_THE_SOURCE):
            raise HpcrlError(
                f"feature {note.name} was made as {note.definition!r}, hpcrl {__version__} has {mine!r}: run "
                f"the policy with hpcrl {metadata.version}, or stage, train and export again"
            )
    return tuple(note.name for note in metadata.features if note.definition == OF_THE_SOURCE)


def check_bar(symbol: str, bar: Bar, own: tuple[str, ...]) -> None:
    """HpcrlError: not a closed bar. ``own``: features that must come with it."""
    where = f"{symbol}, bar at {iso(bar.ts)}"
    for name in (*PRICES, "volume", "split"):
        value = getattr(bar, name)
        least = "not below 0" if name == "volume" else "above 0"
        if not is_finite(value) or value < 0 or (value == 0 and name != "volume"):
            raise HpcrlError(f"{where}: {name} is {value!r}; a finite number {least} is needed")
    if bar.high < max(bar.open, bar.close, bar.low) or bar.low > min(bar.open, bar.close):
        raise HpcrlError(
            f"{where}: open {bar.open:.12g}, high {bar.high:.12g}, low {bar.low:.12g}, "
            f"close {bar.close:.12g} are no bar; open and close must lie between low and high"
        )
    for name in own:
        if not is_finite(bar.features.get(name)):
            given = bar.features.get(name, "missing")
            raise HpcrlError(f"{where}: feature {name} is {given}; the policy reads it, a number is needed")


class BarWindow:
    """The last present bars of one symbol, and the features that they give.

    Keeps whole sessions: a session's VWAP and gap begin with its first bar, however long it is.
    """

    COLUMNS = (*PRICES, "volume", "split")

    def __init__(self, symbol: str, feature_names: tuple[str, ...], own: tuple[str, ...] = ()) -> None:
        """``own``: those of the features that come with the bars."""
        self.symbol, self.names, self.own = symbol, feature_names, own
        self.computed = tuple(name for name in feature_names if name not in own)
        self.count = 0
        """Present bars so far, those forgotten by now included."""
        self._rows = 0
        self._columns = self._room(WINDOW)

    def _room(self, rows: int) -> Columns:
        columns = {name: np.empty(rows) for name in (*self.COLUMNS, *self.own)}
        return columns | {"session": np.empty(rows, dtype=np.int32)}

    def add(self, bar: Bar, session: int, keep: int) -> None:
        """``keep``: rows that must stay beside the window's own, for a history of that many bars."""
        if self._rows == len(self._columns["close"]):
            self._make_room(keep)
        for name in self.COLUMNS:
            self._columns[name][self._rows] = getattr(bar, name)
        for name in self.own:
            self._columns[name][self._rows] = bar.features[name]
        self._columns["session"][self._rows] = session
        self._rows += 1
        self.count += 1

    def drop_last(self) -> None:
        """Take the last bar back."""
        self._rows -= 1
        self.count -= 1

    def _make_room(self, keep: int) -> None:
        first = self._first(self._rows - 1, WINDOW + keep)
        kept = {name: value[first : self._rows] for name, value in self._columns.items()}
        self._rows -= first
        self._columns = self._room(self._rows + WINDOW)
        for name, value in kept.items():
            self._columns[name][: self._rows] = value

    def _first(self, row: int, rows: int) -> int:
        """The first of the ``rows`` rows before ``row``, moved back to the last bar of a session."""
        first = max(row + 1 - rows, 0)
        session_R = self._columns["session"]
        before_R = np.flatnonzero(session_R[:first] != session_R[first])
        return int(before_R[-1]) if len(before_R) else 0

    @property
    def close(self) -> float:
        return float(self._columns["close"][self._rows - 1]) if self._rows else math.nan

    def exact(self, rows: int = 1) -> np.ndarray:
        """The features of the last ``rows`` bars, float64 [rows, F], NaN or inf where not known."""
        first = self._first(self._rows - rows, WINDOW)
        bars = {name: value[first : self._rows] for name, value in self._columns.items()}
        found = dict(exact_columns(bars, bars["split"], self.computed))
        return np.stack([(found if name in found else bars)[name][-rows:] for name in self.names], axis=1)

    def features(self, rows: int = 1) -> np.ndarray:
        """As the policy reads them: float32 [rows, F], 0 in warm-ups. HpcrlError: not finite after them."""
        with np.errstate(over="ignore"):
            value_RF = self.exact(rows).astype(np.float32)
        bad_RF = ~np.isfinite(value_RF)
        late_RF = bad_RF & (np.arange(self.count - rows, self.count) >= BURN_IN)[:, None]
        if late_RF.any():
            row, column = np.argwhere(late_RF)[0]
            raise HpcrlError(
                f"{self.symbol}: feature {self.names[column]} is {value_RF[row, column]}; check its bars"
            )
        value_RF[bad_RF] = 0.0
        return value_RF

    def sigma(self) -> float:
        """As the market's ``sigma_BS`` at the last bar; 0 where not known."""
        last = slice(max(self._rows - SIGMA_BARS - 1, 0), self._rows)
        close_R, split_R = self._columns["close"][last].copy(), self._columns["split"][last].copy()
        split_R[:1] = 1.0
        return float(np.nan_to_num(known_sigma(close_R, split_R)[-1])) if self._rows else 0.0

    def state(self) -> dict[str, np.ndarray]:
        named = {name: value[: self._rows].copy() for name, value in self._columns.items()}
        return named | {"count": np.array(self.count)}

    def load_state(self, saved: Mapping[str, np.ndarray]) -> None:
        self.count, self._rows = int(saved["count"]), len(saved["close"])
        self._columns = self._room(self._rows + WINDOW)
        for name, value in self._columns.items():
            value[: self._rows] = saved[name]
