"""The attempts of one run: who trains it now, and what older ones can no longer reach. Knows no torch.

attempts/N/ is the folder of attempt N, claimed by an exclusive mkdir, which is atomic on shared disks too:

  attempt.json     who began it, on what (``AttemptRecord``)
  end.json         how it ended, if it came to say so
  heartbeat.json   what it does at the moment
  metrics.jsonl, checkpoint_epoch_X...   the run's whole history, as this attempt knows it

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
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from hpcrl.storage.atomic import fsync_folder, read_json, temporary_path, write_error, write_json
from hpcrl.storage.run_dir import RunDir
from hpcrl.types import HpcrlError, RunFailed

FORMAT = 1
FRUITLESS = 3
"""Automatic attempts in a row that may end without a new checkpoint."""


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
    end: dict[str, Any] | None
    """code, epoch, reason, ended; None while it runs, and for ever if it was killed."""


def who_begins(environ: Mapping[str, str], job: str | None) -> dict[str, Any]:
    """job, restart_count and trigger of the attempt that begins in this environment."""
    count = environ.get("SLURM_RESTART_COUNT", "0")
    restarts = int(count) if job is not None and count.isdigit() else 0
    trigger = "requeue" if restarts else "successor" if environ.get("HPCRL_SUCCESSOR_OF") else "user"
    return {"job": job, "restart_count": restarts, "trigger": trigger}


def read_attempts(run: Path) -> list[AttemptRecord]:
    """Every attempt that says who it is, by number; one that was killed while it began is left out."""
    found = []
    for number in _numbers(run):
        folder = _folder(run, number)
        with contextlib.suppress(HpcrlError, KeyError, TypeError, ValueError):
            value = read_json(folder / "attempt.json")
            end = None
            with contextlib.suppress(HpcrlError):
                end = read_json(folder / "end.json")
            fields = {key: value[key] for key in _FIELDS}
            found.append(AttemptRecord(number=number, path=folder, end=end, **fields))
    return found


_FIELDS = tuple(
    name for name in AttemptRecord.__dataclass_fields__ if name not in ("number", "path", "end")
)  # fmt: skip


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


def refuse_if_taken_over(run: Path, who: Mapping[str, Any], predecessor: str | None) -> None:
    """RunFailed where Slurm starts a job again whose run another job has gone on with in the meantime."""
    attempts = read_attempts(run)
    if who["trigger"] == "user" or not attempts:
        return
    newest = attempts[-1]
    if newest.job not in (who["job"], predecessor):
        raise RunFailed(
            f"{run} is trained by another by now ({_words(newest)}): job {who['job']}, which was started "
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
        ready = [other for other in read_attempts(run.path) if other.ready and other.number < record.number]
        self.source = RunDir(ready[-1].path) if ready else run
        """The folder whose history it takes over."""

    @classmethod
    def claim(cls, run: RunDir, world_size: int, who: dict[str, Any]) -> Attempt:
        """The next number. ``who``: see ``who_begins``. RunFailed where the folder cannot be written."""
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
            end=None,
            **who,
        )
        _write(record)
        fsync_folder(run.path / "attempts")
        return cls(run, record)

    def check(self) -> None:
        """Superseded if a newer attempt has begun: this one must write nothing any more."""
        newer = [number for number in _numbers(self.run.path) if number > self.record.number]
        if not newer:
            return
        known = next((a for a in read_attempts(self.run.path) if a.number == newer[-1]), None)
        where = f" ({_words(known)})" if known else ""
        raise Superseded(
            f"attempt {self.record.number} of {self.run.path} is superseded by attempt {newer[-1]}{where}: "
            "it stops here and writes nothing more"
        )

    def adopt(self) -> None:
        """Take the newest ready attempt's checkpoints into the own folder, by hard link or copy.

        One that is pruned at this moment by an attempt that should be gone is left out.
        """
        files = self.source.checkpoint_files()
        for epoch in self.source.manifest_epochs():
            try:
                for name in (*sorted(files.get(epoch, ())), self.source.manifest(epoch).name):
                    _link_or_copy(self.source.path / name, self.folder.path / name)
            except FileNotFoundError:
                continue  # without a manifest there is no checkpoint; the next save clears what was linked
            except OSError as error:
                raise write_error(self.folder.path, error) from error
        fsync_folder(self.folder.path)

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
                "without a new checkpoint; not tried again. See why (hpcrl status, and the logs), then "
                f"go on with sbatch slurm/train.sbatch --resume {self.run.path}"
            )

    def take_over(self, base_epoch: int | None) -> None:
        """The own folder, metrics too, is complete: it is the run's history now; older ones lose theirs."""
        self.check()
        self.record = replace(self.record, ready=True, base_epoch=base_epoch)
        _write(self.record)
        self.publish()
        for number in _numbers(self.run.path):
            if number < self.record.number:
                _empty(RunDir(_folder(self.run.path, number)))

    def publish(self) -> None:
        """Let the run folder show this attempt's metrics and checkpoints, and no others."""
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

    def end(self, code: int, epoch: int | None, reason: str) -> None:
        """Say how it ended. Best effort: it must not hide what went wrong."""
        with contextlib.suppress(HpcrlError, OSError):
            value = {"code": code, "epoch": epoch, "reason": reason, "ended": _now()}
            write_json(self.record.path / "end.json", value)


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
    value = {key: each for key, each in asdict(record).items() if key not in ("path", "end")}
    write_json(record.path / "attempt.json", {"format": FORMAT, **value})


def _link_or_copy(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except FileNotFoundError:
        raise
    except OSError:  # a share without hard links
        temporary = temporary_path(target)
        try:
            shutil.copyfile(source, temporary)
            os.replace(temporary, target)
        finally:
            temporary.unlink(missing_ok=True)


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
    for path in (*paths, *folder.checkpoint_temporaries(), folder.metrics):
        with contextlib.suppress(OSError):
            path.unlink()
