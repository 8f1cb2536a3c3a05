"""``hpcrl verify``: what would go wrong in the night, before it does: pass, warn or fail, why, the fix.

Quick checks look; the others build the policy, let ranks meet, and train one small epoch by the code that
trains. Everything that is written goes into a folder of its own where runs will be, and is removed.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

import hpcrl
from hpcrl.config.root import Config
from hpcrl.launch.job import Request as Training
from hpcrl.launch.job import config_named
from hpcrl.types import HpcrlError
from hpcrl.verify import cluster, data, environment, places
from hpcrl.verify.finding import Finding, Report, Status, Trouble, examine
from hpcrl.world.slurm import job_id

MODEL_BYTES = 16
"""Of a checkpoint, per parameter: weights and two moments in float32, and some."""
SETTLED = ("config", "data", "gpu", "population")
"""By them training would fail wherever it starts, or go on unnoticed on CPUs. Other faults end no job: it may
train in spite of them, or on another node, as HPCRL_REQUEUE says."""
_COLOURS = {"pass": "green", "warn": "yellow", "fail": "bold red"}


@dataclass(frozen=True)
class Request:
    training: Training = field(default_factory=Training)
    """The options of hpcrl train."""
    site: Path | None = None
    quick: bool = False
    population: bool = False
    """The config is to be a population's."""


def run_checks(request: Request) -> Iterator[Finding]:
    """Findings in their order, each as soon as it is there."""
    yield examine("python", environment.check_python)
    yield examine("packages", environment.check_packages)
    yield examine("module", lambda: environment.check_module(dict(os.environ)))
    found: list[Config] = []
    yield examine("config", lambda: _read_config(request, found))
    if not found:
        return
    config = found[0]
    yield examine("storage", lambda: places.check_storage(config))
    yield examine("clock", lambda: _clock(config))
    market: list[Any] = []
    yield examine("data", lambda: _data(config, market))
    size = Path(config.market.path).stat().st_size if market else 0
    yield examine("scratch", lambda: places.check_scratch(config, size))
    if job_id() is None:  # a job that trains gets no keys, and needs none
        yield examine("database", lambda: data.check_database(Path.cwd()))
    yield examine("slurm", lambda: cluster.check_slurm(config, request.site))
    yield from _on_the_device(request, config, market[0] if market else None)


def _read_config(request: Request, found: list[Config]) -> str:
    try:
        found.append(config_named(request.training))
    except HpcrlError as error:
        raise Trouble(str(error), "the message says what would be right") from None
    named, config = request.training, found[0]
    source = named.config or named.resume or named.init or "the defaults"
    begun = named.run or named.resume or (config.pbt.dir if request.population else None)
    if begun is not None:  # there everything is written
        place = config.checkpoint.model_copy(update={"dir": str(begun)})
        found[0] = config.model_copy(update={"checkpoint": place})
    return f"{source}, sha256 {config.digest()[:12]}"


def _clock(config: Config) -> str:
    with places.probe_folder(Path(config.checkpoint.dir)) as folder:
        return environment.check_clock(folder)


def _data(config: Config, found: list[Any]) -> str:
    market = data.read_data(config)
    found.append(market)
    return data.check_data(config, market)


def _on_the_device(request: Request, config: Config, market: Any) -> Iterator[Finding]:
    from hpcrl.verify import devices  # torch from here on

    yield examine("gpu", lambda: devices.check_gpu(config))
    yield examine("cuda", lambda: devices.check_cuda(config))
    yield examine("bf16", lambda: devices.check_bf16(config))
    if market is not None and request.population:
        from hpcrl.verify.population import check_population

        yield examine("population", lambda: check_population(config, market))
    if not request.quick:
        yield from _by_training(request, config, market)


def _by_training(request: Request, config: Config, market: Any) -> Iterator[Finding]:
    from hpcrl.verify.learning import Trial
    from hpcrl.verify.ranks import check_ranks
    from hpcrl.world.ranks import start_world

    yield examine("rooms", environment.check_rooms)
    yield examine("ranks", lambda: check_ranks(config))
    try:
        with places.probe_folder(Path(config.checkpoint.dir)) as folder:
            world = start_world(config.engine.device)
            trial = Trial(config, market, world, folder)
            yield examine("model", trial.within_memory(trial.check_model))
            yield examine("engine", trial.within_memory(trial.check_engine))
            yield examine("checkpoint", trial.within_memory(trial.check_checkpoint))
    except Trouble as trouble:
        yield Finding(check="model", status="fail", found=trouble.found, fix=trouble.fix)
        return
    except HpcrlError as error:  # no device, or not the one that was granted
        fix = "see the checks of the GPU and of Slurm"
        yield Finding(check="model", status="fail", found=str(error), fix=fix)
        return
    members = config.pbt.members if request.population else 1
    size = trial.checkpoint_bytes
    yield examine("room", lambda: places.check_room(config, size, members))


def verify(request: Request, as_json: bool) -> int:
    """Print every finding; the exit code: 1 where one failed, else 0. In a job: one of ``SETTLED``."""
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))  # what was written is removed
    findings: list[Finding] = []
    lines = Console(highlight=False)
    for finding in run_checks(request):
        findings.append(finding)
        if not as_json:
            _print(lines, finding)
    failed = [finding for finding in findings if finding.status == "fail"]
    warned = [finding for finding in findings if finding.status == "warn"]
    if as_json:
        print(report(findings).model_dump_json(indent=2))
    else:
        seconds = sum(finding.seconds for finding in findings)
        said = f"{len(findings)} checks, {len(warned)} warnings, {len(failed)} failed, {seconds:.1f} s"
        lines.print(Text(said, style="bold red" if failed else "bold"))
    if job_id() is None or any(finding.check in SETTLED for finding in failed):
        return 1 if failed else 0
    if failed and not as_json:
        print("What failed may be this node's or this moment's: training is tried", flush=True)
    return 0


def report(findings: list[Finding]) -> Report:
    """As docs/verify.schema.json says."""
    seen = {finding.status for finding in findings}
    worst: Status = "fail" if "fail" in seen else "warn" if "warn" in seen else "pass"
    return Report(
        hpcrl=hpcrl.__version__,
        python=sys.version.split()[0],
        status=worst,
        findings=tuple(findings),
    )


def _print(console: Console, finding: Finding) -> None:
    """On a pipe one line, and one for the fix, however long."""
    if not console.is_terminal:
        fix = f"\n     -> {finding.fix}" if finding.fix else ""
        print(f"{finding.status} {finding.check}: {finding.found}{fix}", flush=True)
        return
    row = Table.grid(padding=(0, 1))
    row.add_column(width=4)
    row.add_column(width=10)
    row.add_column(overflow="fold")
    text = Text(finding.found)
    if finding.fix:
        text.append(f"\n-> {finding.fix}", style="italic")
    row.add_row(Text(finding.status, style=_COLOURS[finding.status]), finding.check, text)
    console.print(row)
