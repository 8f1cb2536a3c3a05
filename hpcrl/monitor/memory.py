"""Out of memory, answered: what the rank had, what the run is made of, and what to change, in numbers.

Nothing is proposed that is so already, that the config refuses, or that does not lessen what ran out.
"""

from __future__ import annotations

import contextlib
import os
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hpcrl.config.divisors import divisors
from hpcrl.config.load import with_values
from hpcrl.config.root import Config, is_live
from hpcrl.monitor.watchdog import Watchdog
from hpcrl.types import HpcrlError
from hpcrl.world.memory import GIB, OutOfMemory, Shortage, shortage_of, size
from hpcrl.world.world import World

CHECKPOINTING = "engine.activation_checkpointing"
FRAGMENTED = "PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True"
MARK = " (resume)"
"""Of what a run may change, or have changed around it, when it goes on."""
_WORDS = {
    "data": "while the data were read",
    "build": "while simulator, policy and engine were built",
    "restore": "while the run was restored",
    "rollout": "in the rollout of epoch {epoch}",
    "update": "in the update of epoch {epoch}",
    "save": "while epoch {epoch} was saved",
    "turn": "in the turn of its population after epoch {epoch}",
}


@contextlib.contextmanager
def answered(
    world: World, config: Config, watchdog: Watchdog, run: Path | None, begun: bool = True
) -> Iterator[None]:
    """Raise ``OutOfMemory`` with the answer, of the watchdog's phase, where memory runs out within.

    ``run``: the folder, if there is one; ``begun``: whether there is anything in it to go on with.
    """
    try:
        yield
    except Exception as error:
        shortage = shortage_of(error, world)
        if shortage is None:
            raise
        traceback.clear_frames(error.__traceback__)  # the message itself needs some memory
        text = answer(shortage, watchdog.phase, watchdog.epoch, config, run, begun)
        raise OutOfMemory(shortage, text) from None


def answer(
    shortage: Shortage, phase: str, epoch: int, config: Config, run: Path | None = None, begun: bool = True
) -> str:
    """The message: a line on what happened, one on the run's sizes, and what helps, one to a line."""
    # A member's config is settled, also before its first start.
    member = run is not None and (run.absolute().parent.parent / "population.json").is_file()
    when = _WORDS.get(phase, "while training was set up").format(epoch=epoch)
    lines = [f"{shortage}, {when}", f"  the run: {sizes(config)}"]
    found = remedies(shortage, phase, config, member)
    lines += ["  what helps, the first thing first:", *(f"    {line}" for line in found)]
    if run is None or not begun:
        lines = [line.removesuffix(MARK) for line in lines]
        lines.append("  no run was begun: start it again with one of these")
    if member:
        lines.append("  all else is settled by its population: other sizes are another population's")
    elif run is not None and begun:
        lines.append(
            f"  its checkpoints are as they were: --resume {run} goes on{MARK} where that is said; with "
            f"anything else begin a new run from its weights, --init {run}"
        )
    return "\n".join(lines)


def sizes(config: Config) -> str:
    env, learn, policy, engine = config.env, config.learn, config.policy, config.engine
    return (
        f"env.envs_per_gpu {env.envs_per_gpu}, learn.rollout {learn.rollout}, learn.batch_size "
        f"{learn.batch_size}, {policy.model_type} d_model {policy.d_model} x {policy.layers} layers, window "
        f"{policy.window}, {engine.precision}, ZeRO {engine.zero_stage}, {config.train.world_size} ranks, "
        f"activation checkpointing {'on' if engine.activation_checkpointing else 'off'}"
    )


def remedies(shortage: Shortage, phase: str, config: Config, member: bool = False) -> list[str]:
    """What would lessen the memory that ran out, the most fitting first; a line each."""
    order = _ORDER.get(phase, _FEWER_FIRST)
    if order is _FEWER_FIRST and phase != "rollout" and state_bytes(config) > rollout_bytes(config):
        order = _SMALLER_FIRST
    found = _of_the_place(shortage)
    if phase == "data":
        found.append("fewer symbols (market.symbols), or a file of fewer bars")
    for remedy in order:
        sets, why = remedy(config)
        live = all(is_live(key) for key in sets)
        if sets and (live or not member) and _valid(config, sets):
            words = " ".join(f"--set {key}={str(value).lower()}" for key, value in sets.items())
            found.append(f"{words}: {why}" + (MARK if live else ""))
    return found or ["more memory: nothing of this run can be made smaller"]


Remedy = tuple[dict[str, Any], str]
"""Keys to set, and what for; without keys there is nothing to be had."""


