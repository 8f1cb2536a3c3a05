"""What a training process runs: a new run, a resumed one, or one that starts from another's weights."""

from __future__ import annotations

import os
import shlex
import shutil
import sys
import traceback
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from hpcrl.config.env import HINDSIGHT
from hpcrl.config.load import load_config, one_process, overridden
from hpcrl.config.root import Config, live_changes
from hpcrl.launch.again import FROM_SLURM, LOST_A_PEER, begun_by, go_on
from hpcrl.launch.again import resume_command as job_command
from hpcrl.storage.atomic import check_folder
from hpcrl.storage.run_dir import RunDir
from hpcrl.types import STOPPED_EARLY, HpcrlError, RunFailed
from hpcrl.world.ranks import Ranks, check_size, read_ranks
from hpcrl.world.slurm import job_id, restart_count
from hpcrl.world.tell import red

if TYPE_CHECKING:
    from hpcrl.launch.session import Session
    from hpcrl.market.dataset import Market
    from hpcrl.monitor.console import TrainingConsole
    from hpcrl.monitor.watchdog import Watchdog
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
    run: Path | None = None
    """A folder that ``RunDir.reserve`` made: the run begins there, or goes on if it has begun."""
    take_over: bool = False
    """Go on with a run though another process holds it; that one is fenced off."""


def resolve(request: Request, ranks: Ranks) -> tuple[Config, RunDir | None]:
    """The config that this process trains with, checked against its launcher; touches no data.

    A resumed run takes the launcher's number of ranks: another world size is allowed there. What this job
    began before Slurm started it again is resumed.
    """
    if request.run is not None:
        request = _begun_or_reserved(request)
    if request.resume is not None:
        if request.init is not None:
            raise HpcrlError("--resume goes on with a run, --init starts a new one: give one of them")
        return _resolve_resumed(request, ranks)
    if request.config is None and request.init is None:
        raise HpcrlError("train needs --config FILE (for example yaml/local.yaml), --resume or --init")
    if request.init is not None and not request.init.exists():
        raise HpcrlError(f"--init {request.init}: no such run folder or checkpoint")
    base = None if request.init is None or request.config is not None else _config_of(request.init)
    if request.run is None and (begun := _begun_by_this_job(request)) is not None:
        # The YAML file may be the next experiment's by now: the job goes on with what it began.
        return _resolve_resumed(replace(request, resume=begun, config=None, init=None), ranks)
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
    if request.run is None:
        check_folder(config.checkpoint.dir, "checkpoint.dir = ")
    return config, None


def _begun_by_this_job(request: Request) -> Path | None:
    """The run of a job that Slurm has started again; also where its YAML file is gone."""
    job = job_id(os.environ)
    if job is None or not restart_count(os.environ):
        return None
    return begun_by(job, request.config, request.overrides, request.init)


def _begun_or_reserved(request: Request) -> Request:
    """``--run`` goes on with a run that has begun there."""
    assert request.run is not None
    if request.resume is not None:
        raise HpcrlError(
            "--run begins a run in a folder or goes on with it, --resume goes on: give one of them"
        )
    if not request.run.is_dir():
        raise HpcrlError(f"--run {request.run}: no such folder; hpcrl submit makes one for each run")
    if not RunDir(request.run).config.is_file():
        known = ("jobs", "submission.json", "attempts", "run.lock")
        strangers = [name for name in os.listdir(request.run) if name not in known and name[0] != "."]
        if strangers:
            raise HpcrlError(
                f"--run {request.run}: neither a run nor a folder that hpcrl submit prepared for one: it "
                f"holds {min(strangers)}"
            )
        return request
    return replace(request, resume=request.run, init=None)


def config_named(request: Request) -> Config:
    """The config that the options name, with whatever number of ranks; touches no data."""
    if request.run is not None:
        request = _begun_or_reserved(request)
    if request.resume is not None:
        return _resumed(request)[0]
    base = None if request.init is None or request.config is not None else _config_of(request.init)
    return load_config(request.config, request.overrides, ranks=request.ranks, base=base)


