"""``hpcrl status`` on a terminal of 80 columns: one page of a run, a table of several. Plain when piped."""

from __future__ import annotations

import json
import re
import shutil
import sys
from collections.abc import Callable
from typing import Any

from rich.console import Console, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from hpcrl.launch.accounting import JobState
from hpcrl.launch.logs import named_log
from hpcrl.launch.status import JobReport, Report, local_time
from hpcrl.launch.status_read import spell

Page = list[RenderableType]

_COLOURS = {
    "finished": "green",
    "running": "green",
    "starting": "green",
    "pending": "yellow",
    "stopped": "yellow",
    "dead": "red",
    "unknown": "yellow",
}


def emit(value: Any, page: Callable[[], Page], as_json: bool) -> None:
    """JSON for programs, else the page; on a pipe no line ends in blanks."""
    if as_json:
        print(json.dumps(value, indent=2))
        return
    if sys.stdout.isatty():
        console = Console(width=min(shutil.get_terminal_size((80, 24)).columns, 120), highlight=False)
        _print(console, page())
        return
    console = Console(width=100, highlight=False, color_system=None, force_terminal=False)
    with console.capture() as capture:
        _print(console, page())
    print("\n".join(line.rstrip() for line in capture.get().splitlines()))


def _print(console: Console, parts: Page) -> None:
    for part in parts:
        if isinstance(part, str):  # a command, to be copied: broken by the terminal alone
            console.print(Text(f"  {part}", style="bold"), soft_wrap=True)
        else:
            console.print(part)


def page(report: Report) -> Page:
    run, verdict = report.run, report.verdict
    facts = _facts()
    if verdict.why:
        facts.add_row("why", verdict.why)
    facts.add_row("progress", _progress(report))
    if (last := _last(report)) is not None:
        facts.add_row("last epoch", last)
    facts.add_row("folder", str(run.path))
    head = Text.assemble((verdict.state, f"bold {_COLOURS[verdict.state]}"), f"  {run.name}")
    parts: Page = [head, facts]
    if run.attempts:
        parts.append(_attempts(report))
    if run.jobs:
        parts.append(_jobs(report))
    parts += [Text(f"note: {note}", style="yellow") for note in (*run.notes, *report.books.notes)]
    if verdict.advice or verdict.command:
        parts.append(Text(""))
    return parts + _to_do(verdict.advice, verdict.command, _intention(verdict.state))


def jobs_page(reports: list[JobReport]) -> Page:
    """One job, or a line for each task of an array and below it why it is as it is."""
    if len(reports) == 1:
        return _job_page(reports[0])
    width = max(len(report.id) for report in reports)
    parts: Page = []
    for report in reports:
        parts.append(Text(f"{report.id.ljust(width)}  {_state(report.job)}" if report.job else report.id))
        if report.why:
            parts.append(Padding(Text(report.why, style="dim"), (0, 0, 0, 2)))
    return parts + [Text(f"note: {note}", style="yellow") for note in reports[0].notes]


def _job_page(report: JobReport) -> Page:
    job = report.job
    assert job is not None
    facts = _facts()
    facts.add_row("state", _state(job))
    if report.why:
        facts.add_row("why", report.why)
    if job.nodes:
        facts.add_row("nodes", job.nodes)
    if job.output:
        facts.add_row("log", str(named_log(job.output, job.id, job.name) or job.output))
    head = Text.assemble(("job ", ""), (job.id, "bold"), f"  {job.name}")
    notes = [Text(f"note: {note}", style="yellow") for note in report.notes]
    return [head, facts, *notes, *_to_do(report.advice, "", "")]


def table(reports: list[Report]) -> Page:
    """A line per run, and below it why it is as it is."""
    rows = [
        (each.run.name, each.verdict.state, _epochs(each), _short(each.run.progress.reward))
        for each in reports
    ]
    titles = ("run", "state", "epochs", "reward")
    widths = [max(map(len, column)) for column in zip(titles, *rows, strict=True)]
    parts: Page = [Text(_columns(titles, widths), style="bold")]
    for report, row in zip(reports, rows, strict=True):
        line = Text(_columns(row, widths))
        line.stylize(_COLOURS[row[1]], widths[0] + 2, widths[0] + 2 + len(row[1]))
        parts.append(line)
        if report.verdict.state != "finished":
            parts.append(Padding(Text(_named(report), style="dim"), (0, 0, 0, 2)))
    notes = dict.fromkeys(note for report in reports for note in report.books.notes)
    return parts + [Text(f"note: {note}", style="yellow") for note in notes]


