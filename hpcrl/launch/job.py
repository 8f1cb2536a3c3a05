"""What a training process runs: a new run, a resumed one, or one that starts from another's weights."""

from __future__ import annotations

import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from hpcrl.config.load import load_config, one_process
from hpcrl.config.root import Config
from hpcrl.storage.run_dir import RunDir
from hpcrl.types import HpcrlError
from hpcrl.world.ranks import Ranks, check_size, read_ranks

if TYPE_CHECKING:
    from hpcrl.market.store import Market
    from hpcrl.train import Trainer
    from hpcrl.world.stop import StopFlag
    from hpcrl.world.world import World


@dataclass(frozen=True)
class Request:
    """The options of ``hpcrl train``."""

    config: Path | None = None
    overrides: tuple[str, ...] = ()
    ranks: int | None = None
    resume: Path | None = None
    init: Path | None = None


def resolve(request: Request, ranks: Ranks) -> tuple[Config, RunDir | None]:
    """The config that this process trains with, checked against its launcher; touches no data.

    A resumed run takes the launcher's number of ranks: another world size is allowed there.
    """
    if request.resume is not None:
        if request.init is not None:
            raise HpcrlError("--resume goes on with a run, --init starts a new one: give one of them")
        return _resolve_resumed(request, ranks)
    if request.config is None and request.init is None:
        raise HpcrlError("train needs --config FILE (for example yaml/local.yaml), --resume or --init")
    if request.init is not None and not request.init.exists():
        raise HpcrlError(f"--init {request.init}: no such run folder or checkpoint")
    base = None if request.init is None or request.config is not None else _config_of(request.init)
    config = load_config(request.config, request.overrides, ranks=request.ranks, base=base)
    if config.train.training_mode == "single" and max(ranks.size, request.ranks or 1) > 1:
        raise HpcrlError(
            f"train.training_mode = single (TRAINING_MODE), but {max(ranks.size, request.ranks or 1)} ranks "
            "were started; use distributed, or one rank"
        )
    if ranks.launcher == "none" and request.ranks is None:
        config = one_process(config, None, request.overrides)
    if not (ranks.launcher == "none" and request.ranks):
        check_size(ranks, config.train.world_size)
    return config, None


def _resolve_resumed(request: Request, ranks: Ranks) -> tuple[Config, RunDir]:
    from hpcrl.checkpoint.provenance import read_record

    assert request.resume is not None
    run = RunDir.open(request.resume)
    size = request.ranks or ranks.size
    record = read_record(run)
    overrides = [*request.overrides, f"train.world_size={size}"]
    return load_config(request.config, overrides, base=record["config"]), run


def _config_of(init: Path) -> dict | None:
    """The config of the run that ``--init`` names, if it names one."""
    from hpcrl.checkpoint.provenance import read_record

    folder = init if init.is_dir() else init.parent
    return read_record(RunDir.open(folder))["config"] if (folder / "config.json").exists() else None


def run_training(request: Request) -> int:
    """Train in this process, as the rank that the launcher gave it. Returns the exit code.

    With several ranks the process ends here, inside ``stop_world``.
    """
    from hpcrl.world.stop import StopFlag

    stop = StopFlag().install()  # before the slow imports: a signal during them must not be lost
    ranks = read_ranks()
    config, run = resolve(request, ranks)

    from hpcrl.world.ranks import start_world, stop_world
    from hpcrl.world.tell import tell

    world = start_world(config.engine.device, config.train.world_size)
    try:
        code = _train(world, config, run, request, stop)
    except HpcrlError as error:
        code = error.exit_code
        tell(error, world.rank, world.size, world.launcher)
    except Exception:
        traceback.print_exc()
        code = 1
    stop_world(world, code)
    return code


