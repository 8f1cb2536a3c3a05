"""A job that was stopped or crashed goes on: it is requeued, or a successor is submitted, or it is left.

Rank 0 calls ``go_on`` after a clean stop; job scripts run ``python -m hpcrl.launch.again CODE [ARGUMENTS]``
after srun has ended with a crash or a hang (ARGUMENTS: those of hpcrl train, which tell the run), and after a
clean stop in case that rank 0 could not do it: it may live in a container without Slurm's commands. Never
started again: a job that was cancelled, an attempt that a newer one has superseded, and one whose rank 0 says
that it failed for a reason that would be the same next time, as a rank says that finds no memory left. One
that is killed for its memory is a crash like others: what grew too large may fit the next time, and three
attempts without a checkpoint end the run.

HPCRL_REQUEUE: requeue (default), successor (where the site forbids requeueing), never. Nothing here knows
torch, and nothing raises.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from hpcrl.storage.atomic import read_json
from hpcrl.storage.attempts import FRUITLESS, AttemptRecord, read_attempts, run_of_job
from hpcrl.types import HUNG, STOPPED_EARLY, HpcrlError
from hpcrl.world.slurm import SlurmDown, job_id, requeue, restart_count, show_job

POLICIES = ("requeue", "successor", "never")
LOST_A_PEER = "lost another rank"
"""How rank 0 says, in end.json, that it only followed another rank's crash."""
MADE_ROOM = "made room"
"""How a member of a population says, in end.json, that others have its place for now."""
FROM_SLURM = ("SIGTERM", "SIGUSR2", MADE_ROOM)
"""As end.json names them: the signals by which Slurm stops a job that is to go on (Ctrl-C ends it), and the
member that wants its turn again."""
# A controller that is started anew answers again after some seconds; a job that Slurm ends has KillWait (30 s
# by default), one that crashed has all the time of its limit.
_PATIENCE_SECONDS = 60.0
_PAUSE_SECONDS = 2.0


class _Left(Exception):
    """The job is not started again; the message says why."""


class _Cared(Exception):
    """Nothing is to be done; the message says who goes on."""


def go_on(code: int, run: Path | None, environ: Mapping[str, str] = os.environ, *, told: bool = False) -> str:
    """Have this job go on after the exit code, if it is to; a line that says what was done, "" outside Slurm.

    After a requeue Slurm ends this job's processes at once: everything must be saved before. ``told``: no
    line about a job that is left as it is.
    """
    job = job_id(environ)
    if job is None or code in (0, 1, 2):
        return ""
    try:
        return _go_on(code, run, job, environ)
    except _Cared as cared:
        return "" if told else f"job {job}: {cared}"
    except _Left as left:
        return "" if told else f"job {job} is not started again: {left}"
    except Exception as error:
        return f"job {job} could not be started again: {error}; to go on: {resume_command(run)}"


def _go_on(code: int, run: Path | None, job: str, environ: Mapping[str, str]) -> str:
    policy = environ.get("HPCRL_REQUEUE") or "requeue"
    if policy not in POLICIES:
        raise HpcrlError(f"HPCRL_REQUEUE = {policy!r} is none of {', '.join(POLICIES)}")
    restarts = restart_count(environ)
    if run is not None:
        _check_run(code, run, job, restarts)
    elif code != STOPPED_EARLY and restarts + 1 >= FRUITLESS:
        raise _Left(f"{restarts + 1} starts in a row crashed before training began; see its log")
    preempted, refused = _patiently(lambda: _ask_slurm(policy, run, job, restarts))
    why = f"preempted; {said_of(code)}" if preempted else said_of(code)
    if policy == "requeue" and not refused:
        return f"job {job} is put back into the queue ({why}); it goes on from its newest checkpoint"
    if run is None or not (run / "submission.json").is_file():
        raise HpcrlError(f"{refused}a successor can be submitted only for a run that hpcrl submit made")
    from hpcrl.launch.submit import submit_again

    new = submit_again(run, environ)
    return f"{refused}job {new} is submitted to go on after job {job} ({why})"


def _ask_slurm(policy: str, run: Path | None, job: str, restarts: int) -> tuple[bool, str]:
    """Requeue the job where that is the policy. Whether it is preempted, and why the requeue was refused.

    SlurmDown: to be tried again as a whole. A requeue whose answer was lost may have been carried out, and a
    second one would then be refused, or would end the start that came of the first.
    """
    preempted = _check_slurm(job, restarts)
    if policy == "never":
        raise _Left(f"HPCRL_REQUEUE = never; to go on: {resume_command(run)}")
    if policy == "requeue":
        try:
            requeue(job)
        except SlurmDown:
            raise
        except HpcrlError as error:
            _check_slurm(job, restarts)
            return preempted, f"{error}; "
    return preempted, ""


