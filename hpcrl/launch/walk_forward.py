"""``hpcrl evaluate RUN --walk-forward``: the run's configuration trained anew for each fold, tested after it.

RUN/walk_forward_SPLIT_FOLDS/
  folds.json     which rows each fold trains, validates and is tested on: written once; then, where they
                 reach sealed rows, that these were opened
  result.json    what came of them; result.png
  fold_01/       an ordinary run, as ``hpcrl train`` makes it; jobs/config.yaml is the run's own config with
                 the fold's times (market.train_between and so on)

A fold that has been trained is loaded; one that was stopped goes on from its newest checkpoint. This process
holds no state: call it again. ``split`` says how far the test blocks reach: ``validation`` leaves the run's
sealed test split untouched, ``test`` opens it, once for all folds, before one is trained or tested on it.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType
from typing import Any, Literal

import yaml

from hpcrl.config.load import validate
from hpcrl.config.root import Config
from hpcrl.evaluate.folds import Fold, Rows, walk_forward_folds
from hpcrl.launch.local import catches
from hpcrl.launch.logs import read_words
from hpcrl.launch.population import is_finished
from hpcrl.market.dataset import Market
from hpcrl.market.splits import purged_bars
from hpcrl.pbt.population import population_of
from hpcrl.storage.atomic import read_json, write_error, write_json, write_text
from hpcrl.storage.lock import hold
from hpcrl.storage.run_dir import RunDir
from hpcrl.types import STOPPED_EARLY, HpcrlError, RunFailed
from hpcrl.world.stop import READY

FORMAT = 1
SPLITS = ("validation", "test")
_POLL_SECONDS = 0.1
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR2)
Say = Callable[[str], None]


@dataclass(frozen=True)
class WalkForward:
    """The options."""

    folds: int = 5
    split: str = "test"
    window: Literal["expanding", "rolling"] = "expanding"
    first: float = 0.5
    """Share of the rows before the first test block."""
    embargo: int = 0
    """Rows left out before validation and test blocks, beyond those that are purged."""
    ranks: int | None = None
    """Of each training; None: one process."""


class Stopped(Exception):
    """A signal asked for it; what was trained is saved."""


def walk_forward(run: str | Path, options: WalkForward = WalkForward(), say: Say = print) -> Any:
    """``evaluate.stitch.Stitched`` of all folds; trains those that are not trained yet.

    HpcrlError before any work: no run folder, other data than the run's, folds that leave too few rows, a
    folder of other folds. RunFailed: a training that failed. Stopped: by a signal.
    """
    from hpcrl.evaluate.stitch import Part, stitch
    from hpcrl.evaluate.stitch_plot import write_stitched_plot

    source = RunDir.open(run)
    config, market = _config_and_market(source)
    folds = _folds(config, market, options)
    parent = parent_of(source.path, options)
    _prepare(parent, source, config, market, folds, options)
    with contextlib.closing(hold(parent / "run.lock", doing="walked forward")):
        sealed = market.split_range("test", config.env.fill_lag)
        for number, fold in enumerate(folds, 1):
            if any(_share(rows, sealed) for rows in (*fold.train, fold.validation)):
                _open(parent, source, market, config)
            _train(parent, number, len(folds), options.ranks, say)
        opened = {}
        if any(_share(fold.test, sealed) for fold in folds):
            opened = _open(parent, source, market, config)
        meta = _meta(source, market, config, options, opened)
        parts = []
        for number, fold in enumerate(folds, 1):
            folder = fold_folder(parent, number)
            trained = (_iso(market, fold.train[0][0]), _iso(market, fold.train[0][1] - 1))
            parts.append(Part(number, str(folder), trained, _evaluate(folder)))
        found = stitch(parts, meta)
        write_json(parent / "result.json", found.to_json())
        write_stitched_plot(found, parent / "result.png")
    return found


def parent_of(run: Path, options: WalkForward) -> Path:
    return run / f"walk_forward_{options.split}_{options.folds}"


def fold_folder(parent: Path, number: int) -> Path:
    return parent / f"fold_{number:02d}"


def show_walk_forward(run: str | Path, options: WalkForward = WalkForward(), as_json: bool = False) -> int:
    """For the command line: tells of every fold, prints the result, returns the exit code."""

    def say(text: str) -> None:
        print(text, file=sys.stderr if as_json else sys.stdout, flush=True)

    try:
        found = walk_forward(run, options, say)
    except Stopped as stopped:
        say(f"{stopped}; to go on: the same command again")
        return STOPPED_EARLY
    if as_json:
        print(json.dumps(found.to_json(), allow_nan=False))
        return 0
    from rich.console import Console

    from hpcrl.evaluate.stitch import render_stitched

    Console().print(render_stitched(found))
    print(parent_of(RunDir.open(run).path, options) / "result.png")
    return 0


def _config_and_market(source: RunDir) -> tuple[Config, Market]:
    """The config that the run trains with, with absolute paths, and its data."""
    from hpcrl.checkpoint.provenance import read_record, resumed_tree
    from hpcrl.market.load import load_market

    record = read_record(source)
    config = validate(resumed_tree(source, record), str(source.config))
    path = str(Path(config.market.path).absolute())
    if not Path(path).exists() and Path(record["data"].get("path", "")).is_file():
        path = record["data"]["path"]
    config = config.model_copy(update={"market": config.market.model_copy(update={"path": path})})
    market = load_market(config.market)
    if market.sha256 != record["data"]["sha256"]:
        raise HpcrlError(
            f"{path} is not the run's data: its sha256 is {market.sha256[:12]}..., the run was trained on "
            f"{record['data']['sha256'][:12]}...; restore the file"
        )
    return config, market


def _folds(config: Config, market: Market, options: WalkForward) -> tuple[Fold, ...]:
    """HpcrlError also where a fold's training rows are too few for an episode."""
    if options.split not in SPLITS:
        raise HpcrlError(
            f"split {options.split!r}: a walk-forward reaches to the end of {' or '.join(SPLITS)}"
        )
    lag = config.env.fill_lag
    lo = market.split_range("train", lag)[0]
    hi = market.split_range(options.split, lag)[1]  # type: ignore[arg-type]
    share = config.market.validation_fraction / (
        config.market.train_fraction + config.market.validation_fraction
    )
    folds = walk_forward_folds(
        lo,
        hi,
        options.folds,
        purged=purged_bars(lag),
        embargo=options.embargo,
        first=options.first,
        validation=share,
        window=options.window,
    )
    rows = folds[0].train[0][1] - folds[0].train[0][0]
    if rows < config.episode_steps + 1:
        raise HpcrlError(
            f"the first fold would train on {rows} bars, an episode of the run needs "
            f"{config.episode_steps + 1} (env.episode_rollouts x learn.rollout + 1): stage more bars"
        )
    return folds


