"""Small policies of every kind and head, whose outputs differ enough to be compared."""

from __future__ import annotations

import torch

from hpcrl.config.policy import PolicyConfig
from hpcrl.policy import Policy, build_policy
from hpcrl.policy.base import Memory

E = 5
CASES = [(kind, head) for kind in ("transformer", "lightweight") for head in ("discrete", "continuous")]


def small_policy(
    kind: str = "transformer",
    head: str = "discrete",
    window: int = 8,
    layers: int = 2,
    assets: int = 1,
    seed: int = 0,
    d_model: int = 32,
) -> Policy:
    torch.manual_seed(seed)
    config = PolicyConfig(model_type=kind, head=head, d_model=d_model, layers=layers, heads=2, window=window)  # type: ignore[arg-type]
    policy = build_policy(config, E, assets)
    with torch.no_grad():  # a uniform actor and a zero critic would hide differences
        policy.actor.weight.normal_(std=0.3)
        policy.critic.weight.normal_(std=0.3)
    return policy


def ages(resets: dict[int, list[int]], n_envs: int, steps: int, start: torch.Tensor) -> torch.Tensor:
    """Steps since the episode's first token; ``resets[env]`` are the steps at which a new episode begins."""
    age = torch.zeros(n_envs, steps, dtype=torch.int64)
    current = start.clone()
    for t in range(steps):
        for env, at in resets.items():
            if t in at:
                current[env] = 0
        age[:, t] = current
        current += 1
    return age


@torch.no_grad()
def walk(policy: Policy, token: torch.Tensor, age: torch.Tensor, memory: Memory):
    out = [policy.step(token[:, t], age[:, t], memory) for t in range(token.shape[1])]
    return torch.stack([o[0] for o in out], 1), torch.stack([o[1] for o in out], 1)


def copied(memory: Memory) -> Memory:
    return tuple(part.clone() for part in memory)
