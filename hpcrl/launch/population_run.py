"""``hpcrl pbt run --local``: a population on this machine, each member a process of its own.

This process holds no state: it starts members, those with the fewest env steps first, hands signals on, and
shows what their logs say of their turns. It may be killed at any moment, and its members with it: they go on
from their folders.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType

from hpcrl.launch.local import catches
from hpcrl.launch.logs import read_words
from hpcrl.launch.population import (
    Places,
    PopulationRequest,
    configured,
    is_finished,
    known_population,
    new_population,
)
from hpcrl.pbt.history import best_of, read_past
from hpcrl.pbt.population import Population
from hpcrl.pbt.records import Reader
from hpcrl.pbt.turn import words
from hpcrl.storage.atomic import write_error
from hpcrl.storage.attempts import read_attempts
from hpcrl.storage.lock import hold
from hpcrl.types import HUNG, STOPPED_EARLY, HpcrlError
from hpcrl.world.ranks import read_ranks
from hpcrl.world.stop import READY
from hpcrl.world.tell import red

AGAIN = 3
"""Times that a member which crashed is started again without a new generation in between."""
_POLL_SECONDS = 0.1
_PR_SET_PDEATHSIG = 1  # linux/prctl.h
_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR2)
# What of a member's log is shown: its turns, records that nobody can read, and what is wrong with its start.
_TOLD = re.compile(r"^(?:\W+ )?PBT: (?P<turn>.*)|^(?:\x1b\S+m)?(?P<other>(?:ALARM|WARNING|NO REAL DATA): .*)")


def run_here(
    config: Path | None,
    overrides: tuple[str, ...],
    population: Path | None,
    members: int | None,
    at_once: int | None,
    ranks: int | None,
) -> int:
    """Make a population, or go on with ``population``, and run it; the exit code."""
    given = read_ranks()
    if given.size > 1:
        raise HpcrlError(f"pbt run --local starts its members itself, but {given.launcher} started this rank")
    request = PopulationRequest(config, overrides, population, members, ranks)
    live: tuple[str, ...] = ()
    if population is None:
        resolved = configured(request)
        places = Places.here(resolved, resolved.train.world_size, at_once)
        found = new_population(resolved, places.count)
    else:
        found, live = known_population(request)
        places = Places.here(found.config, ranks or found.config.train.world_size, at_once)
    again = ["hpcrl", "pbt", "run", "--local", "--population", str(found.path)]
    again += ["--at-once", str(at_once)] if at_once else []
    again += ["--ranks", str(ranks)] if ranks and population is not None else []
    with contextlib.closing(hold(found.path / "run.lock", doing="run")):
        return Runner(found, places, live, shlex.join([*again, *live])).run()


@dataclass
class _Running:
    """A member's process."""

    member: int
    place: int
    process: subprocess.Popen[bytes]
    generation: int
    """Of its newest record when it was started."""
    log: _Log
    told: int = 0
    """Signals that were handed on."""


