"""Why an attempt, or a job that never came to one, ended: its end.json, Slurm's word, its log, in this order.

An attempt that was killed wrote no end.json. Of a job that was requeued Slurm says no more than that, so the
log tells what went before. Knows no torch, and reads no file but a log.
"""

from __future__ import annotations

import re
import shlex
import signal
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hpcrl.launch.accounting import JobState, Start
from hpcrl.launch.again import LOST_A_PEER, MADE_ROOM
from hpcrl.launch.logs import LogWords, named_log, read_words
from hpcrl.types import HUNG, STOPPED_EARLY

_SIGNALS = {
    "SIGTERM": "it was told to stop (TERM)",
    "SIGUSR2": "its time limit came near",
    "SIGINT": "it was interrupted (Ctrl-C)",
    "SIGHUP": "its terminal was closed",
    MADE_ROOM: "it has made room for other members of its population",
}
# Of a log, for jobs that Slurm has forgotten.
_DUE_TO = {
    "DUE TO TIME LIMIT": "time_limit",
    "DUE TO PREEMPTION": "preempted",
    "DUE TO JOB REQUEUE": "requeued",
    "DUE TO NODE FAILURE": "node_failure",
    "CANCELLED AT": "cancelled",
}
_STATES = {
    "CANCELLED": "cancelled",
    "TIMEOUT": "time_limit",
    "DEADLINE": "time_limit",
    "NODE_FAIL": "node_failure",
    "BOOT_FAIL": "node_failure",
    "OUT_OF_MEMORY": "out_of_memory",
    "PREEMPTED": "preempted",
    "REQUEUED": "requeued",
}
_TEXTS = {
    "cancelled": "it was cancelled",
    "time_limit": "its time limit was reached",
    "preempted": "it was preempted",
    "requeued": "it was put back into the queue",
    "node_failure": "its node failed",
    "out_of_memory": "it ran out of memory",
}
_KILLED = "SIGKILL: by hand, or by the system where memory ran out"
_MEMORY = re.compile(
    r"out of memory|outofmemory|oom[-_ ]kill|memory limit|can't allocate memory|MemoryError", re.I
)


@dataclass(frozen=True)
class Cause:
    """How an attempt, or a job that never came to one, ended."""

    kind: str
    """finished, cancelled, time_limit, preempted, requeued, node_failure, out_of_memory, crashed, hung,
    superseded, fruitless, mistake, failed, no_result, never_started, dependency, stopped, lost."""
    text: str
    """For people, without a full stop."""
    saved: bool = False
    """All was saved when it ended."""
    advice: str = ""
    """Of the attempt itself, where it had any."""


def why_ended(
    end: dict[str, Any] | None, slurm: JobState | Start | None, words: LogWords, who: str | None = None
) -> Cause:
    """Of one attempt. ``slurm``: the job's word, of this start of it; ``who`` cancelled it."""
    if end is not None and end.get("reason") != LOST_A_PEER:
        return _of_end(end, slurm, words, who)
    cause = _of_killed(slurm, words, who)
    left = words.left.partition("; ")[0]
    if not left or cause.kind == "cancelled":
        return cause
    return Cause(cause.kind, f"{cause.text}; not started again: {left}")


def _of_killed(slurm: JobState | Start | None, words: LogWords, who: str | None) -> Cause:
    """Of an attempt that could not say how it ended."""
    code = (slurm.exit_code if slurm is not None else 0) or words.code
    kind = _STATES.get(slurm.state, "") if slurm is not None else ""
    due = _due(words)
    if "hangs: " in words.error or code == HUNG:
        return Cause("hung", words.error.partition("; where")[0] or "a rank hung, and its watchdog ended it")
    if kind == "out_of_memory" or (_MEMORY.search(words.error) and kind in ("", "requeued")):
        return Cause("out_of_memory", _with("it ran out of memory", words.error))
    if kind in ("", "requeued") and due != "requeued":  # of a requeued start, Slurm says no more than that
        kind = due or kind
    if kind in ("time_limit", "preempted", "node_failure", "cancelled"):
        if kind == "node_failure":
            return Cause(kind, _node_failed(slurm))
        by = _by(who) if kind == "cancelled" else ""
        return Cause(kind, f"{_TEXTS[kind]}{by} before it could save")
    if words.crash or (code and code > 2):
        return Cause("crashed", _with(_crash(code, words), words.error))
    if words.error:
        return Cause("mistake" if code == 2 else "failed", words.error)
    if kind or due:
        return Cause(kind or due, f"{_TEXTS[kind or due]} before it could save")
    if slurm is not None and slurm.state in ("COMPLETED", "FAILED"):
        return Cause(
            "no_result", f"its job ended with exit code {code} and left no result: a process ended itself"
        )
    return Cause("lost", "it ended without a word")


def _due(words: LogWords) -> str:
    """To what Slurm's own stars in the log say that it was; "" without them."""
    return next((kind for word, kind in _DUE_TO.items() if word in words.slurm), "")