def _resumed(request: Request) -> tuple[Config, RunDir]:
    """The run that goes on, and its config as recorded, with what may change."""
    from hpcrl.checkpoint.provenance import read_record, resumed_tree

    assert request.resume is not None
    run = RunDir.open(request.resume)
    record = read_record(run)
    config = load_config(request.config, request.overrides, base=resumed_tree(run, record))
    recorded = record["data"].get("path", "")
    if not Path(config.market.path).exists() and Path(recorded).is_file():
        # A relative path is one of the folder that the run was started in.
        config = config.model_copy(update={"market": config.market.model_copy(update={"path": recorded})})
    return config, run


def _resolve_resumed(request: Request, ranks: Ranks) -> tuple[Config, RunDir]:
    config, run = _resumed(request)
    size = request.ranks or ranks.size
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
    from hpcrl.world.stop import process_flag

    stop = process_flag()  # before the slow imports: a signal during them must not be lost
    ranks = read_ranks()
    config, run = resolve(request, ranks)
    folder = run.path if run is not None else request.run
    if folder is not None:
        from hpcrl.pbt.population import refuse_other_member

        refuse_other_member(folder, config)

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
    from hpcrl.checkpoint.provenance import check_resumable, read_record
    from hpcrl.launch.session import Session
    from hpcrl.launch.start import begin
    from hpcrl.market.load import load_market
    from hpcrl.monitor.console import TrainingConsole
    from hpcrl.monitor.memory import answered
    from hpcrl.monitor.watchdog import Watchdog
    from hpcrl.world.agree import all_or_none

    console = TrainingConsole(world.rank, config.train.epochs, config.monitor.progress)
    console.rank_line("Setting up...")
    patience = config.monitor.hang_minutes * 60
    folder, begun = (run.path, True) if run is not None else (request.run, False)
    with Watchdog(patience, rank=world.rank) as watchdog, answered(world, config, watchdog, folder, begun):
        watchdog.beat("set-up", 0)
        if stop.agreed(world):  # while torch was loaded; a grace time may not suffice for the set-up
            console.say("Stopped before training began: nothing is lost.")
            if not _job_goes_on(world, run, _why_stopped(world, stop), console) and run is not None:
                console.say(f"To go on: {resume_command(run, config, world)}")
            return STOPPED_EARLY
        all_or_none(world, lambda: _same_on_all(world, run))
        watchdog.beat("data", 0)
        market = all_or_none(world, lambda: load_market(config.market))
        all_or_none(world, lambda: market.require("train", config.episode_steps, config.env.fill_lag))
        watchdog.beat("build", 0)
        trainer = None
        if run is None:
            into = RunDir(request.run.absolute()) if request.run else None
            trainer, run = begin(world, config, market, request.init, into)
        else:
            known = run
            all_or_none(world, lambda: check_resumable(known, read_record(known), config, market.sha256))
        # From here on an older attempt knows that it is one: nothing of the user's can be wrong any more.
        session = Session.open(world, run, config, request.take_over)
    with Watchdog(patience, session.heartbeat, world.rank) as watchdog:
        return _attempt(session, trainer, config, market, stop, console, watchdog)


def _attempt(
    session: Session,
    trainer: Trainer | None,
    config: Config,
    market: Market,
    stop: StopFlag,
    console: TrainingConsole,
    watchdog: Watchdog,
) -> int:
    """Train, tell how it ended, and see to it that the job goes on."""
    from hpcrl.monitor.memory import answered
    from hpcrl.world.memory import OutOfMemory

    world, run = session.world, session.run
    watchdog.beat("restore", 0)
    code, epoch, reason = 1, None, "failed"
    try:
        with answered(world, config, watchdog, run.path):
            code, epoch = _train_in(session, trainer, config, market, stop, console, watchdog)
        reason = _why_stopped(world, stop) if code == STOPPED_EARLY else "finished"
    except Exception as met:
        # Its files are gone, say, because a newer attempt has taken over while it was writing.
        error = session.superseded() or met
        code = error.exit_code if isinstance(error, HpcrlError) else 1
        reason = str(error) if isinstance(error, HpcrlError) else f"{type(error).__name__}: {error}"
        if world.size > 1 and not isinstance(error, HpcrlError) and _lost_a_peer(error):
            reason = LOST_A_PEER
        if isinstance(error, OutOfMemory):
            session.tell_end(code, reason)
        raise error from (None if error is met else met)
    finally:
        session.end(code, epoch, reason)
    if code == STOPPED_EARLY:
        watchdog.beat("requeue", epoch or 0)
        console.say(f"Stopped after epoch {epoch}, all saved.")
        if not _job_goes_on(world, run, reason, console):
            console.say(f"To go on: {resume_command(run, config, world)}")
    return code


