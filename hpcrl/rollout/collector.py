"""Act, step, record: N environments for T steps, all on the device.

The policy here is a plain copy that the engine refreshes after each update. Its memory is rebuilt from
each environment's last tokens at the start of every rollout, so the policy is a function of history and
of today's weights, and a checkpoint holds tokens, not memories.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from hpcrl.config.root import Config
from hpcrl.env.draws import keyed_uniform, stream_key
from hpcrl.env.simulator import Simulator, Step
from hpcrl.monitor.stopwatch import Stopwatch
from hpcrl.policy.base import Memory, Policy
from hpcrl.types import Rollout

EPISODES_PER_EPOCH = 1 << 20
"""More than one environment can begin in one epoch; spaces the draws of a run that restarts its episodes."""
ACTION_STREAM = 1_000
"""First stream of the hash that action sampling uses; asset a draws from ACTION_STREAM + a."""


@dataclass
class Tally:
    """Sums over a rollout, on the device until the epoch's end. Rewards and costs per env step."""

    terms_KN: Tensor
    share_counts: Tensor
    """float64, actions in each of the distribution's ``shares``."""

    NAMES = ("reward", "log_return", "turnover", "fees", "spread", "impact", "financing", "bankruptcies")

    @classmethod
    def zeros(cls, n_envs: int, n_shares: int, device: torch.device) -> Tally:
        return cls(
            torch.zeros(len(cls.NAMES), n_envs, dtype=torch.float64, device=device),
            torch.zeros(n_shares, dtype=torch.float64, device=device),
        )

    def add(self, step: Step, share_NA: Tensor) -> None:
        terms = (
            step.reward_N, step.log_return_N, step.turnover_N, step.fees_N, step.spread_N,
            step.impact_N, step.financing_N, step.terminated_N,
        )  # fmt: skip
        self.terms_KN += torch.stack([term.double() for term in terms])
        ones = torch.ones_like(share_NA, dtype=torch.float64).flatten()
        self.share_counts.index_add_(0, share_NA.flatten(), ones)

    @property
    def sums(self) -> Tensor:
        """Over environments, in the order of ``NAMES``."""
        return self.terms_KN.sum(1)