def _stamp(market: Market, row: int) -> str:
    """Start of the row's bar; of the row after the last: when that bar would start."""
    last = market.n_bars - 1
    seconds = int(market.ts_B[min(row, last)]) + (market.bar_seconds if row > last else 0)
    return datetime.fromtimestamp(seconds, UTC).isoformat()


def _iso(market: Market, row: int) -> str:
    return _stamp(market, row)[:16].replace("T", " ")


def _between(market: Market, rows: tuple[int, int]) -> list[str]:
    return [_stamp(market, row) for row in rows] if rows[0] < rows[1] else []


def fold_config(config: Config, market: Market, fold: Fold, parent: Path) -> Config:
    """The run's own, with the fold's times for its splits."""
    tree = config.model_dump(mode="json")
    tree["market"] |= {
        "train_between": _between(market, fold.train[0]),
        "validation_between": _between(market, fold.validation),
        "test_between": _between(market, fold.test),
    }
    tree["checkpoint"]["dir"] = str(parent)
    return validate(tree, "a fold's config")


def _prepare(
    parent: Path,
    source: RunDir,
    config: Config,
    market: Market,
    folds: tuple[Fold, ...],
    options: WalkForward,
) -> None:
    """folds.json and every fold's folder; what is there already must be of the same folds."""
    asked = asdict(options)
    del asked["ranks"]
    plan = {
        "format": FORMAT,
        "run": source.path.name,
        "config_sha256": config.digest(),
        "epochs": config.train.epochs,
        "data_sha256": market.sha256,
        "options": asked,
        "folds": [{"train": f.train[0], "validation": f.validation, "test": f.test} for f in folds],
    }
    plan = json.loads(json.dumps(plan))  # as it is read back
    file = parent / "folds.json"
    if file.is_file():
        known = read_json(file)
        other = [key for key, value in plan.items() if known.get(key) != value]
        if other:
            was = known.get("options", {})
            raise HpcrlError(
                f"{parent} holds a walk-forward of another {', '.join(other)} (options {was}): ask for the "
                "same, or move that folder away"
            )
    try:
        for number, fold in enumerate(folds, 1):
            jobs = fold_folder(parent, number) / "jobs"
            jobs.mkdir(parents=True, exist_ok=True)
            if not (jobs / "config.yaml").is_file():
                tree = fold_config(config, market, fold, parent).model_dump(mode="json")
                text = yaml.safe_dump(tree, sort_keys=False, allow_unicode=True)
                write_text(jobs / "config.yaml", f"# Fold {number} of {source.path.name}\n{text}")
        if not file.is_file():
            write_json(file, plan)
    except OSError as error:
        raise write_error(parent, error) from None


