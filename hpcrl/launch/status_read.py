"""What a run folder says of its run: attempts, progress, jobs.

Reads only, and never fails: a file that is missing, torn or foreign is left out and named in ``notes``.
Knows no torch.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from hpcrl.launch.logs import log_of
from hpcrl.monitor.metrics import read_metrics
from hpcrl.storage.atomic import read_json
from hpcrl.storage.attempts import AttemptRecord, read_attempts
from hpcrl.storage.run_dir import RunDir
from hpcrl.types import HpcrlError

# Epochs that the speed is a mean of.
_RECENT = 10


@dataclass(frozen=True)
class Progress:
    """Of metrics.jsonl; seconds and rates are means of the last epochs."""

    epoch: int = 0
    """Finished epochs."""
    epochs: int | None = None
    """Of the whole run."""
    reward: float | None = None
    loss: float | None = None
    steps_per_second: float | None = None
    epoch_seconds: float | None = None

    @property
    def seconds_left(self) -> float | None:
        if self.epochs is None or self.epoch_seconds is None:
            return None
        return max(self.epochs - self.epoch, 0) * self.epoch_seconds


@dataclass(frozen=True)
class RunFiles:
    path: Path
    begun: bool
    """config.json is there: an attempt has begun to train."""
    attempts: tuple[AttemptRecord, ...] = ()
    claimed: int = 0
    """The newest attempt's number, also of one that was killed before it wrote who it is."""
    heartbeat: dict[str, Any] | None = None
    """Of the newest attempt."""
    reached: dict[int, int] = field(default_factory=dict)
    """Attempt -> its last epoch that is in the run's history."""
    progress: Progress = field(default_factory=Progress)
    checkpoint: int | None = None
    """Finished epochs of the newest checkpoint."""
    jobs: tuple[dict[str, Any], ...] = ()
    """submission.json's jobs, in order."""
    submit_words: tuple[str, ...] = ()
    """As typed after hpcrl: submit, ..."""
    submit_folder: str = ""
    """Where that was typed."""
    notes: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """Of a member of a population, with the population's."""
        parts = self.path.parts
        return "/".join(parts[-3:] if parts[-2:-1] == ("members",) else parts[-1:])

    def log_of(self, job: str, output: str = "") -> Path | None:
        """A job's log; ``output``: its path by Slurm, where that knows it."""
        return log_of(self.path, self.jobs, job, output)

    @property
    def newest(self) -> AttemptRecord | None:
        return self.attempts[-1] if self.attempts else None


def jobs_of(run: RunFiles) -> list[str]:
    """Every job that has to do with the run."""
    attempts = [attempt.job for attempt in run.attempts if attempt.job is not None]
    return list(dict.fromkeys([*(job["id"] for job in run.jobs), *attempts]))


def read_run(path: Path) -> RunFiles:
    """HpcrlError, one line, where there is no run folder at ``path``."""
    if not path.is_dir():
        raise HpcrlError(
            f"{path}: no such run folder" if not path.exists() else f"{path}: a file, no run folder"
        )
    run = RunDir(path.absolute())
    if not (
        run.config.exists() or (run.path / "attempts").is_dir() or (run.path / "submission.json").exists()
    ):
        if (path / "population.json").is_file():
            raise HpcrlError(f"{path} is a population: hpcrl pbt status {path}, or one of its members/NN")
        raise HpcrlError(f"{path}: not a run folder (no config.json, no attempts, no submission.json in it)")
    notes: list[str] = []
    attempts = tuple(_tried(notes, lambda: read_attempts(run.path)) or ())
    claimed = _claimed(run.path)
    for number in range(1, claimed + 1):
        folder = run.path / "attempts" / str(number)
        known = any(attempt.number == number for attempt in attempts)
        if not known and (folder / "attempt.json").exists():
            notes.append(f"{folder / 'attempt.json'}: cannot be read, so this attempt is left out")
        if known and (folder / "end.json").exists():
            _json(notes, folder / "end.json")
    beat = _json(notes, attempts[-1].path / "heartbeat.json") if attempts else None
    submission = _json(notes, run.path / "submission.json") or {}
    record = _json(notes, run.config) or {}
    lines = _tried(notes, lambda: read_metrics(run.metrics)) or []
    return RunFiles(
        path=run.path,
        begun=run.config.is_file(),
        attempts=attempts,
        claimed=claimed,
        heartbeat=beat,
        reached={line["time/attempt"]: line["epoch"] for line in lines if "time/attempt" in line},
        progress=_progress(lines, _epochs(run.path, record, attempts)),
        checkpoint=next(iter(_tried(notes, run.manifest_epochs) or ()), None),
        jobs=tuple(_jobs(submission)),
        submit_folder=str(submission.get("folder") or ""),
        submit_words=tuple(str(word) for word in submission.get("arguments") or ()),
        notes=tuple(notes),
    )