def _named(report: Report) -> str:
    """Why, the run's folder by its name alone, which stands above."""
    path = report.run.path
    return re.sub(
        rf"[^\s:'\"]*/{re.escape(path.name)}", path.name, report.verdict.why.replace(str(path), path.name)
    )


def _columns(row: tuple[str, ...], widths: list[int]) -> str:
    """Two columns of words, then numbers."""
    return "  ".join(text.ljust(width) if k < 2 else text.rjust(width)
                     for k, (text, width) in enumerate(zip(row, widths, strict=True)))  # fmt: skip


def _epochs(report: Report) -> str:
    progress = report.run.progress
    return f"{progress.epoch} of {'?' if progress.epochs is None else progress.epochs}"


def _facts() -> Table:
    facts = Table.grid(padding=(0, 2))
    facts.add_column(style="dim", no_wrap=True)
    facts.add_column(overflow="fold")
    return facts


def _to_do(advice: str, command: str, intention: str) -> Page:
    lines: Page = []
    if advice:
        lines.append(Text(f"first: {advice}" if command else f"to do: {advice}"))
    if command:
        lines += [Text(intention), command]
    return lines


def _intention(state: str) -> str:
    return {"finished": "to evaluate it:", "pending": "to let it run:"}.get(state, "to go on:")


def _progress(report: Report) -> str:
    progress = report.run.progress
    total = f" of {progress.epochs}" if progress.epochs is not None else ""
    words = [f"{progress.epoch}{total} epochs"]
    if report.verdict.state == "running" and progress.seconds_left is not None:
        words.append(f"{spell(progress.seconds_left)} left")
    if report.verdict.state != "finished" and report.run.checkpoint not in (None, progress.epoch):
        words.append(f"checkpoint of epoch {report.run.checkpoint}")
    return ", ".join(words)


def _last(report: Report) -> str | None:
    progress = report.run.progress
    words = []
    if progress.steps_per_second is not None:
        words.append(f"{progress.steps_per_second:,.0f} steps/s")
    if progress.epoch_seconds is not None:
        words.append(f"{progress.epoch_seconds:.3g} s an epoch")
    if progress.reward is not None:
        words.append(f"reward {progress.reward:.3g}")
    if progress.loss is not None:
        words.append(f"loss {progress.loss:.4f}")
    return ", ".join(words) or None


def _attempts(report: Report) -> RenderableType:
    shown = Table(box=None, pad_edge=False, header_style="bold", title_justify="left")
    for name in ("attempt", "job", "host"):
        shown.add_column(name, no_wrap=True)
    shown.add_column("began", no_wrap=True)
    shown.add_column("epochs", no_wrap=True)
    shown.add_column("how it ended")
    run = report.run
    for attempt, ended in report.attempt_ends():
        last = (attempt.end or {}).get("epoch")
        upto = run.reached.get(attempt.number) if last is None else last
        epochs = f"{attempt.base_epoch or 0} to {upto if upto is not None else '?'}" if attempt.ready else "-"
        job = "-" if attempt.job is None else attempt.job
        began = local_time(attempt.started)
        shown.add_row(str(attempt.number), job, attempt.host, began, epochs, ended or "it runs")
    return Padding(shown, (1, 0, 0, 0))


def _jobs(report: Report) -> RenderableType:
    shown = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("job", "kind", "after", "state"):
        shown.add_column(name, no_wrap=name != "state")
    for job in report.run.jobs:
        known = report.books.jobs.get(job["id"])
        follows = f"{job['successor_of']} (goes on)" if job["successor_of"] else job["after"] or "-"
        state = _state(known) if known else "Slurm no longer knows it" if report.books.reachable else "?"
        shown.add_row(job["id"], job["kind"], follows, state)
    return Padding(shown, (1, 0, 0, 0))


def _state(job: JobState) -> str:
    words = job.state
    if job.state == "CANCELLED" and job.cancelled_by:
        words += f" by {job.cancelled_by}"
    if job.state == "FAILED":
        words += f", signal {job.signal}" if job.signal else f", exit code {job.exit_code}"
    if job.reason and job.state in ("PENDING", "CANCELLED"):
        words += f" ({job.reason})"
    if job.restarts:
        words += f", restarted {job.restarts} time{'s' * (job.restarts > 1)}"
    return words


def _short(number: float | None) -> str:
    return "-" if number is None else f"{number:.3g}"
