"""``hpcrl pbt status`` on a terminal: a line per member, the best marked, and who copied whom."""

from __future__ import annotations

from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from hpcrl.launch.population_status import MemberStatus, PopulationStatus, last_turn
from hpcrl.launch.status_read import spell
from hpcrl.launch.status_show import Page

_COLOURS = {"running": "green", "finished": "green", "waiting": "yellow", "failed": "red"}


def page(status: PopulationStatus, urgent_first: bool = False) -> Page:
    """``urgent_first``: what went wrong above the tables, for a window that may be lower than the page."""
    population = status.population
    head = Text.assemble((status.state, f"bold {_COLOURS[status.state]}"), f"  {population.path.name}")
    tables: Page = [_members(status), _turns(status)]
    urgent = _urgent(status)
    parts: Page = [head, _facts(status), *(urgent + tables if urgent_first else tables + urgent)]
    if status.command:
        parts += [Text("\nto go on:"), status.command]
    return parts


def _urgent(status: PopulationStatus) -> Page:
    parts: Page = []
    for why in dict.fromkeys(member.why for member in status.members if member.why):
        those = [str(member.past.member) for member in status.members if member.why == why]
        named = f"member{'s' * (len(those) > 1)} {', '.join(those)}"
        parts.append(Text(f"{named} failed: {why}", style="red"))
    for member in status.members:
        parts += [Text(f"ALARM member {member.past.member}: {alarm}", style="red")
                  for alarm in member.past.alarms]  # fmt: skip
    return parts + [Text(f"note: {note}", style="yellow") for note in status.notes]


def _facts(status: PopulationStatus) -> Table:
    population = status.population
    facts = Table.grid(padding=(0, 2))
    facts.add_column(style="dim", no_wrap=True)
    facts.add_column(overflow="fold")
    states = ("running", "waiting", "finished", "failed")
    counts = ", ".join(f"{status.count(state)} {state}" for state in states if status.count(state))
    facts.add_row("members", f"{len(status.members)}: {counts}")
    every = f"one every {population.pbt.interval} epochs"
    facts.add_row(
        "generations", f"{population.generations}, {every}; {population.windows} validation windows"
    )
    exploits = sum(member.past.exploits for member in status.members)
    seconds, part = status.overhead
    facts.add_row("copied", f"{exploits} time{'s' * (exploits != 1)}")
    if part is not None:
        facts.add_row("overhead", f"{spell(seconds)} in turns, {part:.2%} of the members' time")
    facts.add_row("folder", str(population.path))
    return facts


def _members(status: PopulationStatus) -> Padding:
    """How far each is, and what it is worth."""
    shown = Table(box=None, pad_edge=False, header_style="bold")
    shown.add_column("member", no_wrap=True)
    shown.add_column("state", no_wrap=True)
    for name in ("epoch", "gen.", "env steps", "objective"):
        shown.add_column(name, justify="right", no_wrap=True)
    shown.add_column("weights of", no_wrap=True)
    for member in status.members:
        record = member.record
        shown.add_row(
            _name(member, status),
            Text(member.state, style=_COLOURS[member.state]),
            str(member.epoch),
            str(record.generation if record else 0),
            f"{record.env_steps if record else 0:,}",
            f"{record.objective:.4g} +- {record.spread:.2g}" if record else "-",
            _parent(member),
            style=_style(member, status),
        )
    return Padding(shown, (1, 0, 0, 0))


def _turns(status: PopulationStatus) -> Padding:
    """The hyperparameters of each, and how it came by them."""
    shown = Table(box=None, pad_edge=False, header_style="bold")
    shown.add_column("member", no_wrap=True)
    keys = list(status.population.pbt.space)
    for key in keys:
        shown.add_column(key.rpartition(".")[2], justify="right", no_wrap=True)
    shown.add_column("copied", justify="right", no_wrap=True)
    shown.add_column("last turn")
    for member in status.members:
        past = member.past
        values = (f"{past.values[key]:.4g}" for key in keys)
        row = (_name(member, status), *values, str(past.exploits), last_turn(past) or "none yet")
        shown.add_row(*row, style=_style(member, status))
    return Padding(shown, (1, 0, 0, 0))


def _is_best(member: MemberStatus, status: PopulationStatus) -> bool:
    return status.best is not None and status.best.member == member.past.member


def _name(member: MemberStatus, status: PopulationStatus) -> str:
    return f"{member.past.member}{' best' if _is_best(member, status) else ''}"


def _style(member: MemberStatus, status: PopulationStatus) -> str:
    return "bold" if _is_best(member, status) else ""


def _parent(member: MemberStatus) -> str:
    parent = member.past.parent
    return "its own" if parent is None else f"{parent[0]} at {parent[1]}"
