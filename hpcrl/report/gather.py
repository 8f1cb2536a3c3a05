"""All that a report is made of, read once: the run's files, its evaluation, its market, its population.

What is missing leaves its part of the page out, with a reason; only a path that holds nothing to report, or
an option that cannot be met, is an error. The sealed test split is opened by ``evaluate_run`` alone, and only
where it was asked for.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from hpcrl.config.load import validate
from hpcrl.config.root import Config
from hpcrl.evaluate.evaluation import Evaluation
from hpcrl.market.dataset import Market
from hpcrl.monitor.metrics import read_metrics
from hpcrl.pbt.history import Past, best_of, read_past
from hpcrl.pbt.population import Population, population_of
from hpcrl.storage.atomic import read_json
from hpcrl.storage.attempts import AttemptRecord, read_attempts
from hpcrl.storage.run_dir import RunDir
from hpcrl.types import HpcrlError

SPLITS = ("validation", "test")


@dataclass(frozen=True, eq=False)
class Target:
    """What the user named."""

    path: Path
    run: Path | None
    """The run folder; None for a checkpoint file that stands alone."""
    played: Path
    """The run folder or the checkpoint file."""
    population: Population | None
    member: int | None
    whole: bool
    """The population itself was named, not one of its members."""

    @property
    def folder(self) -> Path:
        """Where the page goes."""
        if self.whole:
            return self.path
        return self.run or self.path.absolute().parent


@dataclass(frozen=True, eq=False)
class Gathered:
    target: Target
    split: str
    record: dict[str, Any]
    """config.json; {} for a checkpoint file that stands alone."""
    metrics: list[dict[str, Any]]
    attempts: list[AttemptRecord]
    past: tuple[Past, ...]
    evaluation: Evaluation | None = None
    market: Market | None = None
    unplayed: str = ""
    """Why there is no evaluation."""
    quality: dict[str, Any] | None = None
    """The staging report beside the data file."""
    data_file: Path | None = None
    sealed_in: Path | None = None
    """The folder of the journal of openings."""
    openings: int | None = None
    """Of the sealed test split of this data set, so far; None: not known."""
    said: tuple[str, ...] = field(default=())
    """Warnings about what could not be read."""

    @property
    def config(self) -> Config | None:
        return validate(self.record["config"], "config.json") if self.record else None

    @property
    def name(self) -> str:
        return self.target.path.resolve().name


def find_target(path: str | Path) -> Target:
    """HpcrlError: nothing there that can be reported."""
    path = Path(path)
    if (path / "population.json").is_file():
        population = Population.open(path)
        best = best_of(read_past(population))
        if best is None:
            raise HpcrlError(f"{path}: no member has published a generation yet: nothing to report")
        run = population.folder(best.member)
        return Target(population.path, run, run, population, best.member, whole=True)
    if path.is_file():
        run = path.absolute().parent
        whole = (run / "config.json").is_file()
        return _of_member(Target(path, run if whole else None, path, None, None, whole=False))
    run = RunDir.open(path).path
    return _of_member(Target(run, run, run, None, None, whole=False))


def _of_member(target: Target) -> Target:
    found = population_of(target.run) if target.run is not None else None
    return target if found is None else replace(target, population=found[0], member=found[1])


def gather(
    target: Target, split: str, *, epoch: int | None = None, data: str | Path | None = None, draws: int = 100
) -> Gathered:
    """HpcrlError: an unknown split or epoch, a checkpoint that cannot be played, nothing to report at all."""
    if split not in SPLITS:
        raise HpcrlError(f"split {split!r} is not known; a report shows one of {', '.join(SPLITS)}")
    record, said = {}, []
    if target.run is not None:
        from hpcrl.checkpoint.provenance import read_record

        record = read_record(RunDir.open(target.run))
    metrics, attempts = [], []
    if target.run is not None:
        metrics, attempts = read_metrics(target.run / "metrics.jsonl"), read_attempts(target.run)
    past = read_past(target.population) if target.population is not None else ()
    found = Gathered(target, split, record, metrics, attempts, past)
    chosen, gone = (epoch, "") if epoch is not None else _epoch_of_best(target, past)
    try:
        found = _played(found, chosen, data, draws)
    except HpcrlError as error:
        if not metrics or epoch is not None or target.played.is_file():
            raise
        found = replace(found, unplayed=str(error))
    if gone and found.evaluation is not None:
        said.append(f"{gone}: epoch {found.evaluation.meta['epoch']} is played")
    file = Path(data) if data is not None else _data_file(found)
    quality, why = _quality(file)
    if why:
        said.append(why)
    return replace(
        found, quality=quality, data_file=file, openings=_openings(found), said=(*found.said, *said)
    )


def _epoch_of_best(target: Target, past: tuple[Past, ...]) -> tuple[int | None, str]:
    """The epoch of the record that makes a population's member its best, as ``compare`` plays it.

    None: no population was named, or that checkpoint is gone, which the text then says.
    """
    best = past[target.member].newest if target.whole and target.member is not None else None
    if best is None or target.run is None:
        return None, ""
    epoch = best.record.epoch
    if epoch in RunDir.open(target.run).manifest_epochs():
        return epoch, ""
    return None, f"the best member's record is of epoch {epoch}, whose checkpoint is gone"


def _played(found: Gathered, epoch: int | None, data: str | Path | None, draws: int) -> Gathered:
    from hpcrl.checkpoint.load import load_data, load_run
    from hpcrl.evaluate.evaluate import evaluate_run
    from hpcrl.evaluate.sealed import journal_folder

    played = found.target.played
    evaluation = evaluate_run(played, found.split, checkpoint_epoch=epoch, data=data, draws=draws)
    if played.suffix.lower() == ".onnx":
        from hpcrl.export.player import load_onnx_run

        loaded = load_onnx_run(played)
    else:
        loaded = load_run(played, epoch=epoch)
    folder = journal_folder(loaded.checkpoint)
    return replace(found, evaluation=evaluation, market=load_data(loaded, data), sealed_in=folder)


def _data_file(found: Gathered) -> Path | None:
    path = found.record.get("data", {}).get("path")
    if not path and found.config is not None:
        path = found.config.market.path
    return Path(path) if path else None


def _quality(file: Path | None) -> tuple[dict[str, Any] | None, str]:
    """The staging report beside ``file``, and why it cannot be read, where it is there."""
    if file is None:
        return None, ""
    from hpcrl.market.build import report_path

    beside = report_path(file)
    if not beside.is_file():
        return None, ""
    try:
        return read_json(beside), ""
    except HpcrlError as error:
        return None, f"the staging report could not be read: {error}"


def _openings(found: Gathered) -> int | None:
    """How often the test split of these bars was opened, this time included."""
    if found.evaluation is None or found.sealed_in is None:
        return None
    counted = found.evaluation.meta.get("test_openings")
    if found.split == "test":
        return counted or None
    from hpcrl.evaluate.sealed import count_openings

    try:
        return int(count_openings(found.sealed_in, found.evaluation.meta["data"]["sha256"]))
    except FileNotFoundError:
        return 0
    except (OSError, TypeError):
        return None
