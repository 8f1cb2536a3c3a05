"""``hpcrl watch``: a run or a population as it trains, drawn anew every few seconds. Reads files, changes
nothing, asks nobody: neither Slurm nor the processes. 80 columns suffice; on a pipe it is one plain page.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.console import Console, ConsoleOptions, Group, RenderResult
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.segment import Segment
from rich.table import Table
from rich.text import Text

from hpcrl.launch.population_show import page as population_page
from hpcrl.launch.population_status import MemberStatus, PopulationStatus
from hpcrl.launch.status_read import RunFiles, moment, read_run, spell
from hpcrl.launch.status_show import Page, emit
from hpcrl.monitor.advice import split_of
from hpcrl.monitor.alarms import name_of
from hpcrl.monitor.metrics import read_metrics
from hpcrl.pbt.history import Past, read_past
from hpcrl.pbt.population import Population
from hpcrl.pbt.records import Reader
from hpcrl.storage.run_dir import RunDir
from hpcrl.types import STOPPED_EARLY, HpcrlError

STALE_SECONDS = 90.0
"""A heartbeat is written every 15 s: one this old is of a process that is gone, or of storage that hangs."""
CURVE = 40
"""Epochs that a curve shows, one column each."""
BARS = "▁▂▃▄▅▆▇█"
CURVES = (
    ("reward", "reward", "{:.3g}"),
    ("loss", "loss", "{:.4f}"),
    ("entropy", "entropy", "{:.3f}"),
    ("explained variance", "explained_variance", "{:.2f}"),
    ("KL divergence", "approx_kl", "{:.1e}"),
    ("steps/s", "time/steps_per_second", "{:,.0f}"),
)


def watch(path: Path, every: float, once: bool) -> None:
    """Show ``path``, a run folder or a population, until Ctrl-C; ``once``, or on a pipe: one page.

    HpcrlError, one line, where it is neither.
    """
    view = population_view if (path / "population.json").is_file() else run_view
    if once or not sys.stdout.isatty():
        emit(None, lambda: view(path), as_json=False)
        return
    with Live(console=Console(highlight=False), auto_refresh=False, screen=True) as live:
        try:
            while True:
                live.update(_Screen(view(path)), refresh=True)
                time.sleep(every)
        except KeyboardInterrupt:
            return


class _Screen:
    """As much of a page as the terminal is high, and below it what is not shown, and how to leave."""

    def __init__(self, parts: Page) -> None:
        self.parts = [Text(f"  {part}", style="bold") if isinstance(part, str) else part for part in parts]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        page = console.render_lines(Group(*self.parts), options.update(height=None), pad=False)
        room = max(console.height - 1, 1)
        hidden = max(len(page) - room, 0)
        for line in page[:room]:
            yield from line
            yield Segment.line()
        more = f"; {hidden} more lines in a higher window, or by --once" if hidden else ""
        yield Text(f"Ctrl-C leaves{more}", style="dim", end="", no_wrap=True, overflow="ellipsis")


def population_view(path: Path, now: Callable[[], datetime] = lambda: datetime.now(UTC)) -> Page:
    """The members, the best first; running are those with a fresh heartbeat."""
    population = Population.open(path)
    reader = Reader(population)
    members = [_member(past, population.folder(past.member), now()) for past in read_past(population, reader)]
    members.sort(key=lambda member: -member.record.objective if member.record else float("inf"))
    notes = [f"{file}: {why}" for file, why in sorted(reader.skipped.items())]
    return population_page(PopulationStatus(population, tuple(members), tuple(notes)), urgent_first=True)


def _member(past: Past, folder: Path, now: datetime) -> MemberStatus:
    try:
        run = read_run(folder)
    except HpcrlError:
        return MemberStatus(past, "waiting", "", 0, None, pending=True)
    epoch, end = run.progress.epoch, run.newest.end if run.newest is not None else None
    if end is not None:
        code = end.get("code")
        state = {0: "finished", STOPPED_EARLY: "waiting"}.get(code if isinstance(code, int) else 1, "failed")
        why = str(end.get("reason")) if state == "failed" else ""
        return MemberStatus(past, state, why, epoch, None, pending=True)
    written = moment((run.heartbeat or {}).get("time"))
    alive = written is not None and (now - written).total_seconds() <= STALE_SECONDS
    return MemberStatus(past, "running" if alive else "waiting", "", epoch, None, pending=True)


def run_view(path: Path, now: Callable[[], datetime] = lambda: datetime.now(UTC)) -> Page:
    """One page of a run, from its files."""
    run = read_run(path)
    lines = read_metrics(RunDir(run.path).metrics)
    parts: Page = [_head(run, now()), _progress(run)]
    if lines:
        last = lines[-1]
        parts += [Text(alarm, style="bold red") for alarm in _alarms(lines)]
        parts += [_curves(lines), _spent(last), _devices(last)]
    else:
        parts.append(Text("no epoch has ended yet"))
    return parts + [Text(f"note: {note}", style="yellow") for note in run.notes]


def _head(run: RunFiles, now: datetime) -> Text:
    """What it does, and since when."""
    newest, beat = run.newest, run.heartbeat or {}
    if newest is not None and newest.end is not None:
        state, style = _ended(newest.end)
    elif (written := moment(beat.get("time"))) is None:
        state, style = "not begun yet" if newest is None else "starting", "yellow"
    elif (age := (now - written).total_seconds()) > STALE_SECONDS:
        state, style = f"no heartbeat for {spell(age)}: see hpcrl status", "bold red"
    else:
        since = moment(beat.get("since")) or written
        state = f"{beat.get('phase')} of epoch {beat.get('epoch')}, {spell((now - since).total_seconds())}"
        style = "bold green"
    where = f" on {beat['host']}" if beat.get("host") else ""
    return Text.assemble((run.path.name, "bold"), "  ", (state, style), (where, "dim"))


def _ended(end: dict[str, Any]) -> tuple[str, str]:
    """In words, and their style."""
    code, reason = end.get("code"), end.get("reason")
    if code == 0:
        return "finished", "bold green"
    return (f"stopped ({reason})", "yellow") if code == STOPPED_EARLY else (f"failed: {reason}", "bold red")


def _progress(run: RunFiles) -> Table:
    progress = run.progress
    row = Table.grid(padding=(0, 2))
    of = f" of {progress.epochs}" if progress.epochs else ""
    going = run.newest is None or run.newest.end is None
    left = f"{spell(progress.seconds_left)} left" if progress.seconds_left and going else ""
    saved = f"checkpoint {run.checkpoint}" if run.checkpoint is not None else "no checkpoint yet"
    bar = ProgressBar(
        total=progress.epochs or 1, completed=min(progress.epoch, progress.epochs or 1), width=24
    )
    row.add_row(f"epoch {progress.epoch}{of}", bar, left, saved)
    return row


def _curves(lines: list[dict[str, Any]]) -> Table:
    """The last epochs of each figure as a row of bars, with its newest value."""
    shown = Table.grid(padding=(0, 2))
    shown.add_column(style="dim", no_wrap=True)
    shown.add_column(justify="right", no_wrap=True, min_width=9)
    shown.add_column(no_wrap=True, style="cyan")
    for name, key, form in CURVES:
        values = [_number(line.get(key)) for line in lines[-CURVE:]]
        if any(value is not None for value in values):
            newest = "-" if values[-1] is None else form.format(values[-1])
            shown.add_row(name, newest, sparkline(values))
    return shown


def _alarms(lines: list[dict[str, Any]]) -> list[str]:
    """The newest of each name in the epochs that the curves show: some are raised but once."""
    raised = [(line["epoch"], alarm) for line in lines[-CURVE:] for alarm in line.get("alarms") or ()]
    newest = {name_of(alarm): f"ALARM epoch {epoch}: {alarm}" for epoch, alarm in raised}
    return list(newest.values())


def sparkline(values: list[float | None]) -> str:
    """One character each, from the lowest to the highest; a blank where there is none."""
    known = [value for value in values if value is not None]
    low, high = min(known), max(known)
    scale = (len(BARS) - 1) / (high - low) if high > low else 0.0
    return "".join(" " if value is None else BARS[round((value - low) * scale)] for value in values)


def _number(value: Any) -> float | None:
    """None for what is no finite number."""
    good = isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < float("inf")
    return float(value) if good else None


def _spent(last: dict[str, Any]) -> Text:
    if not last.get("time/epoch"):
        return Text("")
    shares = sorted(split_of(last).items(), key=lambda item: -item[1])
    return Text(
        "an epoch's time: " + ", ".join(f"{name} {share:.0%}" for name, share in shares if share >= 0.005)
    )


def _devices(last: dict[str, Any]) -> Text:
    """Of rank 0, whose figures metrics.jsonl has."""
    host = f"CPU {last['host/cpu']:.0%}, {last['host/memory_gib']:.1f} GiB" if "host/cpu" in last else ""
    if "gpu/utilisation" not in last:
        return Text(f"no GPU; {host}" if host else "")
    throttled = f", throttled by {', '.join(last['gpu/throttles'])}" if last.get("gpu/throttles") else ""
    total = f" of {last['gpu/memory_total_gib']:.1f}" if "gpu/memory_total_gib" in last else ""  # older runs
    return Text(
        f"GPU of rank 0: {last['gpu/utilisation']:.0%} busy, {last['gpu/memory_gib']:.1f}{total} GiB, "
        f"{last['gpu/temperature_c']:.0f} C, {last['gpu/power_w']:.0f} W{throttled}; {host}"
    )
