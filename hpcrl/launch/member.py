"""A member of a population while it trains: its turns, by all ranks together (``pbt/turn`` on rank 0)."""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Callable
from functools import partial

from hpcrl.checkpoint.contents import load_plain
from hpcrl.checkpoint.find import check_portable
from hpcrl.checkpoint.manifest import Manifest
from hpcrl.evaluate.windows import Windows, find_windows, window_scores
from hpcrl.launch.again import MADE_ROOM
from hpcrl.launch.session import Session
from hpcrl.market.dataset import Market
from hpcrl.monitor.console import TrainingConsole
from hpcrl.pbt.population import Population, check, population_of
from hpcrl.pbt.records import Record
from hpcrl.pbt.turn import Member, Plan, Snapshot, State, words
from hpcrl.storage.atomic import sha256_of
from hpcrl.train import Trainer
from hpcrl.types import HpcrlError, RunFailed
from hpcrl.world.agree import all_or_none
from hpcrl.world.collectives import broadcast_object
from hpcrl.world.memory import OutOfMemory
from hpcrl.world.stop import StopFlag


class MemberTurns:
    """``train.Turns`` of a member. ``member`` is there on rank 0 alone."""

    def __init__(
        self,
        population: Population,
        number: int,
        member: Member | None,
        session: Session,
        windows: Windows,
        stop: StopFlag,
        console: TrainingConsole,
    ) -> None:
        self.population, self.number, self.member = population, number, member
        self.session, self.windows, self.stop, self.console = session, windows, stop, console
        self.state = State(0, population.start(number))
        self.taken, self._began_at = 0, 0
        self._since = time.monotonic()

    @classmethod
    def of(
        cls, session: Session, market: Market, stop: StopFlag, console: TrainingConsole
    ) -> MemberTurns | None:
        """None for a run that is no member. Collective; before the attempt takes over."""
        world = session.world
        found = all_or_none(world, lambda: population_of(session.run.path))
        if found is None:
            return None
        population, number = found

        def prepare() -> tuple[Windows, Member | None]:
            if market.sha256 != population.data_sha256:
                raise HpcrlError(
                    f"{population.path} is a population of other data: sha256 {population.data_sha256[:12]}"
                    f"..., here it is {market.sha256[:12]}...; restore the file, or start a new population"
                )
            windows = find_windows(market, population.config)
            check(population.config, len(windows))
            attempt = session.attempt
            member = Member(population, number, attempt, session.source.path) if attempt is not None else None
            return windows, member

        windows, member = all_or_none(world, prepare)
        return cls(population, number, member, session, windows, stop, console)

    def begin(self, trainer: Trainer) -> None:
        """Training goes on from here."""
        if trainer.member is None:
            trainer.member = self.state.to_dict()
        self.state = State.from_dict(trainer.member)
        self._began_at = trainer.epoch
        self.console.say(
            f"Member {self.number} of {len(self.population.members)} of {self.population.path}, after "
            f"generation {self.state.generation} of {self.population.generations}"
        )

    def due(self, epoch: int) -> bool:
        return epoch // self.population.pbt.interval > self.state.generation

    def take(self, trainer: Trainer, save: Callable[[], None]) -> bool:
        """Publish, decide, take over a better member; True where others are to have this one's place."""
        trained, began = time.monotonic() - self._since, time.monotonic()
        save()
        record = self._publish(trainer)
        member = self.member
        world = trainer.world
        plan = all_or_none(world, lambda: member.choose(self.state, record) if member and record else None)
        plan = broadcast_object(world, plan)
        if plan.donor is not None:
            plan = self._adopt(trainer, plan)
        self.state = plan.state
        trainer.member = plan.state.to_dict()
        all_or_none(world, lambda: member.prune(plan.state.generation) if member else None)
        self.taken += trainer.epoch > self._began_at  # not the one that the last attempt left to this one
        spent = time.monotonic() - began
        all_or_none(
            world, lambda: self._tell(member, record, plan, spent, trained) if member and record else None
        )
        self._since = time.monotonic()
        return self._makes_room()

    def _publish(self, trainer: Trainer) -> Record | None:
        """The record of this turn, on rank 0: that of an attempt before, or a new one."""
        member, world, folder = self.member, trainer.world, self.session.folder

        def publish() -> Record | None:
            if member is None:
                return None
            generation, epoch = self.state.generation + 1, trainer.epoch
            known = member.published(generation)
            scores = known.scores if known else self._score(trainer)
            file = Manifest.read(folder.manifest(epoch)).files[folder.portable(epoch).name]
            snapshot = Snapshot(folder.portable(epoch), file.sha256, file.bytes)
            return member.publish(self.state, epoch, trainer.env_steps, scores, snapshot)

        return all_or_none(world, publish)

    def _score(self, trainer: Trainer) -> tuple[float, ...]:
        collector = trainer.collector
        return window_scores(
            collector.policy, collector.simulator.market, self.windows, self.population.config
        )

    def _adopt(self, trainer: Trainer, plan: Plan) -> Plan:
        """Weights, moments and return statistics of the donor on all ranks, or the plan without it."""
        donor, world, member = plan.donor, trainer.world, self.member
        assert donor is not None
        try:
            portable = all_or_none(world, partial(_load, donor))
            trainer.adopt(portable)
        except OutOfMemory:  # of this place, not of the donor
            raise
        except HpcrlError as error:
            why = str(error)
            return broadcast_object(
                world, all_or_none(world, lambda: member.abandon(plan, why) if member else None)
            )
        trainer.change(plan.state.hyperparameters)
        all_or_none(world, lambda: member.adopted(plan) if member else None)
        return plan

    def _tell(self, member: Member, record: Record, plan: Plan, spent: float, trained: float) -> None:
        share = spent / max(trained + spent, 1e-9)
        member.journal.append(
            "overhead",
            record.generation,
            seconds=round(spent, 3),
            trained_seconds=round(trained, 3),
            share=share,
        )
        say = self.console.say
        for note in plan.notes:
            say(note)
        outcome = plan.reason if plan.donor is None else f"{plan.reason}, taken over"
        say(f"PBT: {words(record)}: {outcome}; {spent:.1f} s, {share:.1%} of the time")
        best = member.best()
        if best is not None:
            say(f"{_dna()}PBT: Best performer: {words(best)}")

    def _makes_room(self) -> bool:
        """After ``pbt.slice`` generations, where the run is not over. Ends like a stop by Slurm."""
        limit = self.population.pbt.slice
        over = self.state.generation >= self.population.generations
        if limit is None or over or self.taken < limit:
            return False
        self.console.say(f"PBT: {self.taken} generations done, the next member has the place")
        self.stop.request(signal.SIGUSR2, MADE_ROOM)
        return True


def _load(snapshot: Snapshot) -> dict:
    """Each rank checks what it reads: a share may show it another file."""
    try:
        found = sha256_of(snapshot.path)
    except OSError as error:
        raise RunFailed(f"{snapshot.path}: cannot be read: {error.strerror or error}") from None
    if found != snapshot.sha256:
        raise RunFailed(f"{snapshot.path}: is not the snapshot that was published")
    return check_portable(load_plain(snapshot.path), str(snapshot.path))


def _dna() -> str:
    """The sign that the mission asks for, where the output can show it."""
    return "\N{DNA DOUBLE HELIX} " if (sys.stdout.encoding or "").lower().replace("-", "") == "utf8" else ""