def _check_run(code: int, run: Path, job: str, restarts: int) -> None:
    """_Left where the run's own files say that this job must not, or need not, go on."""
    with contextlib.suppress(HpcrlError, TypeError, KeyError):
        for other in read_json(run / "submission.json")["jobs"]:
            if other["successor_of"] == job:
                raise _Cared(f"its successor, job {other['id']}, goes on")
    attempts = read_attempts(run)
    own = [attempt for attempt in attempts if (attempt.job, attempt.restart_count) == (job, restarts)]
    if own and own[-1].number < attempts[-1].number:
        raise _Left(f"attempt {own[-1].number} of {run} is superseded by attempt {attempts[-1].number}")
    if own and (reason := _failed(own[-1])):
        raise _Left(f"{reason}; once that is mended: {resume_command(run)}")
    end = (own[-1].end if own else None) or {}
    if end.get("code") == STOPPED_EARLY and end.get("reason") not in FROM_SLURM:
        raise _Left(f"{end.get('reason')} stopped it; to go on: {resume_command(run)}")
    starts = _vain_starts(run, job, restarts, attempts)
    if code != STOPPED_EARLY and starts >= FRUITLESS:
        command = resume_command(run)
        raise _Left(f"{starts} starts in a row crashed before training began; see its log, then: {command}")


def _failed(attempt: AttemptRecord) -> str:
    """Why rank 0 failed, if it failed first; srun's code may be that of ranks that it killed then."""
    end = attempt.end or {}
    reason = str(end.get("reason") or "").partition("\n")[0]
    return reason if end.get("code") in (1, 2) and reason != LOST_A_PEER else ""


def _vain_starts(run: Path, job: str, restarts: int, attempts: Sequence[AttemptRecord]) -> int:
    """How many starts in a row, this one the last, have ended before an attempt was claimed."""
    begun = {(attempt.job, attempt.restart_count) for attempt in attempts}
    starts = [(job, count) for count in range(restarts, -1, -1)]
    with contextlib.suppress(HpcrlError, TypeError, KeyError):
        before = {other["id"]: other["successor_of"] for other in read_json(run / "submission.json")["jobs"]}
        while (older := before.pop(starts[-1][0], None)) is not None:
            starts.append((older, 0))
    return next((k for k, start in enumerate(starts) if start in begun), len(starts))


def _check_slurm(job: str, restarts: int) -> bool:
    """Whether the job is preempted. _Left unless it runs, ran into its time limit, or is preempted; _Cared
    where it is in the queue again."""
    deadline = time.monotonic() + _PATIENCE_SECONDS
    while True:
        record = show_job(job)
        state = record.get("JobState", "unknown")
        if state != "SIGNALING" or time.monotonic() > deadline:  # only for a moment
            break
        time.sleep(0.2)
    count = record.get("Restarts", "")
    if (count.isdigit() and int(count) > restarts) or state in ("PENDING", "REQUEUED", "REQUEUE_HOLD"):
        raise _Cared("it is in the queue again, and goes on from its newest checkpoint")
    preempted = record.get("PreemptTime", "None")
    if state in ("RUNNING", "SIGNALING", "SUSPENDED", "STOPPED", "RESIZING"):
        return preempted != "None"  # it runs for its partition's GraceTime
    if record.get("Reason") == "TimeLimit" or state == "TIMEOUT":
        return False
    if state == "PREEMPTED" or (preempted != "None" and preempted == record.get("EndTime")):
        return True
    # A job that is being cancelled shows only that it is COMPLETING; requeued now, it would rise again.
    what = "it was cancelled" if state in ("COMPLETING", "CANCELLED") else f"Slurm says {state}"
    raise _Left(what)


def _patiently(ask: Callable[[], Any]) -> Any:
    """``ask`` until Slurm answers, or patience is at its end."""
    deadline = time.monotonic() + _PATIENCE_SECONDS
    while True:
        try:
            return ask()
        except SlurmDown:
            if time.monotonic() > deadline:
                raise
            time.sleep(_PAUSE_SECONDS)


def said_of(code: int) -> str:
    """An exit code of srun's in words."""
    if code == STOPPED_EARLY:
        return "stopped, all saved"
    if code == HUNG:
        return f"exit code {code}: a rank hung, its watchdog ended it"
    if code > 128:
        with contextlib.suppress(ValueError):
            name = signal.Signals(code - 128).name
            memory = ", as it happens when memory runs out" if name == "SIGKILL" else ""
            return f"exit code {code}: a rank was ended by {name}{memory}"
    return f"exit code {code}: a rank crashed"


