"""The attempts of one run: who trains it now, and what older ones can no longer reach. Knows no torch.

attempts/N/ is the folder of attempt N, claimed by an exclusive mkdir, which is atomic on shared disks too:

  attempt.json     who began it, on what (``AttemptRecord``)
  end.json         how it ended, if it came to say so
  heartbeat.json   what it does at the moment
  metrics.jsonl, tensorboard.events, checkpoint_epoch_X...   the run's whole history, as this attempt knows it

A new attempt links every checkpoint of the newest ready one into its own folder before it is ready itself;
from then on it depends on no older folder. So whatever an attempt writes that lost its node, its network or
its turn, even a rename that a file server carries out minutes later, lands in a folder that nobody reads.
The run folder itself shows the current attempt's files (hard links); it is for people. No attempt starts from
it, unless there is no ``attempts`` folder (it was left out of a copy).
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import socket
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, get_origin, get_type_hints

from hpcrl.storage.atomic import fsync_folder, read_json, stage, temporary_path, write_error, write_json
from hpcrl.storage.run_dir import RunDir
from hpcrl.types import HpcrlError, RunFailed

FORMAT = 1
FRUITLESS = 3
"""Automatic attempts in a row that may end without a new checkpoint."""
_TRIES = 5


@dataclass(frozen=True)
class AttemptRecord:
    """attempt.json, and end.json where there is one."""

    number: int
    path: Path
    token: str
    """Random: tells apart two attempts that a file server mixes up."""
    job: str | None
    """Slurm's job, ``12`` or ``12_3``."""
    restart_count: int
    trigger: str
    """user, requeue or successor: who started it."""
    host: str
    pid: int
    world_size: int
    started: str
    """UTC, ISO 8601."""
    ready: bool
    """It has taken over: its folder is the run's history."""
    base_epoch: int | None
    """Finished epochs of the checkpoint that it began from."""
    end: dict[str, Any] | None = None
    """code, epoch, reason, ended; None while it runs, and for ever if it was killed."""
    live: dict[str, Any] = field(default_factory=dict)
    """Config keys that it changed, as a resumed run may: {"train.epochs": 200}. The next one keeps them."""
    nodes: int | None = None
    gpus_per_node: int | None = None
    """As Slurm gave them."""


def who_begins(environ: Mapping[str, str], job: str | None) -> dict[str, Any]:
    """job, restart_count and trigger of the attempt that begins in this environment."""
    count = environ.get("SLURM_RESTART_COUNT", "0")
    restarts = int(count) if job is not None and count.isdigit() else 0
    trigger = "requeue" if restarts else "successor" if environ.get("HPCRL_SUCCESSOR_OF") else "user"
    return {"job": job, "restart_count": restarts, "trigger": trigger}


def read_attempts(run: Path, strict: bool = False) -> list[AttemptRecord]:
    """Every attempt that says who it is, by number; one that was killed before it could is left out.

    ``strict``: RunFailed where one said it, but cannot be read now. Passing over it could lose its history.
    """
    found = []
    for number in _numbers(run):
        folder = _folder(run, number)
        file = folder / "attempt.json"
        try:
            value = read_json(file)
            if value["format"] != FORMAT:
                raise HpcrlError(f"{file}: format {value['format']!r}, this version reads {FORMAT}")
            said = {key: value[key] for key in _FIELDS & value.keys()}
            if not all(isinstance(said[key], _KINDS[key]) for key in said):
                raise TypeError(file)
            record = AttemptRecord(path=folder, **said)
        except (HpcrlError, KeyError, TypeError) as error:
            if strict and not isinstance(error.__cause__, FileNotFoundError):
                reason = error if isinstance(error, HpcrlError) else f"{file}: is no record of an attempt"
                raise RunFailed(
                    f"{reason}; nothing was changed. What attempt {number} has saved is beside it: mend that "
                    "file first"
                ) from None
            continue
        with contextlib.suppress(HpcrlError):
            end = read_json(folder / "end.json")
            if isinstance(end.get("code"), int) and isinstance(end.get("epoch"), int | None):
                record = replace(record, end=end)
        found.append(record)
    return found


_KINDS = {
    key: get_origin(kind) if get_origin(kind) is dict else kind
    for key, kind in get_type_hints(AttemptRecord).items()
}
_FIELDS = _KINDS.keys() - {"path", "end"}


def attempt_folder(run: RunDir, number: int) -> RunDir:
    return RunDir(_folder(run.path, number))


def _folder(run: Path, number: int) -> Path:
    return run / "attempts" / str(number)


def _numbers(run: Path) -> list[int]:
    """Of every attempt that was claimed, ascending."""
    try:
        names = os.listdir(run / "attempts")
    except FileNotFoundError:
        return []
    except OSError as error:
        raise RunFailed(f"{run / 'attempts'}: cannot be read: {error.strerror or error}") from error
    return sorted(int(name) for name in names if name.isdigit())