def _train(parent: Path, number: int, count: int, ranks: int | None, say: Say) -> None:
    """Unless it has been."""
    folder = fold_folder(parent, number)
    if is_finished(folder):
        say(f"fold {number} of {count}: trained already, {folder}")
        return
    how = "goes on" if (folder / "config.json").is_file() else "begins"
    command = [sys.executable, "-m", "hpcrl", "train", "--run", str(folder)]
    command += ["--config", str(folder / "jobs" / "config.yaml")]
    command += ["--ranks", str(ranks)] if ranks and ranks > 1 else []
    log = folder / "jobs" / "local.log"
    began = time.monotonic()
    code, stopped = _run(
        command, log, lambda process: say(f"fold {number} of {count}: {how} (process {process})")
    )
    if code == 0:
        say(f"fold {number} of {count}: trained in {time.monotonic() - began:.0f} s, {folder}")
        if stopped:
            raise Stopped(f"stopped after fold {number} of {count}")
        return
    if stopped or code == STOPPED_EARLY:
        raise Stopped(f"fold {number} of {count} was stopped, all saved")
    words = read_words(log)
    why = words.error or words.last or "it left no message"
    raise RunFailed(f"fold {number} of {count}: training ended with exit code {code}: {why} (log: {log})")


def _run(command: list[str], log: Path, begun: Callable[[int], None]) -> tuple[int, bool]:
    """(exit code, whether a signal came); signals are handed on, and the training saves."""
    from hpcrl.launch.submit import cleaned_environment

    with cleaned_environment():
        environment = dict(os.environ) | {"COLUMNS": "120"}
    with _signals_noted() as noted:
        try:
            with log.open("ab", buffering=0) as file:
                process = subprocess.Popen(
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=file,
                    stderr=subprocess.STDOUT,
                    env=environment,
                    start_new_session=True,  # a terminal's Ctrl-C reaches it through this process alone
                )
        except OSError as error:
            raise write_error(log, error) from None
        begun(process.pid)
        told = 0
        try:
            while process.poll() is None:
                time.sleep(_POLL_SECONDS)
                # Before its handlers stand a signal would kill it unsaved.
                while told < len(noted) and catches(process.pid, READY):
                    process.send_signal(signal.SIGTERM if noted[told] == signal.SIGHUP else noted[told])
                    told += 1
        finally:
            if process.poll() is None:  # an error here: it must not train on without us
                process.terminate()
                process.wait()
        return process.returncode, bool(noted)


@contextlib.contextmanager
def _signals_noted() -> Iterator[list[signal.Signals]]:
    noted: list[signal.Signals] = []

    def note(number: int, _frame: FrameType | None) -> None:
        noted.append(signal.Signals(number))

    before = {number: signal.signal(number, note) for number in _SIGNALS}
    try:
        yield noted
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _share(rows: Rows, others: Rows) -> bool:
    return max(rows[0], others[0]) < min(rows[1], others[1])


def _open(parent: Path, source: RunDir, market: Market, config: Config) -> dict[str, Any]:
    """{"openings", "warning"} of the run's test split: logged once, and marked in folds.json.

    Logged before it is marked: what is killed in between is told twice rather than never.
    """
    from hpcrl.evaluate.sealed import journal_folder, open_sealed

    file = parent / "folds.json"
    known = read_json(file)
    if "opened" in known:
        return known["opened"]
    name = f"{source.path.resolve().name}: walk-forward"
    openings, warning = open_sealed(journal_folder(source.path), market.sha256, name, config.train.epochs)
    opened = {"openings": openings, "warning": warning}
    if openings:  # else it could not be logged: the next call tries again
        try:
            write_json(file, known | {"opened": opened})
        except OSError as error:
            raise write_error(file, error) from None
    return opened


def _meta(
    source: RunDir, market: Market, config: Config, options: WalkForward, opened: dict[str, Any]
) -> dict[str, Any]:
    """What the result tells of the run. ``opened``: as ``_open``, empty where no block is sealed."""
    warnings = [opened["warning"]] if opened.get("warning") else []
    if population_of(source.path) is not None:
        warnings.append(
            "a member of a population: its folds train with the hyperparameters that it began with"
        )
    return {
        "run": source.path.name,
        "path": str(source.path),
        "split": options.split,
        "window": options.window,
        "embargo": options.embargo,
        "purged": purged_bars(config.env.fill_lag),
        "epochs": config.train.epochs,
        "data": {"sha256": market.sha256, "source": market.source},
        "test_openings": opened.get("openings", 0),
        "warnings": warnings,
    }


def _evaluate(folder: Path) -> Any:
    from hpcrl.evaluate.evaluate import evaluate_run
    from hpcrl.evaluate.trials import Trials

    alone = Trials(1, float("nan"), "a fold of a walk-forward: one configuration, nothing was chosen")
    return evaluate_run(folder, "test", draws=1, seal=False, trials=alone)
