"""What the figures of a rank's GPU, and of all ranks together, ask the user to do. Pure functions of metrics.

Thresholds are rules of thumb, not measurements.
"""

from __future__ import annotations

from statistics import median
from typing import Any

from hpcrl.monitor.gpu import HEAT

HOT_C = 85.0
BUSY = 0.8
"""Utilisation below it is worth a line."""
FULL, ROOMY = 0.92, 0.5
"""Shares of the GPU's memory: above the first an epoch may fail, below the second much is left unused."""
SLOWER = 1.2
"""A rank whose own work takes so many times the median holds the others up."""
SPANS = ("env", "policy", "learn", "rebuild")
REMEDY = {
    "env": "the simulator's steps: raise env.envs_per_gpu; a step of many environments costs little more",
    "policy": "the policy's steps in rollouts: raise env.envs_per_gpu; few environments leave a GPU idle",
    "learn": "the updates: raise learn.batch_size (a GPU wants some 32,000 steps per minibatch)",
    "rebuild": "rebuilding the memory at each rollout: raise learn.rollout",
    "wait": "neither simulator, policy nor update: saving, waiting for other ranks, or the shared storage",
}


def split_of(metrics: dict[str, Any]) -> dict[str, float]:
    """Shares of the epoch's wall time by span, "wait" for what no span covers."""
    epoch = metrics["time/epoch"]
    shares = {name: metrics.get(f"time/{name}", 0.0) / epoch for name in SPANS}
    return shares | {"wait": max(0.0, 1.0 - sum(shares.values()))}


def gpu_warnings(metrics: dict[str, Any], envs_per_gpu: int) -> list[str]:
    """One line for each thing amiss with this rank's GPU; none where there is no GPU."""
    if "gpu/utilisation" not in metrics:
        return []
    said = []
    temperature, throttled = metrics["gpu/temperature_c"], metrics["gpu/throttled"]
    throttles = metrics["gpu/throttles"]
    if temperature >= HOT_C:
        said.append(f"{temperature:.0f} C is hot (limit {HOT_C:.0f}): check the node's fans and airflow")
    if throttled:
        part = "the node's cooling" if set(throttles) & set(HEAT) else "the power supply and the power cap"
        said.append(
            f"throttled by {', '.join(throttles)} in {throttled:.0%} of the samples "
            f"({metrics['gpu/clock_mhz']:.0f} MHz): check {part}"
        )
    if metrics["gpu/utilisation"] < BUSY:
        cause, share = max(split_of(metrics).items(), key=lambda item: item[1])
        said.append(
            f"utilisation {metrics['gpu/utilisation']:.0%} is low; {share:.0%} of the epoch goes into "
            f"{REMEDY[cause]}"
        )
    return said + _memory(metrics, envs_per_gpu)


def _memory(metrics: dict[str, Any], envs_per_gpu: int) -> list[str]:
    used, total = metrics["gpu/memory_gib"], metrics["gpu/memory_total_gib"]
    if used > FULL * total:
        return [
            f"memory nearly full, {used:.1f} of {total:.1f} GiB: set engine.activation_checkpointing: true, "
            "lower learn.batch_size or env.envs_per_gpu, or use policy.model_type: lightweight"
        ]
    if used < ROOMY * total:
        # Weights and moments do not grow with the environments: in proportion is a number that surely fits.
        fits = int(envs_per_gpu * FULL * total / used)
        return [
            f"{total - used:.1f} of {total:.1f} GiB are free: env.envs_per_gpu {fits} would fit (now "
            f"{envs_per_gpu}), or a larger learn.batch_size"
        ]
    return []


def imbalance(ranks: list[dict[str, Any]], envs_per_gpu: int) -> str:
    """A line on the slowest rank, or "". ``ranks``: each rank's metrics, with ``node`` (its name).

    Compared is each rank's rollout (env, policy, rebuild): nobody waits for others there.
    """
    if len(ranks) < 2:
        return ""
    spent = [sum(rank.get(f"time/{name}", 0.0) for name in ("env", "policy", "rebuild")) for rank in ranks]
    slow = max(range(len(ranks)), key=spent.__getitem__)
    usual = median([seconds for rank, seconds in enumerate(spent) if rank != slow])
    if usual <= 0 or spent[slow] <= SLOWER * usual:
        return ""
    speed = [1 / max(seconds, 1e-9) for seconds in spent]
    total = envs_per_gpu * len(ranks)
    split = " ".join(f"{total * own / sum(speed):.0f}" for own in speed)
    return (
        f"rank {slow} on {ranks[slow]['node']} holds the others up: its rollout takes {spent[slow]:.1f} s, "
        f"theirs {usual:.1f} s; {_why(ranks, slow)}. In proportion to speed the ranks' environments "
        f"would be {split}"
    )


def _why(ranks: list[dict[str, Any]], slow: int) -> str:
    own, others = ranks[slow], [rank for index, rank in enumerate(ranks) if index != slow]
    if own.get("gpu/throttled"):
        return f"its GPU is throttled ({', '.join(own['gpu/throttles'])})"
    clocks = [rank["gpu/clock_mhz"] for rank in others if "gpu/clock_mhz" in rank]
    if clocks and own.get("gpu/clock_mhz", clocks[0]) < 0.9 * median(clocks):
        return f"its GPU's clock is {own['gpu/clock_mhz']:.0f} MHz, the others' {median(clocks):.0f}"
    if own["host/available_gib"] < 1.0:
        return f"its node has {own['host/available_gib']:.1f} GiB of memory left"
    if own["host/cpu"] < 0.7 * median([rank["host/cpu"] for rank in others]):
        return "its process gets less of the CPU than theirs: something else runs on its node"
    return "its GPU or node may be shared with another job: look with nvidia-smi and top there"
