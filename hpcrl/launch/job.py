"""What a training process runs: a new run, a resumed one, or one that starts from another's weights."""

from __future__ import annotations

import os
import shlex
import shutil
import sys
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from hpcrl.config.env import HINDSIGHT
from hpcrl.config.load import load_config, one_process, overridden
from hpcrl.config.root import Config, live_changes
from hpcrl.storage.run_dir import RunDir
from hpcrl.types import HpcrlError
from hpcrl.world.ranks import Ranks, check_size, read_ranks
from hpcrl.world.tell import red

if TYPE_CHECKING:
    from hpcrl.market.dataset import Market
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
    config = load_config(request.config, request.overrides, base=record["config"])
    recorded = record["data"].get("path", "")
    if not Path(config.market.path).exists() and Path(recorded).is_file():
        # A relative path is one of the folder that the run was started in.
        config = config.model_copy(update={"market": config.market.model_copy(update={"path": recorded})})
    if _world_size_said(request) and config.train.world_size != size:
        raise HpcrlError(
            f"train.world_size = {config.train.world_size} (GPU_COUNT or --set), but {size} ranks were "
            "started; a resumed run takes the launcher's number: leave world_size out, or start that many"
        )
    sizes = {"train": config.train.model_copy(update={"world_size": size})}
    return config.model_copy(update=sizes), run


def _world_size_said(request: Request) -> bool:
    return overridden(request.overrides, "train.world_size") or bool(os.environ.get("GPU_COUNT"))


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
    except Exception as error:
        code = 1
        if world.size > 1 and _lost_a_peer(error):
            print(
                f"error: rank {world.rank}: lost another rank, see its message", file=sys.stderr, flush=True
            )
        else:
            traceback.print_exc()
    stop_world(world, code)
    return code


def _lost_a_peer(error: Exception) -> bool:
    """gloo and nccl tell of a dead rank by a long text from their C++ side."""
    import torch.distributed as dist

    text = str(error).lower()
    signs = ("connection closed by peer", "connection reset by peer", "socket", "timed out waiting")
    return isinstance(error, dist.DistError) or any(sign in text for sign in signs)


def _train(world: World, config: Config, run: RunDir | None, request: Request, stop: StopFlag) -> int:
    from hpcrl.checkpoint.manager import CheckpointManager
    from hpcrl.launch.start import begin, resume
    from hpcrl.market.load import load_market
    from hpcrl.monitor.console import TrainingConsole
    from hpcrl.monitor.metrics import MetricsFile
    from hpcrl.storage.lock import hold
    from hpcrl.train import STOPPED_EARLY, learn
    from hpcrl.world.agree import all_or_none

    console = TrainingConsole(world.rank, config.train.epochs, config.monitor.progress)
    console.rank_line("Setting up...")
    market = all_or_none(world, lambda: load_market(config.market))
    all_or_none(world, lambda: market.require("train", config.episode_steps, config.env.fill_lag))
    if request.resume is None:
        trainer, run = begin(world, config, market, request.init)
    assert run is not None
    lock = all_or_none(world, lambda: hold(run.lock) if world.is_main else None)
    manager = CheckpointManager(run, world, config.checkpoint.keep_rolling)
    if request.resume is not None:
        trainer = resume(world, config, market, run, manager, console)
    if config.env.fill_lag == 0:
        console.say(f"WARNING: {HINDSIGHT}")
    if market.made_up:
        console.say(red(f"NO REAL DATA: the bars of {config.market.path} are made up ({market.source})"))
    for line in left_out(market, config):
        console.say(line)
    log = all_or_none(world, lambda: MetricsFile(run.metrics, trainer.epoch) if world.is_main else None)
    console.say(f"Run folder: {run.path}")
    console.start(trainer.epoch)
    try:
        code = learn(trainer, manager, log, stop, console)
    finally:
        console.stop()
    if lock is not None:
        lock.close()
    if code == STOPPED_EARLY:
        command = resume_command(run, config, world)
        console.say(f"Stopped after epoch {trainer.epoch}, all saved. To go on: {command}")
    else:
        console.say(f"Finished {trainer.epoch} epochs, {trainer.env_steps:,} env steps: {run.path}")
    return code


def left_out(market: Market, config: Config) -> list[str]:
    """A line for every symbol that is too short to be trained on."""
    if config.env.assets == "all":
        return []
    lo, hi = market.split_range("train")
    first, last = market.first_bar_S.clip(min=lo), market.last_bar_S.clip(max=hi - 1)
    bars = (last - first + 1).clip(min=0)
    return [
        f"WARNING: {symbol} is left out of training: {there} of its bars lie in the train split, an episode "
        f"needs {config.episode_steps + 1}"
        for symbol, there in zip(market.symbols, bars.tolist(), strict=True)
        if there < config.episode_steps + 1
    ]


def resume_command(run: RunDir, config: Config, world: World) -> str:
    """What to type to go on, with the live keys that were changed on the command line."""
    from hpcrl.checkpoint.provenance import read_record, recorded_config

    sets = live_changes(recorded_config(read_record(run)), config)
    options = [word for item in sets for word in ("--set", item)]
    if world.launcher == "slurm":  # a bare hpcrl train would be one process
        start = ["sbatch", "slurm/train.sbatch"]
    else:
        start = [*_program(), "train"]
        options += ["--ranks", str(world.size)] if world.size > 1 else []
    return shlex.join([*start, "--resume", str(run.path), *options])


def _program() -> list[str]:
    """How this program was called: ``hpcrl`` where the shell finds it, else by its path."""
    program = Path(sys.argv[0])
    if program.name != "hpcrl":
        return [sys.executable, "-m", "hpcrl"]
    return ["hpcrl"] if shutil.which("hpcrl") == str(program) else [str(program)]
