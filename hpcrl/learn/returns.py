"""Advantages, and the running scale of returns. Everything float32 but the statistics (float64)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from hpcrl.world.collectives import all_sum
from hpcrl.world.world import World


def gae(
    reward_NT: Tensor,
    value_NT: Tensor,
    next_value_NT: Tensor,
    terminated_NT: Tensor,
    truncated_NT: Tensor,
    gamma: float,
    lam: float,
) -> Tensor:
    """Generalised advantage estimation (Schulman et al. 2015, arXiv 1506.02438), [N, T] float32.

        delta_t = r_t + gamma V(s'_t) (1 - terminated_t) - V(s_t)
        A_t     = delta_t + gamma lam (1 - terminated_t)(1 - truncated_t) A_{t+1}

    ``next_value_NT`` is V of the true observation after step t: at a truncated step that of the old
    episode's last bar, not of the next episode's first. The recursion never crosses an episode.
    """
    assert reward_NT.shape == value_NT.shape == next_value_NT.shape == terminated_NT.shape
    alive = 1.0 - terminated_NT.float()
    delta = reward_NT + gamma * next_value_NT * alive - value_NT
    carry = gamma * lam * alive * (1.0 - truncated_NT.float())
    advantage = torch.empty_like(delta)
    running = torch.zeros_like(delta[:, 0])
    for t in range(delta.shape[1] - 1, -1, -1):
        running = delta[:, t] + carry[:, t] * running
        advantage[:, t] = running
    return advantage


def next_values(value_NT: Tensor, bootstrap_N: Tensor) -> Tensor:
    """V(s'_t): the next step's value, and the bootstrap value after the last.

    Right where episodes are truncated only at a rollout's end; inside, only terminated steps end one,
    and there ``gae`` does not look at it.
    """
    return torch.cat((value_NT[:, 1:], bootstrap_N[:, None].to(value_NT)), dim=1)


@dataclass
class ReturnScale:
    """Rewards are divided by the running standard deviation of the discounted return.

    ``count``, ``mean``, ``m2`` (Chan et al. 1979) are the same on all ranks and go into the checkpoint;
    ``running_N`` is each environment's discounted return so far, in raw units.
    """

    running_N: Tensor
    count: float = 0.0
    mean: float = 0.0
    m2: float = 0.0

    @property
    def std(self) -> float:
        """1 until something was seen; never below 1e-8."""
        return max((self.m2 / self.count) ** 0.5, 1e-8) if self.count > 1 and self.m2 > 0 else 1.0

    def update(self, reward_NT: Tensor, done_NT: Tensor, gamma: float, world: World) -> None:
        """Take in a rollout; collective."""
        seen = torch.empty(reward_NT.shape, dtype=torch.float64, device=reward_NT.device)
        running, going = self.running_N, 1.0 - done_NT.double()
        reward = reward_NT.double()
        for t in range(reward_NT.shape[1]):
            running = running * gamma + reward[:, t]
            seen[:, t] = running
            running = running * going[:, t]
        self.running_N = running
        n, total = all_sum(world, torch.stack((seen.new_tensor(float(seen.numel())), seen.sum()))).tolist()
        mean = total / n
        (m2,) = all_sum(world, ((seen - mean) ** 2).sum()[None]).tolist()
        both = self.count + n
        delta = mean - self.mean
        self.m2 += m2 + delta * delta * self.count * n / both
        self.mean += delta * n / both
        self.count = both

    def state(self) -> dict[str, float]:
        return {"count": self.count, "mean": self.mean, "m2": self.m2}

    def load(self, state: dict[str, float]) -> None:
        self.count, self.mean, self.m2 = state["count"], state["mean"], state["m2"]


def normalise(advantage_NT: Tensor, world: World) -> Tensor:
    """Zero mean and unit deviation over the whole rollout of all ranks; collective.

    Per minibatch would erase a chunk's mean, which is what a sequence has to say.
    """
    x = advantage_NT.double()
    n, total = all_sum(world, torch.stack((x.new_tensor(float(x.numel())), x.sum()))).tolist()
    mean = total / n
    (square,) = all_sum(world, ((x - mean) ** 2).sum()[None]).tolist()
    return ((x - mean) / ((square / n) ** 0.5 + 1e-8)).float()