def saved_anywhere(run: RunDir) -> set[int]:
    """Epochs of which the run folder or any attempt has a manifest, whatever it is worth."""
    folders = [run, *(attempt_folder(run, number) for number in _numbers(run.path))]
    return {epoch for folder in folders for epoch in folder.manifest_epochs()}


def refuse_if_taken_over(run: Path, who: Mapping[str, Any], predecessor: str | None) -> None:
    """RunFailed where Slurm starts a job again whose run another has gone on with in the meantime."""
    attempts = read_attempts(run)
    own = [attempt.number for attempt in attempts if attempt.job in (who["job"], predecessor)]
    if who["trigger"] == "user" or not own or own[-1] == attempts[-1].number:
        return
    raise RunFailed(
        f"{run} is trained by another by now ({_words(attempts[-1])}): job {who['job']}, which was started "
        "again, leaves it alone"
    )


class Superseded(RunFailed):
    """A newer attempt trains this run."""


class Attempt:
    """One attempt at a run, in the process that writes for it (rank 0). ``claim`` makes one."""

    def __init__(self, run: RunDir, record: AttemptRecord) -> None:
        self.run = run
        self.record = record
        self.folder = RunDir(record.path)
        """Where this attempt's checkpoints and metrics are."""
        before = (other for other in read_attempts(run.path, strict=True) if other.number < record.number)
        ready = [other for other in before if other.ready]
        self.source = RunDir(ready[-1].path) if ready else run
        """The folder whose history it takes over."""

    @classmethod
    def claim(cls, run: RunDir, world_size: int, who: dict[str, Any]) -> Attempt:
        """The next number. ``who``: ``who_begins``, and what else an ``AttemptRecord`` knows.

        RunFailed where the folder cannot be written, or an earlier attempt's record not be read.
        """
        read_attempts(run.path, strict=True)
        numbers = _numbers(run.path)
        number = numbers[-1] + 1 if numbers else 1
        try:
            (run.path / "attempts").mkdir(exist_ok=True)
            while True:
                try:
                    _folder(run.path, number).mkdir()
                    break
                except FileExistsError:  # another attempt's; or ours, told twice by a file server: a gap
                    number += 1
        except OSError as error:
            raise write_error(_folder(run.path, number), error) from error
        record = AttemptRecord(
            number=number,
            path=_folder(run.path, number),
            token=secrets.token_hex(8),
            host=socket.gethostname(),
            pid=os.getpid(),
            world_size=world_size,
            started=_now(),
            ready=False,
            base_epoch=None,
            **who,
        )
        _write(record)
        fsync_folder(run.path / "attempts")
        return cls(run, record)

    def check(self) -> None:
        """Superseded if a newer attempt has begun: this one must write nothing any more."""
        newer = [number for number in _numbers(self.run.path) if number > self.record.number]
        if not newer:
            self._check_token()
            return
        known = next((a for a in read_attempts(self.run.path) if a.number == newer[-1]), None)
        where = f" ({_words(known)})" if known else ""
        raise Superseded(
            f"attempt {self.record.number} of {self.run.path} is superseded by attempt {newer[-1]}{where}: "
            "it stops here and writes nothing more"
        )

    def _check_token(self) -> None:
        """The folder must still be the one that was claimed, and not another's in its place."""
        try:
            found = read_json(self.record.path / "attempt.json").get("token")
        except HpcrlError:  # a share that does not answer now is no other attempt
            return
        if found != self.record.token:
            raise Superseded(f"{self.record.path} is another's by now: this attempt stops and writes nothing")

    def adopt(self) -> None:
        """Take the newest ready attempt's checkpoints into the own folder, by hard link or copy.

        One that is pruned at this moment, by an attempt that has not yet noticed this one, is left out; if
        that was all there was, there is a newer one by now.
        """
        for _ in range(_TRIES):
            self._adopt_once()
            if self.folder.manifest_epochs() or not self.source.manifest_epochs():
                break
        fsync_folder(self.folder.path)

    def _adopt_once(self) -> None:
        files = self.source.checkpoint_files()
        for epoch in self.source.manifest_epochs():
            try:
                for name in (*sorted(files.get(epoch, ())), self.source.manifest(epoch).name):
                    _link_or_copy(self.source.path / name, self.folder.path / name)
            except FileNotFoundError:
                continue  # without a manifest there is no checkpoint; the next save clears what was linked
            except OSError as error:
                raise write_error(self.folder.path, error) from error

    def refuse_if_fruitless(self, base_epoch: int | None) -> None:
        """RunFailed if the last three automatic attempts began where this one does, and saved nothing newer.

        An attempt that was told to leave (TERM: preempted, drained) is not held against the run.
        """
        if self.record.trigger == "user":
            return
        streak = 0
        for other in reversed(read_attempts(self.run.path)):
            if other.number >= self.record.number:
                continue
            if other.ready and (other.base_epoch or 0) != (base_epoch or 0):
                break
            streak += other.end is None or other.end.get("reason") != "SIGTERM"
            if other.trigger == "user":
                break
        if streak >= FRUITLESS:
            raise RunFailed(
                f"{self.run.path}: {streak} attempts in a row began after epoch {base_epoch or 0} and ended "
                "without a new checkpoint; not tried again. hpcrl status tells why, and how to go on"
            )

    def take_over(self, base_epoch: int | None) -> None:
        """The own folder, metrics too, is complete: it is the run's history now; older ones lose theirs."""
        self.check()
        self.record = replace(self.record, ready=True, base_epoch=base_epoch)
        _write(self.record)
        self.publish()
        newest = max(self.folder.manifest_epochs(), default=-1)
        for number in _numbers(self.run.path):
            older = attempt_folder(self.run, number)
            # What this attempt could not take, say a broken checkpoint, stays there until it is outdone.
            if number < self.record.number and max(older.manifest_epochs(), default=newest) <= newest:
                _empty(older)

    def publish(self) -> None:
        """Let the run folder show this attempt's metrics, events and checkpoints, and no others."""
        self.check()
        own, shown = self.folder, self.run
        files = own.checkpoint_files()
        names = {
            n for epoch in own.manifest_epochs() for n in (*files.get(epoch, ()), own.manifest(epoch).name)
        }
        here = {name for found in shown.checkpoint_files().values() for name in found}
        here |= {shown.manifest(epoch).name for epoch in shown.manifest_epochs()}
        stale = {name for name in here & names if not _same(own.path / name, shown.path / name)}
        # A reader goes from the manifest to the files: old manifests leave first, new ones come last.
        for name in sorted((here - names) | stale, key=lambda n: not n.endswith(".json")):
            with contextlib.suppress(OSError):
                (shown.path / name).unlink()
        missing = (names - here) | stale
        if own.metrics.exists() and not _same(own.metrics, shown.metrics):
            missing.add(own.metrics.name)
        for name in sorted(missing, key=lambda n: n.endswith(".json")):
            _show(own.path / name, shown.path / name)
        with contextlib.suppress(HpcrlError, OSError):  # no run ends for want of a chart
            self._show_events()

    def _show_events(self) -> None:
        own, shown = self.folder.events, self.run.shown_events(self.record.number)
        if own.exists() and not _same(own, shown):
            shown.parent.mkdir(exist_ok=True)
            _show(own, shown)
        for other in shown.parent.glob("events.out.tfevents.*"):
            if other != shown:
                other.unlink()

    def end(self, code: int, epoch: int | None, reason: str) -> None:
        write_end(self.record.path, code, epoch, reason)