class Runner:
    """``live``: words for hpcrl train; ``again``: what to type to go on."""

    def __init__(self, population: Population, places: Places, live: tuple[str, ...], again: str) -> None:
        self.population, self.places, self.live, self.again = population, places, live, again
        self.reader = Reader(population)
        self.running: list[_Running] = []
        self.waiting = [member for member in population.members if not is_finished(population.folder(member))]
        self.fruitless = dict.fromkeys(population.members, 0)
        self.left: dict[int, str] = {}
        """Members that are not started again, and why."""
        self.signals: list[signal.Signals] = []
        self._best = ""
        self._warned: set[str] = set()
        self._handed_on = 0

    def run(self) -> int:
        population = self.population
        say(
            f"Population {population.path}: {len(population.members)} members, {self.places.words()}, "
            f"{population.generations} generations of {population.pbt.interval} epochs"
        )
        with self._signals_noted():
            try:
                self._fill()
                while self.running:
                    time.sleep(_POLL_SECONDS)
                    self._hand_on()
                    self._look()
                    self._fill()
            finally:
                self._end_all()
        return self._conclude()

    def _fill(self) -> None:
        """Start members while there are places; those first that are least far."""
        while self.waiting and not self.signals and len(self.running) < self.places.count:
            member = min(self.waiting, key=lambda m: (self.fruitless[m], self._reached(m)[1], m))
            self.waiting.remove(member)
            taken = {each.place for each in self.running}
            place = next(k for k in range(self.places.count) if k not in taken)
            try:
                self.running.append(self._start(member, place))
            except HpcrlError as error:  # a full disk: the others may be about to end well
                self._leave(member, str(error))

    def _start(self, member: int, place: int) -> _Running:
        folder = self.population.folder(member)
        generation = self._reached(member)[0]
        command = [sys.executable, "-m", "hpcrl", "train", "--config", str(folder / "jobs" / "config.yaml")]
        command += ["--run", str(folder), *self.live]
        command += ["--ranks", str(self.places.ranks)] if self.places.ranks > 1 else []
        path = folder / "jobs" / "local.log"
        attempts = read_attempts(folder)
        stamp = f"start {datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ} job local attempt {len(attempts) + 1}"
        try:
            with path.open("ab", buffering=0) as log:
                log.write(f"{stamp} on {socket.gethostname()}\n".encode())
                process = subprocess.Popen(
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    env=self._environment(place),
                    start_new_session=True,  # a terminal's Ctrl-C reaches them through this process alone
                    preexec_fn=_dies_with_parent(),
                )
        except OSError as error:
            raise write_error(path, error) from None
        how = f"goes on after generation {generation}" if attempts else "begins"
        say(f"member {member}: {how} (process {process.pid})")
        return _Running(member, place, process, generation, _Log(path))

    def _environment(self, place: int) -> dict[str, str]:
        """Nothing of another job, nor of what the population's config has settled."""
        from hpcrl.launch.submit import cleaned_environment

        with cleaned_environment():
            base = dict(os.environ)
        return base | {"COLUMNS": "120"} | self.places.environment(place)

    def _look(self) -> None:
        """Show what members say, and take those that have ended out of their places."""
        for one in list(self.running):
            ended = one.process.poll() is not None
            for line in one.log.lines():
                self._tell(one.member, line)
            if ended:
                self.running.remove(one)
                self._ended(one)

    def _tell(self, member: int, line: str) -> None:
        found = _TOLD.match(line)
        if found is None:
            return
        text = found["turn"] or found["other"]
        if text.startswith("Best performer"):
            if text != self._best:
                say(f"PBT: {text}")
            self._best = text
        elif found["turn"] or text not in self._warned:
            self._warned.add(text)
            if text.startswith("NO REAL DATA"):
                say(red(text))
            else:
                say(text if text.startswith("member ") else f"member {member}: {text}")

    def _ended(self, one: _Running) -> None:
        member, code = one.member, one.process.returncode
        got_on = self._reached(member)[0] > one.generation
        self.fruitless[member] = 0 if got_on else self.fruitless[member] + 1
        log = one.log.path
        if code == 0:
            say(f"member {member}: finished")
        elif code in (1, 2):
            self._leave(member, f"exit code {code}: {read_words(log).error or 'it left no message'}", log)
        elif self.signals:
            self.waiting.append(member)
        elif self.fruitless[member] > AGAIN:
            why = f"it ended {self.fruitless[member]} times in a row without a new generation, last by"
            self._leave(member, f"{why} {_said(code)}", log)
        else:
            self.waiting.append(member)
            if code != STOPPED_EARLY:
                say(f"member {member}: ended by {_said(code)}; it goes on from its newest checkpoint")

    def _leave(self, member: int, why: str, log: Path | None = None) -> None:
        self.left[member] = f"{why} (log: {log})" if log else why
        say(f"member {member}: left, {why}")

    def _reached(self, member: int) -> tuple[int, int]:
        """Generation and env steps of its newest record."""
        newest = self.reader.newest(member)
        return (newest[0].generation, newest[0].env_steps) if newest else (0, 0)

    @contextlib.contextmanager
    def _signals_noted(self) -> Iterator[None]:
        def note(number: int, _frame: FrameType | None) -> None:
            self.signals.append(signal.Signals(number))

        before = {}
        for number in _SIGNALS:
            if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:  # under nohup
                before[number] = signal.signal(number, note)
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _hand_on(self) -> None:
        """Each signal to each member once, as soon as it can take it: before its handlers stand, it dies."""
        for number in self.signals[self._handed_on :]:
            if self._handed_on == 0:
                say(f"{number.name}: the members that run save at the end of their epoch, and stop")
            elif self.signals[: self._handed_on + 1].count(signal.SIGINT) == 2:
                say("still waiting for the end of their epoch; Ctrl-C once more kills them unsaved")
            self._handed_on += 1
        for one in self.running:
            while one.told < len(self.signals) and catches(one.process.pid, READY):
                number = self.signals[one.told]
                one.told += 1
                one.process.send_signal(signal.SIGTERM if number == signal.SIGHUP else number)

    def _end_all(self) -> None:
        """Of an error here: no member outlives this process."""
        for one in self.running:
            self.waiting.append(one.member)
            one.process.terminate()
        for one in self.running:
            one.process.wait()

    def _conclude(self) -> int:
        population = self.population
        past = read_past(population)
        best = best_of(past)
        if best is not None:
            from hpcrl.report.population_plot import write_plots

            try:
                write_plots(population)
            except (HpcrlError, OSError) as error:  # a full disk: the members have saved all that matters
                print(f"WARNING: no pictures: {error}", file=sys.stderr, flush=True)
            sign = "\N{DNA DOUBLE HELIX} " if (sys.stdout.encoding or "").lower() in ("utf-8", "utf8") else ""
            say(f"{sign}PBT: Best performer: {words(best)}")
        for member, why in sorted(self.left.items()):
            print(f"error: member {member}: {why}", file=sys.stderr, flush=True)
        open_members = sorted([*self.waiting, *self.left])
        if open_members:
            names = ", ".join(map(str, open_members))
            what = "Stopped, all saved" if self.signals else f"Not finished: members {names}"
            first = "once that is mended: " if self.left and not self.signals else ""
            say(f"{what}. To go on: {first}{self.again}")
        say(str(population.path))
        return 0 if not open_members else STOPPED_EARLY if self.signals else 1