def resume_command(run: Path | None, job: str | None = "") -> str:
    """What to type, in any folder, to go on with a run in the way that its newest attempt was begun.

    ``job``: of a run without attempts, None if it was not trained by Slurm.
    """
    if run is None:
        return f"{shlex.join(['sbatch', _script()])} --resume RUN"
    run = run.absolute()
    newest = None
    with contextlib.suppress(HpcrlError):
        newest = next(reversed(read_attempts(run)), None)
    if newest is not None:
        job = newest.job
    resume = ["--resume", str(run)]
    if (run / "submission.json").is_file():
        if not _is_local(run):
            return shlex.join(["hpcrl", "submit", *_submit_options(run), *resume])
        if newest is None or job is None:
            return shlex.join(["hpcrl", "submit", "--local", *resume])
    if job is None:
        ranks = newest.world_size if newest else 1
        return shlex.join(["hpcrl", "train", *(["--ranks", str(ranks)] if ranks > 1 else []), *resume])
    return shlex.join(["sbatch", *(_geometry(newest) if newest else []), _script(), *resume])


def _script() -> str:
    """train.sbatch of the installation, or where it is in the repository."""
    for root in (os.environ.get("HPCRL_ROOT"), Path(__file__).parents[2]):
        script = Path(root or "") / "slurm" / "train.sbatch"
        if root and script.is_file():
            return str(script.absolute())
    return "slurm/train.sbatch"


def _geometry(attempt: AttemptRecord) -> list[str]:
    """sbatch options for what an attempt ran on, unless that is the script's own: one node of eight GPUs."""
    ranks = attempt.world_size
    nodes = attempt.nodes or max(ranks // 8, 1)
    if ranks % nodes:
        nodes = 1
    each = ranks // nodes
    gpus = attempt.gpus_per_node if attempt.nodes else each  # older records do not tell
    if (nodes, each, gpus) == (1, 8, 8):
        return []
    gres = f"gpu:{gpus}" if gpus else "none"
    return [f"--nodes={nodes}", f"--ntasks-per-node={each}", f"--gres={gres}"]


def _is_local(run: Path) -> bool:
    """``hpcrl submit --local`` made it: Slurm has no job of it."""
    with contextlib.suppress(HpcrlError, KeyError):
        return not read_json(run / "submission.json")["jobs"]
    return False


def _submit_options(run: Path) -> list[str]:
    """The evaluation that is to follow. The site is the one that the run was submitted with."""
    with contextlib.suppress(HpcrlError, TypeError, KeyError):
        if any(job["kind"] == "evaluate" for job in read_json(run / "submission.json")["jobs"]):
            return ["--chain", "train,evaluate"]
    return []


def run_of(arguments: Sequence[str], environ: Mapping[str, str] = os.environ) -> Path | None:
    """The run that this job trains: HPCRL_RUN, --run or --resume, else the one that it began."""
    given = environ.get("HPCRL_RUN") or _option(arguments, "--run") or _option(arguments, "--resume")
    if given:
        return Path(given)
    job = job_id(environ)
    if job is None:
        return None
    config, init = _option(arguments, "--config"), _option(arguments, "--init")
    overrides = [value for name, value in _options(arguments) if name == "--set"]
    return begun_by(job, Path(config) if config else None, overrides, Path(init) if init else None)


def begun_by(job: str, config: Path | None, overrides: Sequence[str], init: Path | None) -> Path | None:
    """The newest run of this job, where runs with these options of hpcrl train are kept.

    Without the YAML file, which may be gone or changed by now, where they are kept by default.
    """
    from hpcrl.config.load import load_config
    from hpcrl.launch.job import _config_of

    for path in dict.fromkeys((config, None)):
        with contextlib.suppress(Exception):  # the run is of help, no more
            base = None if init is None or config is not None else _config_of(init)
            folder = Path(load_config(path, overrides, base=base).checkpoint.dir)
            if (found := run_of_job(folder, job)) is not None:
                return found
    return None


def _option(arguments: Sequence[str], name: str) -> str | None:
    return next((value for option, value in reversed(_options(arguments)) if option == name), None)


def _options(arguments: Sequence[str]) -> list[tuple[str, str]]:
    """(option, value) of ``--option value`` and ``--option=value``."""
    found = []
    for k, word in enumerate(arguments):
        name, equals, value = word.partition("=")
        if name.startswith("--"):
            found.append((name, value if equals else (arguments[k + 1] if k + 1 < len(arguments) else "")))
    return found


def main(arguments: Sequence[str]) -> None:
    """Prints the line. Ends well whatever happens: the job's exit code is srun's."""
    try:
        code = int(arguments[0])
    except (IndexError, ValueError):
        print("usage: python -m hpcrl.launch.again CODE [ARGUMENTS of hpcrl train]", file=sys.stderr)
        return
    run = None
    with contextlib.suppress(OSError, HpcrlError):
        run = run_of(arguments[1:])
    # After a clean stop rank 0 has said already why a job is left as it is.
    if line := go_on(code, run, told=code == STOPPED_EARLY):
        print(line, flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
