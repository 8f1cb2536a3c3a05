"""Where a training process begins: fresh weights, another run's weights, or its own newest checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hpcrl.checkpoint.find import check_portable, load_portable
from hpcrl.checkpoint.manager import CheckpointManager
from hpcrl.checkpoint.manifest import Manifest
from hpcrl.checkpoint.provenance import read_record, recorded_config, run_record
from hpcrl.config.root import Config, tree_digest
from hpcrl.market.dataset import Market
from hpcrl.market.scaler import Scaler, fit_scaler
from hpcrl.monitor.console import TrainingConsole
from hpcrl.storage.atomic import to_json
from hpcrl.storage.attempts import saved_anywhere
from hpcrl.storage.run_dir import RunDir
from hpcrl.train import Trainer, build
from hpcrl.types import HpcrlError, RunFailed
from hpcrl.world.agree import all_or_none
from hpcrl.world.collectives import broadcast_object
from hpcrl.world.memory import OutOfMemory
from hpcrl.world.world import World


def begin(
    world: World, config: Config, market: Market, init: Path | None, into: RunDir | None = None
) -> tuple[Trainer, RunDir]:
    """A new run, from fresh weights or from those of ``init``; makes the run folder last. Collective.

    ``into``: a folder that was reserved for it.
    """
    donor, lineage = None, None
    if init is None:
        scaler = fit_scaler(market, *market.split_range("train"))
    else:
        path, donor = all_or_none(world, lambda: load_portable(init))
        scaler = Scaler.from_state(donor["feature_scaler"])
        if tuple(scaler.feature_names) != tuple(market.feature_names):
            raise HpcrlError(
                f"--init {init}: its policy reads the features {', '.join(scaler.feature_names)}; "
                f"{config.market.path} has {', '.join(market.feature_names)}"
            )
        lineage = {
            "checkpoint": str(path.absolute()),
            "epoch": donor["epoch"],
            "data_sha256": donor["data"]["sha256"],
        }
    trainer = build(config, world, market, scaler)
    if donor is not None:
        trainer.adopt(donor)
    data = {
        "path": str(Path(config.market.path).absolute()),
        "sha256": market.sha256,
        "source": market.source,
        "symbols": list(market.symbols),
        "features": list(market.feature_names),
        "bar_seconds": market.bar_seconds,
    }
    record = to_json(run_record(config, data, lineage))

    def make() -> RunDir | None:
        if not world.is_main:
            return None
        if into is None:
            return RunDir.create(config.checkpoint.dir, record)
        into.begin(record)
        return into

    made = all_or_none(world, make)
    return trainer, RunDir(Path(broadcast_object(world, str(made.path) if made else "")))


def resume(
    world: World,
    config: Config,
    market: Market,
    run: RunDir,
    source: RunDir,
    manager: CheckpointManager,
    console: TrainingConsole,
) -> Trainer:
    """The run as its newest good checkpoint has it; from the start where none was written yet. Collective.

    ``manager`` looks into this attempt's folder, which has what ``source``, the attempt before it, had.
    """
    record = all_or_none(world, lambda: read_record(run))
    manifest = manager.newest()
    if manifest is None:
        _refuse_if_lost(world, run)
        console.say("No checkpoint yet: the run starts from its beginning")
        trainer = build(config, world, market, fit_scaler(market, *market.split_range("train")))
    else:
        trainer = _restore(world, config, market, source, manager, manifest, record, console)
        old = recorded_config(record)
        if old.train.epochs != config.train.epochs and config.learn.lr_schedule != "constant":
            console.say(
                f"train.epochs was {old.train.epochs}, is {config.train.epochs}: the "
                f"{config.learn.lr_schedule} schedule of learn.lr is another from here on, and the course is "
                f"not that of a run of {config.train.epochs} epochs from its start"
            )
    return trainer


def _refuse_if_lost(world: World, run: RunDir) -> None:
    """A run whose checkpoints are all broken must not start anew: that would abandon what is left of them."""
    epochs = all_or_none(world, lambda: saved_anywhere(run))
    if epochs:
        raise RunFailed(
            f"{run.path}: none of its {len(epochs)} checkpoints is whole (each is named above); nothing was "
            "changed. Restore their files, or start a new run"
        )


def _restore(
    world: World,
    config: Config,
    market: Market,
    run: RunDir,
    manager: CheckpointManager,
    manifest: Manifest,
    record: dict[str, Any],
    console: TrainingConsole,
) -> Trainer:
    name = str(run.portable(manifest.epoch))
    hint = f"to go on from the checkpoint before it, move {run.manifest(manifest.epoch)} away"
    try:
        portable, rank_state = manager.load(manifest)
        check_portable(portable, name)
        if portable["epoch"] != manifest.epoch:
            raise RunFailed(f"{name}: holds epoch {portable['epoch']!r}, its manifest says {manifest.epoch}")
        if tree_digest(portable["config"]) != record["config_sha256"]:
            raise RunFailed(f"{name}: was saved by a run of another config than config.json has")
        trainer = build(config, world, market, Scaler.from_state(portable["feature_scaler"]))
        trainer.restore(portable, rank_state)
    except OutOfMemory:  # nothing is wrong with the checkpoint
        raise
    except RunFailed as error:
        raise RunFailed(f"{error}; {hint}") from error
    except (KeyError, AttributeError, TypeError, ValueError) as error:
        reason = f"{type(error).__name__}: {error}"
        raise RunFailed(f"{name}: does not hold what a checkpoint holds ({reason}); {hint}") from error
    console.say(f"Resumed after epoch {trainer.epoch}")
    if rank_state is None:
        console.say(
            f"World size was {manifest.world_size}, is {world.size}: weights, moments, schedule and "
            "statistics carry over; environments start new episodes, and the exact course differs"
        )
    return trainer