def _tried(notes: list[str], read: Callable[[], Any]) -> Any:
    try:
        return read()
    except HpcrlError as error:
        notes.append(str(error))
    except OSError as error:
        notes.append(f"{error.filename or 'the run folder'}: cannot be read: {error.strerror or error}")
    return None


def _json(notes: list[str], path: Path) -> dict[str, Any] | None:
    return _tried(notes, lambda: read_json(path)) if path.exists() else None


def _claimed(run: Path) -> int:
    try:
        return max((int(name) for name in os.listdir(run / "attempts") if name.isdigit()), default=0)
    except OSError:
        return 0


def _jobs(submission: dict[str, Any]) -> list[dict[str, Any]]:
    """Those that say at least which job they are."""
    jobs = submission.get("jobs")
    found = [job for job in jobs if isinstance(job, dict)] if isinstance(jobs, list) else []
    empty = {"kind": "train", "after": None, "successor_of": None, "log": None}
    return [empty | job for job in found if isinstance(job.get("id"), str)]


def _epochs(run: Path, record: dict[str, Any], attempts: tuple[AttemptRecord, ...]) -> int | None:
    """train.epochs, as the newest attempt or submission has it, else as the run was begun."""
    live = attempts[-1].live if attempts else None
    if isinstance(live, dict) and isinstance(live.get("train.epochs"), int):
        return live["train.epochs"]
    for config in (_submitted_config(run), record.get("config")):
        train = config.get("train") if isinstance(config, dict) else None
        if isinstance(train, dict) and isinstance(train.get("epochs"), int):
            return train["epochs"]
    return None


def _submitted_config(run: Path) -> Any:
    from hpcrl.config.yaml_file import read_mapping

    return _tried([], lambda: read_mapping(run / "jobs" / "config.yaml"))


def _progress(lines: list[dict], epochs: int | None) -> Progress:
    if not lines:
        return Progress(epochs=epochs)
    last = lines[-1]
    recent = [line for line in lines if line.get("time/attempt") == last.get("time/attempt")][-_RECENT:]
    if epochs is not None and last["epoch"] > epochs:  # more were asked for on the command line
        epochs = None
    return Progress(
        epoch=last["epoch"],
        epochs=epochs,
        reward=_number(last.get("reward")),
        loss=_number(last.get("loss")),
        steps_per_second=_rate(recent),
        epoch_seconds=_mean([line.get("time/epoch") for line in recent]),
    )


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else None


def _rate(lines: list[dict]) -> float | None:
    """Steps of all these epochs by their seconds; the mean of rates would make much of the quick ones."""
    pairs = [(_number(line.get("time/steps_per_second")), _number(line.get("time/epoch"))) for line in lines]
    known = [(rate * seconds, seconds) for rate, seconds in pairs if rate is not None and seconds]
    return sum(steps for steps, _ in known) / sum(seconds for _, seconds in known) if known else None


def _mean(values: list[Any]) -> float | None:
    numbers = [number for value in values if (number := _number(value)) is not None]
    return sum(numbers) / len(numbers) if numbers else None


def moment(value: Any) -> datetime | None:
    """An ISO stamp of a file of ours; UTC where it has no zone."""
    try:
        found = datetime.fromisoformat(value)
    except (TypeError, ValueError):
        return None
    return found if found.tzinfo else found.replace(tzinfo=UTC)


def spell(seconds: float) -> str:
    """12 s, 5 min, 3 h 20 min, 4 d 2 h."""
    whole = round(seconds)
    if whole < 120:
        return f"{whole} s"
    minutes, hours, days = whole // 60, whole // 3600, whole // 86400
    if minutes < 120:
        return f"{minutes} min"
    if hours < 48:
        return f"{hours} h {minutes % 60} min"
    return f"{days} d {hours % 24} h"
