"""The whole configuration of a run: one section per room, and the checks that span rooms."""

from __future__ import annotations

import hashlib
import json

from pydantic import model_validator

from hpcrl.config.base import Mistake, Section
from hpcrl.config.divisors import divisors, nearest
from hpcrl.config.engine import EngineConfig
from hpcrl.config.env import EnvConfig
from hpcrl.config.learn import LearnConfig
from hpcrl.config.market import MarketConfig
from hpcrl.config.pbt import PbtConfig
from hpcrl.config.policy import PolicyConfig
from hpcrl.config.train import CheckpointConfig, MonitorConfig, TrainConfig

LIVE_KEYS = (
    "train.epochs",
    "train.world_size",
    "train.training_mode",
    "checkpoint",
    "monitor",
    "market.path",
    "market.local_copy",
    "engine.device",
    "engine.activation_checkpointing",
)
"""Keys and sections that a resumed run may change; the data set itself is compared by its hash."""
LATER: dict[str, object] = {f"market.{split}_between": [] for split in ("train", "validation", "test")}
"""Keys that came after runs had been recorded, and their defaults: with these they change no digest, so that
runs of before can be resumed, and go on in their folders."""


class Config(Section):
    train: TrainConfig = TrainConfig()
    market: MarketConfig = MarketConfig()
    env: EnvConfig = EnvConfig()
    policy: PolicyConfig = PolicyConfig()
    learn: LearnConfig = LearnConfig()
    engine: EngineConfig = EngineConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    monitor: MonitorConfig = MonitorConfig()
    pbt: PbtConfig = PbtConfig()

    @model_validator(mode="after")
    def _batches(self) -> Config:
        learn, envs = self.learn, self.env.envs_per_gpu
        if learn.sequence_length % self.policy.window:
            windows = [d for d in divisors(learn.sequence_length) if d >= 2]
            raise Mistake(
                f"learn.sequence_length = {learn.sequence_length} must be a multiple of policy.window = "
                f"{self.policy.window}; nearest windows that divide it: "
                f"{nearest(windows, self.policy.window) or 'none'}",
                "learn.sequence_length",
                "policy.window",
            )
        steps = envs * learn.rollout
        if learn.batch_size % learn.sequence_length or steps % learn.batch_size:
            raise Mistake(
                f"learn.batch_size = {learn.batch_size} must be a multiple of learn.sequence_length = "
                f"{learn.sequence_length} and divide env.envs_per_gpu x learn.rollout = {envs} x "
                f"{learn.rollout} = {steps}; nearest that do: {_nearest_batches(self)}",
                "learn.batch_size",
                "learn.sequence_length",
                "env.envs_per_gpu",
                "learn.rollout",
            )
        return self

    @property
    def episode_steps(self) -> int:
        """Env steps of one training episode."""
        return self.env.episode_rollouts * self.learn.rollout

    @property
    def minibatches(self) -> int:
        """Optimiser steps of one PPO epoch on one rank."""
        return self.env.envs_per_gpu * self.learn.rollout // self.learn.batch_size

    @property
    def chunks_per_batch(self) -> int:
        return self.learn.batch_size // self.learn.sequence_length

    def digest(self) -> str:
        """sha256 over every key that a resumed run may not change (all but ``LIVE_KEYS``).

        Equal digests do not promise equal results: epochs (where the learning rate decays) and world_size
        decide too, and are left out because a resume may change them; the data has a hash of its own.
        """
        return tree_digest(self.model_dump(mode="json"))


def is_live(key: str) -> bool:
    return any(key == live or key.startswith(live + ".") for live in LIVE_KEYS)


def _nearest_batches(config: Config) -> str:
    """The three sizes nearest to the wanted one that hold whole chunks and divide the rollout."""
    chunks = config.env.envs_per_gpu * config.learn.rollout // config.learn.sequence_length
    return nearest([config.learn.sequence_length * d for d in divisors(chunks)], config.learn.batch_size)


def tree_digest(tree: dict) -> str:
    """``Config.digest`` of a resolved tree as it was recorded, whatever keys this version knows."""
    flat = {
        key: value
        for key, value in flatten(tree).items()
        if not is_live(key) and (key not in LATER or value != LATER[key])
    }
    return hashlib.sha256(json.dumps(flat, sort_keys=True).encode()).hexdigest()


def live_changes(old: Config, new: Config) -> list[str]:
    """``key=value`` for every live key that differs, but those that a launcher decides."""
    return [f"{key}={value}" for key, value in changed_live(old, new).items()]


def changed_live(old: Config, new: Config) -> dict[str, object]:
    """{"train.epochs": 200}: every live key that differs, but those that a launcher decides."""
    a, b = flatten(old.model_dump(mode="json")), flatten(new.model_dump(mode="json"))
    launcher = ("train.world_size", "train.training_mode")
    changed = [key for key in sorted(b) if a.get(key) != b[key] and is_live(key) and key not in launcher]
    return {key: b[key] for key in changed}


def flatten(tree: dict, prefix: str = "") -> dict[str, object]:
    """{"a": {"b": 1}} -> {"a.b": 1}; lists are values."""
    flat: dict[str, object] = {}
    for key, value in tree.items():
        if isinstance(value, dict):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat


def changed_keys(old: Config, new: Config) -> list[str]:
    """Dotted keys, not live, whose values differ: what a resume must refuse."""
    a, b = flatten(old.model_dump(mode="json")), flatten(new.model_dump(mode="json"))
    return [key for key in sorted(a.keys() | b.keys()) if a.get(key) != b.get(key) and not is_live(key)]
