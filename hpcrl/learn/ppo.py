"""One PPO update on sequences.

Old log-probabilities and values are recomputed with ``sequence`` before the first epoch, through the
same engine and in the very minibatches of the first epoch: the ratio is then 1 to the bit there, in
bf16 too, where ``step`` and ``sequence`` round differently.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from hpcrl.config.root import Config
from hpcrl.engine.engine import Engine
from hpcrl.learn.batches import Minibatch, minibatch, permutation
from hpcrl.learn.losses import LossTerms, explained_variance, ppo_loss
from hpcrl.learn.returns import ReturnScale, gae, next_values, normalise
from hpcrl.learn.schedule import learning_rate
from hpcrl.types import Rollout
from hpcrl.world.collectives import all_sum
from hpcrl.world.world import World


@dataclass
class Targets:
    """Fixed for one update, each [C x N, Q] float32."""

    log_prob: Tensor
    value: Tensor
    advantage: Tensor
    target: Tensor


def update(
    engine: Engine, rollout: Rollout, scale: ReturnScale, config: Config, epoch: int, world: World
) -> dict[str, float]:
    """Learn from one rollout; collective. Returns the metrics of the update, equal on all ranks."""
    learn = config.learn
    lr = learning_rate(learn, epoch, config.train.epochs)
    engine.set_lr(lr)
    n_chunks = rollout.age_CNQ.shape[:2].numel()
    orders = [permutation(n_chunks, config.train.seed, epoch, k, world.rank) for k in range(learn.ppo_epochs)]
    targets = prepare(engine, rollout, scale, orders[0], config, world)
    log = _Log(world)
    ppo_epochs = 0
    for order in orders:
        kl_before, applied_before = log.sums["approx_kl"].clone(), log.applied
        for rows in order.split(config.chunks_per_batch):
            batch = minibatch(rollout, rows)
            terms = _loss(engine, batch, targets, config)
            engine.backward(terms.total)
            result = engine.step()
            log.add(terms, result.applied, result.grad_norm)
        ppo_epochs += 1
        kl = (log.sums["approx_kl"] - kl_before) / max(1, log.applied - applied_before)
        if learn.target_kl is not None and _mean(kl, world) > learn.target_kl:
            break
    explained = explained_variance(targets.value, targets.target)
    return log.metrics() | {
        "explained_variance": _mean(explained, world),
        "lr": lr,
        "ppo_epochs": float(ppo_epochs),
        "return_scale": scale.std,
        "value_mean": _mean(targets.value.mean(), world),
    }


def prepare(
    engine: Engine,
    rollout: Rollout,
    scale: ReturnScale,
    order: Tensor,
    config: Config,
    world: World,
) -> Targets:
    """Old log-probabilities and values by ``sequence``, then scaled rewards and advantages; collective."""
    log_prob, value = recompute(engine, rollout, order, config.chunks_per_batch)
    reward_NT = rollout.steps(rollout.reward_CNQ)
    terminated_NT = rollout.steps(rollout.terminated_CNQ)
    truncated_NT = rollout.steps(rollout.truncated_CNQ)
    scale.update(reward_NT, terminated_NT | truncated_NT, config.learn.gamma, world)
    value_NT = rollout.steps(value.view(rollout.age_CNQ.shape))
    advantage_NT = gae(
        reward_NT / scale.std,
        value_NT,
        next_values(value_NT, rollout.bootstrap_N),
        terminated_NT,
        truncated_NT,
        config.learn.gamma,
        config.learn.gae_lambda,
    )
    target = rollout.chunks(advantage_NT + value_NT)
    return Targets(log_prob, value, rollout.chunks(normalise(advantage_NT, world)), target)


@torch.no_grad()
def recompute(engine: Engine, rollout: Rollout, order: Tensor, chunks: int) -> tuple[Tensor, Tensor]:
    """Log-probabilities and values [C x N, Q] of what was done, under the present weights."""
    n_chunks, n_envs, length = rollout.age_CNQ.shape
    log_prob = torch.empty(n_chunks * n_envs, length, device=rollout.age_CNQ.device)
    value = torch.empty_like(log_prob)
    for rows in order.split(chunks):
        batch = minibatch(rollout, rows)
        log_prob[batch.rows], _, value[batch.rows] = engine(*batch.arguments())
    return log_prob, value


def _loss(engine: Engine, batch: Minibatch, targets: Targets, config: Config) -> LossTerms:
    log_prob, entropy, value = engine(*batch.arguments())
    rows = batch.rows
    return ppo_loss(
        log_prob,
        entropy,
        value,
        targets.log_prob[rows],
        targets.value[rows],
        targets.advantage[rows],
        targets.target[rows],
        config.learn,
    )


def _mean(value: Tensor, world: World) -> float:
    """Mean over ranks of a scalar; collective, so that all ranks take the same decision."""
    return float(all_sum(world, value.double().reshape(1))) / world.size


class _Log:
    """Sums over minibatches, on the device until the update's end."""

    NAMES = ("total", "policy", "value", "entropy", "approx_kl", "clip_fraction")

    def __init__(self, world: World) -> None:
        self.world = world
        self.sums = {name: torch.zeros((), dtype=torch.float64, device=world.device) for name in self.NAMES}
        self.steps = self.skipped = 0
        self.grad_norm = 0.0
        self.first_log_ratio = torch.zeros((), device=world.device)

    def add(self, terms: LossTerms, applied: bool, grad_norm: float) -> None:
        if self.steps == 0:
            self.first_log_ratio = terms.max_log_ratio
        self.steps += 1
        if not applied:  # agreed by all ranks; its losses would make the epoch's means NaN
            self.skipped += 1
            return
        self.grad_norm += grad_norm
        for name in self.NAMES:
            self.sums[name] += getattr(terms, name).detach()

    @property
    def applied(self) -> int:
        return self.steps - self.skipped

    def metrics(self) -> dict[str, float]:
        stacked = torch.stack([self.sums[name] for name in self.NAMES] + [self.first_log_ratio.double()])
        mean = (all_sum(self.world, stacked) / self.world.size).tolist()
        applied = max(1, self.applied)
        loss, policy, value, entropy, kl, clip = (x / applied for x in mean[:-1])
        return {
            "loss": loss,
            "policy_loss": policy,
            "value_loss": value,
            "entropy": entropy,
            "approx_kl": kl,
            "clip_fraction": clip,
            "first_log_ratio": mean[-1],
            "grad_norm": self.grad_norm / applied,
            "skipped_steps": float(self.skipped),
        }
