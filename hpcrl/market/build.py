"""One data set in the making: symbols go in one by one, at the end file and report come into being together.

Every source ends here: rows are laid on the exchange's calendar, features computed column by column, and all
is written under temporary names. A data set that fails any check leaves nothing behind. Memory holds one
symbol's bars and one of its features.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any

from hpcrl.market.align import check_coverage, feature_columns, lay
from hpcrl.market.bars import RawBars, SymbolBars
from hpcrl.market.calendar import Grid, find_sessions
from hpcrl.market.clean import Verdicts, place_rows
from hpcrl.market.coverage import Sessions, draw_coverage, session_coverage
from hpcrl.market.features import BURN_IN, FEATURES, definitions
from hpcrl.market.options import StageOptions
from hpcrl.market.quality import add_symbol, empty_report
from hpcrl.market.store import StoreWriter, is_store
from hpcrl.storage.atomic import Staged, check_output, fsync_folder, remove_dead_temporaries, stage, to_json
from hpcrl.storage.revision import git_commit
from hpcrl.types import HpcrlError


@dataclass(frozen=True)
class StageResult:
    path: Path
    report: dict[str, Any]
    report_path: Path
    sha256: str  # of the contents
    rows: dict[str, int]  # present bars per symbol


def report_path(out: Path) -> Path:
    return out.with_suffix(".report.json")


def coverage_path(out: Path) -> Path:
    return out.with_suffix(".coverage.png")


def prepare_output(out: str | Path, inputs: list[Path]) -> Path:
    """HpcrlError, before any work, unless ``out`` is a new file or an older data set, and none of ``inputs``.

    Also clears away what a staging of the same file left behind when it was killed.
    """
    out = Path(out)
    check_output(out, inputs)
    if out.exists() and not is_store(out):
        raise HpcrlError(
            f"{out}: exists and is no market file of `hpcrl stage`, so it is not written over; "
            "remove it or name another file"
        )
    beside = (report_path(out), coverage_path(out))
    for each in beside:
        check_output(each, inputs)
    if out.parent.is_dir():
        remove_dead_temporaries(out.parent, {out.name, *(each.name for each in beside)})
    return out


def stage_output(path: Path, content: bytes) -> Staged:
    """``content`` under a temporary name beside ``path``."""
    return stage(path, lambda file: file.write(content))


class Build:
    """``with Build(...) as build: build.add(...); build.finish()``; without ``finish`` all is discarded."""

    def __init__(
        self, out: Path, options: StageOptions, source: str, files: list[str], query: dict[str, Any]
    ) -> None:
        self.out, self.options, self.files, self.source = out, options, files, source
        self.dropped = Verdicts()
        self.query = query
        """For the header; may be added to until ``finish``."""
        self.report = empty_report(
            {
                "source": source,
                "files": files,
                "calendar": options.calendar,
                "bar_seconds": options.bar_seconds,
                "price_adjustment": options.price_adjustment,
            }
        )
        self.writer = StoreWriter(out, self._attributes())
        self._span: tuple[int, int] | None = None
        self._grid: Grid | None = None
        self._coverage: dict[str, Sessions] = {}
        self._whole = contextlib.ExitStack()

    def __enter__(self) -> Build:
        self._whole.enter_context(self.writer)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._whole.__exit__(kind, error, trace)

    def expect(self, first_ns: int, last_ns: int) -> None:
        """Tell the span of rows to come: the calendar is cut once for all symbols."""
        sessions = find_sessions(self.options.calendar, self.options.bar_seconds, first_ns, last_ns)
        self._span, self._sessions, self._grid = (first_ns, last_ns), sessions, None

    def add(self, raw: RawBars) -> SymbolBars:
        """Lay one symbol on the calendar and write it; uses ``raw`` up. HpcrlError: its bars are not the
        calendar's."""
        first, last = int(raw.ts[0]), int(raw.ts[-1])
        if self._span is None or not (self._span[0] <= first and last <= self._span[1]):
            known = self._span or (first, last)
            self.expect(min(first, known[0]), max(last, known[1]))
        check_coverage(raw.symbol, raw.ts, self._sessions)
        self._grid = self._grid or self._sessions.grid()  # may be large: only after the check
        bars, own, aside = lay(raw, self._grid, self.options.bar_seconds, self.options.features)
        del raw
        calendar = self.options.calendar
        why = {
            "off_grid": f"not on the {calendar} {self.options.bar_seconds} s grid",
            "outside_session": f"in no session of {calendar}",
        }
        for kind, rows in aside.items():
            self.dropped.add(kind, place_rows(rows), self.files, why[kind])
        self.writer.add(bars, feature_columns(bars, own, self.options.computed))
        add_symbol(self.report, bars, self._grid, self.options.price_adjustment)
        if self.options.coverage:
            self._coverage[bars.symbol] = session_coverage(bars, self._grid)
        return bars

    def finish(self, rows_read: int) -> StageResult:
        """Publish the file and its report. HpcrlError, and neither, if strict and there is any finding."""
        report, options = self.report, self.options
        report["rows_read"], report["dropped"] = rows_read, self.dropped.summary()
        name = ", ".join(self.files)
        if options.strict:
            self.dropped.refuse(name, rows_read, "refused (--strict); nothing was written")
            if report["flagged"]:
                kind, entry = next(iter(report["flagged"].items()))
                row = entry["rows"][0]
                what = f"{row['symbol']} at {row['timestamp']}: {kind}: {row['what']}"
                raise HpcrlError(f"{name}: {what}; refused (--strict), nothing was written")
        self.writer.attributes["query"] = self.query
        report["sha256"] = self.writer.finish()
        # Written whole before the data file is renamed, and renamed after it: neither without the other.
        beside = {report_path(self.out): to_json(report).encode()}
        if options.coverage:
            beside[coverage_path(self.out)] = draw_coverage(report, self._coverage)
        with contextlib.ExitStack() as discard:
            staged = []
            for path, content in beside.items():
                staged.append(stage_output(path, content))
                discard.callback(staged[-1].discard)
            self._whole.close()
            for each in staged:
                each.commit()
            if not options.coverage:  # an older file's picture would belong to another data set
                coverage_path(self.out).unlink(missing_ok=True)
        fsync_folder(self.out.parent)
        rows = {symbol: counts["present"] for symbol, counts in report["symbols"].items()}
        return StageResult(self.out, report, report_path(self.out), self.writer.sha256, rows)

    def _attributes(self) -> dict[str, Any]:
        options = self.options
        return {
            "source": self.source,
            "query": self.query,
            "created": datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z"),
            "timezone": "UTC",
            "bar_seconds": options.bar_seconds,
            "price_adjustment": options.price_adjustment,
            "calendar": options.calendar,
            "feature_names": list(options.feature_names),
            "feature_definitions": definitions(tuple(FEATURES) if options.computed else (), options.features),
            "burn_in": BURN_IN,
            "git_commit": git_commit(),
        }
