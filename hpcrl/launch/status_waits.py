"""What a job in the queue waits for, in words, and what helps where waiting does not. Knows no torch."""

from __future__ import annotations

import re
from collections.abc import Mapping

from hpcrl.launch.accounting import JobState

_AGAIN = "scancel {id}, then submit it again with {less}"
_TIME = "a shorter time (sbatch --time=..., or the site's key time)"
_NODES = "fewer nodes (sbatch --nodes=..., or hpcrl submit --nodes)"
_LESS = "less, or on another partition, account or QOS"
# A pattern of Slurm's reason -> what it means, and what to do; the first that fits.
_REASONS = tuple(
    (re.compile(pattern), words, advice)
    for pattern, words, advice in (
        (r"Resources$", "for free nodes or GPUs", ""),
        (r"Priority$", "for jobs of higher priority", ""),
        (r"JobArrayTaskLimit$", "for its turn, as many tasks of its array run as may at a time", ""),
        (r"JobHeldUser$", "it is held", ""),
        (r"JobHeldAdmin$", "an administrator holds it", "ask the site: only an administrator can release it"),
        (
            r"launch.failed.requeued.held",
            "it is held, for Slurm could not start it: its node or the site's prolog failed",
            "tell the site which node it was (sacct -D -j {id} -o Start,NodeList), then let it run",
        ),
        (
            r"JobHoldMaxRequeue",
            "it is held, it was requeued as often as the site allows",
            "look into its log for why it never gets on",
        ),
        (
            r"DependencyNeverSatisfied",
            "in vain, the job that it waits for has failed",
            "scancel {id}, mend that, then submit it again",
        ),
        (r"Licenses", "for licences that other jobs hold", ""),
        (
            r"PartitionTimeLimit",
            "in vain, its time limit is longer than its partition allows",
            f"{_AGAIN.replace('{less}', _TIME)}; the limits: sinfo -o '%P %l'",
        ),
        (
            r"PartitionNodeLimit",
            "in vain, its number of nodes is not one that its partition allows",
            f"{_AGAIN.replace('{less}', _NODES)}; the limits: sinfo -s",
        ),
        (
            r"(Assoc|QOS)MaxWall",
            "in vain, its time limit is longer than its account or QOS allows",
            f"{_AGAIN.replace('{less}', _TIME)}; the limits: sacctmgr show qos format=name,maxwall",
        ),
        (
            r"(Assoc|QOS)(Max\w*Per(Job|Node)|Min)|QOSUsageThreshold",
            "in vain, it asks for more, or less, than its account or QOS allows one job",
            f"{_AGAIN.replace('{less}', _LESS)}; the limits: sacctmgr show qos",
        ),
        (
            r"(Assoc|QOS)Grp\w*Minutes",
            "for its account's or QOS's budget, which is used up",
            "ask the site for more, or submit it under another account",
        ),
        (
            r"(Assoc|QOS)(Max|Grp)",
            "for a limit of its account or QOS: it starts once other jobs have ended",
            "wait, or scancel other jobs; the limits: sacctmgr show qos, sacctmgr show associations",
        ),
        (
            r"ReqNodeNotAvail|Reservation",
            "for nodes that are down, drained or reserved",
            "sinfo -R and scontrol show reservation tell which and until when; a job whose time ends before "
            "a reservation begins can start",
        ),
        (
            r"Partition(Down|Inactive)",
            "for its partition, which starts no jobs at the moment",
            "sinfo -s shows others; or wait",
        ),
        (
            r"Invalid(Account|QOS)|AccountNotAllowed|QOSNotAllowed|BadConstraints",
            "in vain, its account, QOS or constraint is none that it may use",
            f"{_AGAIN.replace('{less}', 'one that is yours')}: sacctmgr show associations user=$USER",
        ),
    )
)


def waits_for(job: JobState, kinds: Mapping[str, str] | None = None) -> str:
    """Slurm's reason in words, with the reason itself; ``kinds``: of the jobs that it may wait for."""
    reason = job.reason
    if not reason:
        return "Slurm has not said for what yet"
    if reason == "Dependency":
        before = re.findall(r"\d+(?:_\d+)?", job.dependency)
        names = [f"{(kinds or {}).get(other, 'job')} {other}" for other in before]
        return f"for {', '.join(names) or 'another job'} to end"
    words = next((words for pattern, words, _ in _REASONS if pattern.match(reason)), "")
    if reason == "BeginTime":
        requeued = "it was requeued, Slurm holds it back for a moment"
        words = requeued if job.restarts else "for the time at which it is to begin"
    if reason == "DependencyNeverSatisfied" and job.dependency:
        reason = f"{reason}: {job.dependency}"
    return f"{words} ({reason})" if words else reason


def advice_waiting(job: JobState) -> str:
    """What to do about a job that waits, "" where it only has to."""
    advice = next((advice for pattern, _, advice in _REASONS if pattern.match(job.reason)), "")
    return advice.replace("{id}", job.id)


def release(job: JobState) -> str:
    """What lets a job run that its user, or Slurm itself, holds; "" for others."""
    held = "held" in job.reason.lower() or "Hold" in job.reason
    return f"scontrol release {job.id}" if held and "Admin" not in job.reason else ""