def _train(world: World, config: Config, run: RunDir | None, request: Request, stop: StopFlag) -> int:
    from hpcrl.checkpoint.manager import CheckpointManager
    from hpcrl.market.store import load_market
    from hpcrl.monitor.console import TrainingConsole
    from hpcrl.monitor.metrics import MetricsFile
    from hpcrl.train import STOPPED_EARLY, learn
    from hpcrl.world.agree import all_or_none

    console = TrainingConsole(world.rank, config.train.epochs, config.monitor.progress)
    console.rank_line("Setting up...")
    market = all_or_none(world, lambda: load_market(config.market))
    all_or_none(world, lambda: market.require("train", config.episode_steps))
    if run is None:
        trainer, run = _begin(world, config, market, request.init)
        manager = CheckpointManager(run, world, config.checkpoint.keep_rolling)
    else:
        manager = CheckpointManager(run, world, config.checkpoint.keep_rolling)
        trainer = _resume(world, config, market, run, manager, console)
    log = all_or_none(world, lambda: MetricsFile(run.metrics, trainer.epoch) if world.is_main else None)
    console.say(f"Run folder: {run.path}")
    console.start(trainer.epoch)
    try:
        code = learn(trainer, manager, log, stop, console)
    finally:
        console.stop()
    if code == STOPPED_EARLY:
        ranks = f" --ranks {world.size}" if world.size > 1 and world.launcher == "torchrun" else ""
        command = f"{resume_command(run, world.launcher)}{ranks}"
        console.say(f"Stopped after epoch {trainer.epoch}, all saved. To go on: {command}")
    else:
        console.say(f"Finished {trainer.epoch} epochs, {trainer.env_steps:,} env steps: {run.path}")
    return code


def resume_command(run: RunDir, launcher: str) -> str:
    """What to type; with Slurm the job script, for a bare ``hpcrl train`` would be one process."""
    start = "sbatch slurm/train.sbatch" if launcher == "slurm" else "hpcrl train"
    return f"{start} --resume {run.path}"


def _begin(world: World, config: Config, market: Market, init: Path | None) -> tuple[Trainer, RunDir]:
    """A new run, from fresh weights or from those of ``init``; makes the run folder."""
    from hpcrl.checkpoint.find import load_portable
    from hpcrl.checkpoint.provenance import run_record
    from hpcrl.market.scaler import Scaler, fit_scaler
    from hpcrl.storage.atomic import to_json
    from hpcrl.train import build
    from hpcrl.world.agree import all_or_none
    from hpcrl.world.collectives import broadcast_object

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
        lineage = {"checkpoint": str(path), "epoch": donor["epoch"], "data_sha256": donor["data"]["sha256"]}
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
    made = all_or_none(world, lambda: RunDir.create(config.checkpoint.dir, record) if world.is_main else None)
    return trainer, RunDir(Path(broadcast_object(world, str(made.path) if made else "")))


def _resume(world, config, market, run, manager, console) -> Trainer:
    """The run as its newest good checkpoint has it; from the start where it has none yet."""
    from hpcrl.checkpoint.find import check_portable
    from hpcrl.checkpoint.provenance import check_resumable, read_record
    from hpcrl.market.scaler import Scaler, fit_scaler
    from hpcrl.monitor.metrics import read_metrics
    from hpcrl.train import build

    check_resumable(run, read_record(run), config, market.sha256)
    manifest = manager.newest()
    portable, rank_state = (None, None) if manifest is None else manager.load(manifest)
    if portable is None:
        console.say("No checkpoint yet: the run starts from its beginning")
        scaler = fit_scaler(market, *market.split_range("train"))
    else:
        check_portable(portable, str(run.portable(portable.get("epoch", 0))))
        scaler = Scaler.from_state(portable["feature_scaler"])
    trainer = build(config, world, market, scaler)
    attempts = [line.get("time/attempt", 1) for line in read_metrics(run.metrics)]
    if portable is not None:
        trainer.restore(portable, rank_state)
        attempts.append(portable["attempt"])
        console.say(f"Resumed after epoch {trainer.epoch}")
        if rank_state is None:
            console.say(
                f"World size was {manifest.world_size}, is {world.size}: weights, moments, schedule and "
                "statistics carry over; environments start new episodes, and the exact course differs"
            )
    trainer.attempt = max(attempts, default=0) + 1
    return trainer