class Collector:
    """Owns the environments' token history and episode phase; both go into the rank's checkpoint."""

    def __init__(
        self,
        simulator: Simulator,
        policy: Policy,
        config: Config,
        env_ids_N: Tensor,
        watch: Stopwatch,
    ) -> None:
        """``watch`` gets the spans rebuild, policy and env."""
        self.simulator, self.policy, self.config = simulator, policy, config
        self.env_ids_N, self.watch = env_ids_N, watch
        device = env_ids_N.device
        n_envs, entries = simulator.n_envs, simulator.n_entries
        self.history_NME = torch.zeros(n_envs, config.policy.padded_history, entries, device=device)
        self.age_N = torch.zeros(n_envs, dtype=torch.int64, device=device)
        self.phase = 0
        keys = [stream_key(config.train.seed, ACTION_STREAM + asset) for asset in range(simulator.n_assets)]
        self.key_A = torch.tensor(keys, device=device)
        self.rollout = self._allocate(n_envs, entries, device)

    def _allocate(self, n_envs: int, entries: int, device: torch.device) -> Rollout:
        learn = self.config.learn
        steps = (learn.rollout // learn.sequence_length, n_envs, learn.sequence_length)
        action_dtype = self.policy.distribution.action_dtype
        return Rollout(
            token_CNQE=torch.zeros(*steps, entries, device=device),
            age_CNQ=torch.zeros(steps, dtype=torch.int64, device=device),
            action_CNQA=torch.zeros(*steps, self.simulator.n_assets, dtype=action_dtype, device=device),
            reward_CNQ=torch.zeros(steps, device=device),
            terminated_CNQ=torch.zeros(steps, dtype=torch.bool, device=device),
            truncated_CNQ=torch.zeros(steps, dtype=torch.bool, device=device),
            memory=tuple(
                part.new_zeros((len(part), *steps[:2], *part.shape[2:]))
                for part in self.policy.empty_memory(n_envs)
            ),
            bootstrap_N=torch.zeros(n_envs, device=device),
        )

    @torch.inference_mode()  # nothing here is differentiated; measured 16 % faster than no_grad
    def collect(self, epoch: int) -> tuple[Rollout, Tally]:
        """One rollout; ``epoch`` counts rollouts and seeds the actions. Overwrites the last rollout."""
        if self.phase == 0:
            self.history_NME, self.age_N = self.simulator.begin_episodes(self.config.episode_steps)
        with self.watch.span("rebuild"):
            memory = self.policy.rebuild(self.history_NME, self.age_N.clamp_max(self.history_NME.shape[1]))
        rollout, length = self.rollout, self.config.learn.sequence_length
        tally = Tally.zeros(len(self.age_N), len(self.policy.distribution.shares), self.age_N.device)
        for chunk in range(rollout.age_CNQ.shape[0]):
            for kept, part in zip(rollout.memory, memory, strict=True):
                kept[:, chunk] = part
            for step in range(length):
                counter = epoch * self.config.learn.rollout + chunk * length + step
                self._act(rollout, chunk, step, memory, counter, tally)
        _, rollout.bootstrap_N = self.policy.step(self.simulator.observe(), self.age_N, memory)
        self._end(rollout)
        return rollout, tally

    def _act(
        self, rollout: Rollout, chunk: int, step: int, memory: Memory, counter: int, tally: Tally
    ) -> None:
        """One step of every environment."""
        distribution = self.policy.distribution
        with self.watch.span("env"):
            token_NE = self.simulator.observe()
        rollout.token_CNQE[chunk, :, step] = token_NE
        rollout.age_CNQ[chunk, :, step] = self.age_N
        with self.watch.span("policy"):
            params_NAP, _ = self.policy.step(token_NE, self.age_N, memory)
            uniform_NA = keyed_uniform(self.key_A, self.env_ids_N[:, None], counter)
            action_NA = distribution.sample(params_NAP, uniform_NA)
        with self.watch.span("env"):
            outcome = self.simulator.step(distribution.weights(action_NA))
        rollout.action_CNQA[chunk, :, step] = action_NA
        rollout.reward_CNQ[chunk, :, step] = outcome.reward_N
        rollout.terminated_CNQ[chunk, :, step] = outcome.terminated_N
        self.age_N = torch.where(outcome.terminated_N, 0, self.age_N + 1)
        tally.add(outcome, distribution.share(action_NA))

    def _end(self, rollout: Rollout) -> None:
        """Keep the last tokens, and mark the episode's end where its length is reached."""
        kept = self.history_NME.shape[1]
        chunks = -(-kept // rollout.token_CNQE.shape[2])
        token_NTE = rollout.steps(rollout.token_CNQE[-chunks:])[:, -kept:]
        self.history_NME = torch.cat((self.history_NME, token_NTE), dim=1)[:, -kept:].contiguous()
        self.phase = (self.phase + 1) % self.config.env.episode_rollouts
        rollout.truncated_CNQ.zero_()
        if self.phase == 0:
            rollout.truncated_CNQ[-1, :, -1] = ~rollout.terminated_CNQ[-1, :, -1]

    def restart(self, epoch: int) -> None:
        """Begin new episodes at the next rollout, with draws that the epochs before cannot have used."""
        self.phase = 0
        self.simulator.skip_to_episode((epoch + 1) * EPISODES_PER_EPOCH)

    def state(self) -> dict:
        """For this rank's checkpoint file."""
        return {
            "history": self.history_NME.cpu(),
            "age": self.age_N.cpu(),
            "phase": self.phase,
            "simulator": self.simulator.state_dict(),
        }

    def load(self, state: dict) -> None:
        device = self.age_N.device
        self.history_NME = state["history"].to(device)
        self.age_N = state["age"].to(device)
        self.phase = int(state["phase"])
        self.simulator.load_state_dict(state["simulator"])