def _of_the_place(shortage: Shortage) -> list[str]:
    """What has nothing to do with the config, and so may change whenever the run goes on."""
    found = []
    if not shortage.on_gpu:
        if "cgroup" in shortage.limit:
            found.append(
                f"--mem={2 * shortage.total // GIB + 1}G for the job (now {size(shortage.total)}){MARK}"
            )
        elif "ulimit" in shortage.limit:
            found.append(f"a higher ulimit -v (now {size(shortage.total)}), or none{MARK}")
        return found
    if shortage.spare > max(shortage.asked, shortage.total // 20):
        fragmented = f"{size(shortage.spare)} are free, but in pieces"
        so = [os.environ.get(name, "") for name in ("PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_ALLOC_CONF")]
        if not any("expandable_segments:True" in value for value in so):
            found.append(f"export {FRAGMENTED}: {fragmented}{MARK}")
    if shortage.others > max(2 * GIB, shortage.total // 20):
        found.append(f"a GPU of its own: others hold {size(shortage.others)} of it, see nvidia-smi{MARK}")
    return found


def _recompute(config: Config) -> Remedy:
    policy = config.policy
    layers = policy.layers if policy.model_type == "transformer" else policy.recurrent_layers
    if config.engine.activation_checkpointing or layers < 2:  # of one layer it would keep as much
        return {}, ""
    return {CHECKPOINTING: True}, (
        f"keeps 1 of {layers} layers' activations at a time; updates take about a third longer, results are "
        "the same"
    )


def _smaller_batch(config: Config) -> Remedy:
    """Whole chunks that divide the rollout; where one is all there is, a shorter one."""
    learn, steps = config.learn, config.env.envs_per_gpu * config.learn.rollout
    length = learn.sequence_length
    smaller = [length * d for d in divisors(steps // length) if 2 * length * d <= learn.batch_size]
    if smaller:
        size = smaller[-1]
        return {
            "learn.batch_size": size
        }, f"now {learn.batch_size}; {steps // size} steps of the optimiser per pass"
    shorter = [d for d in divisors(learn.rollout) if d % config.policy.window == 0 and 2 * d <= length]
    if not shorter:
        return {}, ""
    return {"learn.sequence_length": shorter[-1], "learn.batch_size": shorter[-1]}, (
        f"now {length} and {learn.batch_size}, the smallest batch of such chunks"
    )


def _fewer_envs(config: Config) -> Remedy:
    """At most half, in number such that the batch divides their steps."""
    learn, envs = config.learn, config.env.envs_per_gpu
    fewer = next((n for n in range(envs // 2, 0, -1) if n * learn.rollout % learn.batch_size == 0), 0)
    if fewer:
        return {"env.envs_per_gpu": fewer}, f"now {envs}"
    smaller, _ = _smaller_batch(config)
    batch = smaller.get("learn.batch_size", learn.sequence_length)
    fewer = next((n for n in range(envs // 2, 0, -1) if n * learn.rollout % batch == 0), 0)
    if not fewer:
        return {}, ""
    return {"env.envs_per_gpu": fewer, **smaller}, f"now {envs} and {learn.batch_size}"


def _bf16(config: Config) -> Remedy:
    if config.engine.precision == "bf16":
        return {}, ""
    sets: dict[str, Any] = {"engine.precision": "bf16"}
    if config.engine.zero_stage == 0:
        sets["engine.zero_stage"] = 1
    return sets, "half the bytes of activations and memories"


def _sharded(config: Config) -> Remedy:
    stage, ranks = config.engine.zero_stage, config.train.world_size
    saved = [state_bytes(config, stage) - state_bytes(config, higher) for higher in range(stage + 1, 4)]
    worth = [(stage + 1 + k, bytes_) for k, bytes_ in enumerate(saved) if bytes_ > GIB // 10]
    if not worth:
        return {}, ""
    higher, bytes_ = worth[0]
    return {"engine.zero_stage": higher}, f"about {size(bytes_)} less on each of {ranks} ranks (now {stage})"


def _lightweight(config: Config) -> Remedy:
    if config.policy.model_type == "lightweight":
        return {}, ""
    return {"policy.model_type": "lightweight"}, (
        "a recurrent net of at most a tenth of the parameters; weights cannot be taken over"
    )


def _valid(config: Config, sets: dict[str, Any]) -> bool:
    try:
        with_values(config, sets)
    except HpcrlError:
        return False
    return True


_FEWER_FIRST = (_fewer_envs, _bf16, _sharded, _lightweight)
_SMALLER_FIRST = (_bf16, _sharded, _lightweight, _fewer_envs)
_ORDER = {
    "data": (),
    "update": (_recompute, _smaller_batch, _bf16, _sharded, _fewer_envs, _lightweight),
    "save": (_lightweight,),
    "turn": (_bf16, _lightweight),
    "trial": (_recompute, _bf16, _lightweight),
}


def state_bytes(config: Config, stage: int | None = None) -> int:
    """Of weights, gradients, masters and moments on one rank, and the copy that rollouts use; estimated."""
    policy, ranks = config.policy, config.train.world_size
    parameters = policy.layers * (4 + 2 * policy.feedforward_mult) * policy.d_model**2
    parameters //= 10 if policy.model_type == "lightweight" else 1
    stage = config.engine.zero_stage if stage is None else stage
    each = 2 if config.engine.precision == "bf16" else 4
    masters = 12 if stage else 8
    shared = [part / (ranks if stage >= first else 1) for part, first in ((masters, 1), (each, 2), (each, 3))]
    return int(parameters * (each + sum(shared)))


def rollout_bytes(config: Config) -> int:
    """Of the policy's memories at each chunk's start and in play, most of a rollout; estimated."""
    policy, learn = config.policy, config.learn
    each = 2 if config.engine.precision == "bf16" else 4
    memory = 2 * policy.layers * policy.window * policy.d_model * each
    if policy.model_type == "lightweight":
        memory = 4 * policy.recurrent_layers * policy.d_model // 2
    return config.env.envs_per_gpu * memory * (learn.rollout // learn.sequence_length + 1)