def _of_end(end: dict[str, Any], slurm: JobState | Start | None, words: LogWords, who: str | None) -> Cause:
    code, reason = end.get("code"), str(end.get("reason") or "")
    if code == 0:
        return Cause("finished", "finished", saved=True)
    if code == STOPPED_EARLY:
        kind = _STATES.get(slurm.state, "") if slurm is not None else ""
        if kind in ("", "requeued"):
            asked = "time_limit" if reason == "SIGUSR2" else _due(words) if reason == "SIGTERM" else ""
            kind = "preempted" if words.preempted else asked or "stopped"
        own = kind == "stopped" or (kind == "time_limit" and reason == "SIGUSR2")
        text = _SIGNALS.get(reason, reason) if own else _TEXTS[kind]
        text = _node_failed(slurm) if kind == "node_failure" else text
        by = _by(who) if kind == "cancelled" else ""
        return Cause(kind, f"{text}{by}; all was saved", saved=True)
    if found := re.search(r"is superseded by (attempt \d+)", reason):
        lost = slurm is not None and _STATES.get(slurm.state) == "node_failure"
        first = f"{_node_failed(slurm)}; " if lost else ""
        return Cause("superseded", f"{first}it gave way to {found[1]}")
    if "without a new checkpoint" in reason:
        return Cause("fruitless", reason)
    if reason.startswith("out of memory on rank"):
        happened, *more = reason.splitlines()
        advice = [line.strip() for line in more if line.startswith("    ")]
        return Cause("out_of_memory", happened, advice="; or ".join(advice[:2]))
    return Cause("mistake" if code == 2 else "failed", reason or f"it failed with exit code {code}")


def _with(text: str, detail: str) -> str:
    return f"{text}: {detail}" if detail and detail not in text else text


def _node_failed(slurm: JobState | Start | None) -> str:
    return f"{_TEXTS['node_failure']}{f' ({slurm.nodes})' if slurm is not None and slurm.nodes else ''}"


def _by(who: str | None) -> str:
    return f" by {who}" if who else ""


def _crash(code: int | None, words: LogWords) -> str:
    if words.crash:
        return words.crash.replace("Killed", _KILLED)
    if code and code > 128:
        try:
            name = signal.Signals(code - 128).name
            return f"a rank was ended by {_KILLED if name == 'SIGKILL' else name}"
        except ValueError:
            pass
    return f"a rank ended with exit code {code}"


def unstarted(job: JobState, log: Path | None) -> tuple[Cause, str]:
    """Why a job that is over never came to train, and what to do."""
    if job.signal == 53 or job.reason == "JobLaunchFailure":
        log = named_log(job.output, job.id, job.name)
        folder = log.parent if log else None
        if (run := removed_run(job)) is not None:
            text = f"the run folder {run} was removed before job {job.id} could start"
            return Cause("never_started", text), "submit again: hpcrl submit makes a new one"
        if folder is not None and not folder.is_dir():
            text = f"Slurm could not start job {job.id} (0:53): its log's folder {folder} does not exist"
            return Cause("never_started", text), shlex.join(["mkdir", "-p", str(folder)])
        text = f"Slurm could not start job {job.id} (0:53): its log, or its folder, cannot be written"
        named = f": is {folder} there on the nodes ({job.nodes}) too?" if folder else ""
        return Cause("never_started", text), f"look at the job's folder and its log's{named}" if named else ""
    if job.reason.startswith("Dependency"):
        text = f"job {job.id} never ran: what it waited for ({job.dependency or 'another job'}) failed"
        return Cause("dependency", text), ""
    if job.state == "CANCELLED" and job.start is None:
        return Cause("cancelled", f"job {job.id} was cancelled{_by(job.cancelled_by)} before it started"), ""
    words = read_words(log, job.restarts)
    cause = why_ended(None, job, words, job.cancelled_by)
    if cause.kind == "no_result" or (cause.kind == "crashed" and not (words.crash or words.error)):
        text = f"job {job.id} ended with exit code {job.exit_code} before training began"
        cause = Cause("no_result", _with(text, words.last))
    return Cause(cause.kind, cause.text.removesuffix(" before it could save")), advice_for(cause)


def removed_run(job: JobState) -> Path | None:
    """The run folder that a job of hpcrl submit was to train, if it is no longer there."""
    log = named_log(job.output, job.id, job.name)
    if log is None or log.parent.name != "jobs" or not log.parts[-3].startswith("dist_run_"):
        return None
    return None if log.parents[1].is_dir() else log.parents[1]


def advice_for(cause: Cause) -> str:
    """What to do before it goes on, "" where nothing is to be done."""
    if cause.advice:
        return cause.advice
    if _KILLED in cause.text:
        return "see whether memory ran out (sacct -j JOB -o JobID,MaxRSS,ReqMem); then --mem, or less to hold"
    return {
        "out_of_memory": "give it more memory (--mem), or less to hold: env.envs_per_gpu, learn.batch_size, "
        "engine.activation_checkpointing: true, policy.model_type: lightweight",
        "mistake": "mend that",
        "failed": "mend that",
        "fruitless": "look into the attempts' logs",
        "hung": "the stacks in the log say where",
    }.get(cause.kind, "")