def _job_goes_on(world: World, run: RunDir | None, reason: str, console: TrainingConsole) -> bool:
    """Whether Slurm asked for the stop and was answered; on rank 0. The requeue may end this process."""
    by_slurm = world.is_main and reason in FROM_SLURM
    line = go_on(STOPPED_EARLY, run.path if run is not None else None) if by_slurm else ""
    if line:
        console.say(line)
    return bool(line)


def _train_in(
    session: Session,
    trainer: Trainer | None,
    config: Config,
    market: Market,
    stop: StopFlag,
    console: TrainingConsole,
    watchdog: Watchdog,
) -> tuple[int, int]:
    """(exit code, finished epochs) of a claimed attempt; without ``trainer`` the run is resumed."""
    from hpcrl.launch.member import MemberTurns
    from hpcrl.launch.start import resume
    from hpcrl.monitor.sampler import Sampler
    from hpcrl.train import learn

    manager = session.manager(config)
    turns = MemberTurns.of(session, market, stop, console)
    resumed = trainer is None
    if trainer is None:
        trainer = resume(session.world, config, market, session.run, session.source, manager, console)
    trainer.attempt = session.number
    log = session.take_over(trainer.epoch, resumed, config, console.say)
    if config.env.fill_lag == 0:
        console.say(f"WARNING: {HINDSIGHT}")
    if market.made_up:
        console.say(red(f"NO REAL DATA: the bars of {config.market.path} are made up ({market.source})"))
    for line in left_out(market, config):
        console.say(line)
    console.say(f"Run folder: {session.run.path}")
    if turns is not None:
        turns.begin(trainer)
    console.start(trainer.epoch)
    try:
        with Sampler(session.world.device) as sampler:
            if news := sampler.news():
                console.say(news)
            code = learn(trainer, manager, log, stop, console, watchdog, turns, sampler)
    finally:
        console.stop()
    if code != STOPPED_EARLY:
        path = session.run.path
        console.say(f"Finished {trainer.epoch} epochs, {trainer.env_steps:,} env steps: {path}")
    return code, trainer.epoch


def _same_on_all(world: World, run: RunDir | None) -> None:
    """RunFailed where ranks see different runs to go on with: a share that shows a new file late."""
    from hpcrl.world.collectives import gather_objects

    seen = gather_objects(world, None if run is None else str(run.path))
    if len(set(seen)) > 1:
        words = ", ".join(f"rank {rank}: {path or 'none yet'}" for rank, path in enumerate(seen))
        raise RunFailed(f"the ranks do not see the same run to go on with ({words}); start the job once more")


def _why_stopped(world: World, stop: StopFlag) -> str:
    """The signal that asked for it, on whichever rank it arrived, or the run's own reason."""
    from hpcrl.world.collectives import gather_objects

    names = gather_objects(world, stop.why or (stop.signal.name if stop.signal is not None else None))
    return next((name for name in names if name), "stopped")


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

    if world.launcher == "slurm":  # a bare hpcrl train would be one process
        return job_command(run.path)
    sets = live_changes(recorded_config(read_record(run)), config)
    options = [word for item in sets for word in ("--set", item)]
    options += ["--ranks", str(world.size)] if world.size > 1 else []
    return shlex.join([*_program(), "train", "--resume", str(run.path), *options])


def _program() -> list[str]:
    """How this program was called: ``hpcrl`` where the shell finds it, else by its path."""
    program = Path(sys.argv[0])
    if program.name != "hpcrl":
        return [sys.executable, "-m", "hpcrl"]
    return ["hpcrl"] if shutil.which("hpcrl") == str(program) else [str(program)]