def write_end(folder: Path, code: int, epoch: int | None, reason: str) -> None:
    """Say how the attempt of this folder ended. Best effort: it must not hide what went wrong."""
    with contextlib.suppress(HpcrlError, OSError):
        value = {"code": code, "epoch": epoch, "reason": reason, "ended": _now()}
        write_json(folder / "end.json", value)


def run_of_job(parent: Path, job: str) -> Path | None:
    """The newest run folder in ``parent`` that this job has trained; None if there is none."""
    for folder in sorted(parent.glob("dist_run_*"), reverse=True):
        with contextlib.suppress(HpcrlError):
            if any(attempt.job == job for attempt in read_attempts(folder)):
                return folder
    return None


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _words(attempt: AttemptRecord) -> str:
    job = f"job {attempt.job}, " if attempt.job else ""
    return f"{job}process {attempt.pid} on {attempt.host}, {attempt.started}"


def _write(record: AttemptRecord) -> None:
    value = asdict(record)
    write_json(record.path / "attempt.json", {"format": FORMAT, **{key: value[key] for key in _FIELDS}})


def _link_or_copy(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except FileNotFoundError:
        raise
    except OSError:  # a share without hard links
        with source.open("rb") as file:
            stage(target, partial(shutil.copyfileobj, file)).commit()


def _show(source: Path, target: Path) -> None:
    """``target`` becomes a hard link to ``source``, or a symbolic one where the share has none."""
    temporary = temporary_path(target)
    try:
        try:
            os.link(source, temporary)
        except OSError:
            temporary.symlink_to(os.path.relpath(source, target.parent))
        os.replace(temporary, target)
    except OSError as error:
        raise write_error(target, error) from error
    finally:
        temporary.unlink(missing_ok=True)


def _same(a: Path, b: Path) -> bool:
    try:
        return os.path.samefile(a, b)
    except OSError:
        return False


def _empty(folder: RunDir) -> None:
    """Remove the checkpoints and metrics of an attempt whose history another has taken over; best effort."""
    paths = [folder.manifest(epoch) for epoch in folder.manifest_epochs()]
    paths += [folder.path / name for names in folder.checkpoint_files().values() for name in names]
    for path in (*paths, *folder.checkpoint_temporaries(), folder.metrics, folder.events):
        with contextlib.suppress(OSError):
            path.unlink()
