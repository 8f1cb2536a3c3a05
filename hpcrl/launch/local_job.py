"""``hpcrl submit --local``: the jobs of a plan on this machine, through submitit's local executor."""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import signal
import socket
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import submitit

from hpcrl.config.site import Kind, seconds_of
from hpcrl.launch import task
from hpcrl.launch.plan import Plan, expanded
from hpcrl.launch.submit import cleaned_environment, new_record, prepared, write_record
from hpcrl.storage.atomic import write_error

_POLL_SECONDS = 0.1


def run_local(plan: Plan) -> tuple[Path, int]:
    """Run the jobs one after the other and wait; the run folder and the exit code of the last that ran."""
    with prepared(plan) as run:
        write_record(run, new_record(plan, run))  # no jobs: Slurm knows nothing of these
    code = 0
    for kind in plan.chain:
        code = _run(plan, kind, run)
        if code:
            break
    return run, code


def _run(plan: Plan, kind: Kind, run: Path) -> int:
    """One job: its exit code, the largest of its ranks'; 1 for a rank that ended without a word."""
    job = plan.site.job(kind)
    ranks = plan.config.train.world_size if kind == "train" else 1
    assert job.time is not None
    executor = submitit.LocalExecutor(run / "jobs", python=shlex.quote(str(plan.python)))
    executor.update_parameters(
        tasks_per_node=ranks,
        timeout_min=seconds_of(job.time) / 60,
        signal_delay_s=plan.site.signal_seconds,
        stderr_to_stdout=True,
        **_gpus(ranks),
    )
    try:
        with _environment(plan, kind, run, ranks):
            local: submitit.Job = executor.submit(task.run, *plan.arguments(kind, run))
    except OSError as error:
        raise write_error(run / "jobs", error) from None
    print(f"{kind}: process {local.job_id} here, log {local.paths.stdout}", file=sys.stderr, flush=True)
    with _stops_handed_on(int(local.job_id)):
        while not local.done():
            time.sleep(_POLL_SECONDS)
    codes = [_code(local.task(rank)) for rank in range(ranks)]
    if any(codes):
        rank = codes.index(max(codes))
        log = local.task(rank).paths.stdout
        print(f"{kind} ended with exit code {max(codes)}: {last_words(log)} (log: {log})", file=sys.stderr)
    return max(codes)


def _code(rank: submitit.Job) -> int:
    if not rank.paths.result_pickle.exists():
        return 1
    outcome = rank.exception()
    return 1 if outcome is not None else int(rank.result())


def last_words(log: Path) -> str:
    """The last error that a log tells, else its last line."""
    try:
        lines = log.read_text(errors="replace").splitlines()
    except OSError:
        return "it left no log"
    told = [re.sub(r"\x1b\[[\d;]*m", "", line).strip() for line in lines if line.strip()]
    told = [
        line for line in told if not re.match(r"(end|start) \d{4}-|submitit |srun: |slurmstepd: ", line)
    ] or told
    errors = [line for line in told if re.match(r"(error|fatal)\b|\w*Error\b", line)]
    return (errors or told or ["its log is empty"])[-1].removeprefix("error: ")[:300]


def _gpus(ranks: int) -> dict[str, Any]:
    """The executor hides all GPUs but those that it is told."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    numbers = [int(part) for part in visible.split(",") if part.strip().isdigit()] or list(range(ranks))
    return {"gpus_per_node": min(ranks, len(numbers)), "visible_gpus": tuple(numbers)}


@contextlib.contextmanager
def _environment(plan: Plan, kind: Kind, run: Path, ranks: int) -> Iterator[None]:
    """What the job's processes start with."""
    threads = str(max(1, len(os.sched_getaffinity(0)) // ranks))
    added = {"HPCRL_RUN": str(run), "HPCRL_REQUEUE": "never", "COLUMNS": "120"}
    added["OMP_NUM_THREADS"] = os.environ.get("OMP_NUM_THREADS", threads)
    if kind == "stage" and plan.site.env_file is not None:
        added["HPCRL_ENV_FILE"] = str(Path(expanded(plan.site.env_file)).absolute())
    if ranks > 1:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            added["MASTER_PORT"] = str(free.getsockname()[1])
        added |= {"MASTER_ADDR": "127.0.0.1", "GLOO_SOCKET_IFNAME": "lo"}
    # A terminal's Ctrl-C must not end the executor's own process before the ranks have saved.
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with cleaned_environment():
            os.environ.update(added)
            yield
    finally:
        signal.signal(signal.SIGINT, before)


@contextlib.contextmanager
def _stops_handed_on(process: int) -> Iterator[None]:
    """Whatever asks this command to stop asks the job, which saves and ends; the command waits for it."""

    def hand_on(_number: int, _frame: Any) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(process, signal.SIGTERM)

    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2, signal.SIGHUP)
    before = {number: signal.signal(number, hand_on) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