class _Log:
    """The lines that come to a log from now on."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._at = path.stat().st_size
        self._rest = b""

    def lines(self) -> list[str]:
        with self.path.open("rb") as file:
            file.seek(self._at)
            data = file.read()
        self._at += len(data)
        *whole, self._rest = (self._rest + data).split(b"\n")
        return [line.decode(errors="replace").removesuffix("\x1b[0m") for line in whole]


def _dies_with_parent() -> Callable[[], None]:
    """For a child before it becomes another program: KILL, should this process die without a word.

    Else it would train on, and whoever goes on with the population would find its member held.
    """
    libc, parent = ctypes.CDLL(None), os.getpid()

    def prepare() -> None:
        libc.prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)
        if os.getppid() != parent:
            os._exit(1)

    return prepare


def _said(code: int) -> str:
    """How a process ended, of its exit code; 128 + a signal's number is what a launcher of ranks gives."""
    number = -code if code < 0 else code - 128
    if number > 0:
        with contextlib.suppress(ValueError):
            return signal.Signals(number).name
    return "its watchdog (it hung)" if code == HUNG else f"exit code {code}"


def say(text: str) -> None:
    """A line for people, on a terminal that may not have all signs."""
    encoding = sys.stdout.encoding or "ascii"
    print(text.encode(encoding, errors="replace").decode(encoding), flush=True)
