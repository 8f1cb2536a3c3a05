"""An exported graph against the policy that it was made of, before its file is written.

Both step side by side, each with a memory of its own, over random tokens and over tokens of the training
split with a trading account, at several batch sizes, through ends of episodes (age 0). What one remembers
wrongly the other would show: deviations are not forgiven because they are small at first.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import onnxruntime as ort
import torch

from hpcrl.config.env import EnvConfig
from hpcrl.env.simulator import Simulator
from hpcrl.export.metadata import Metadata
from hpcrl.export.stream import Outputs, Stream
from hpcrl.market.dataset import Market
from hpcrl.market.scaler import Scaler, identity_scaler
from hpcrl.policy import Policy
from hpcrl.types import HpcrlError, RunFailed

TOLERANCE = 1e-4
"""Greatest difference of any number that the actor gives, and gap of two logits that may change places."""
LARGE = 10.0
"""Numbers above it may differ by ``TOLERANCE`` x number / LARGE: sums of many float32 err with their size."""
BATCHES = (1, 2, 7)
STEPS_OF_WINDOW = 2.5
"""Steps of a check, in attention windows: the ring is overwritten, and positions beyond it are reached."""
LEAST_STEPS = 48


@dataclass
class Differences:
    """What was seen side by side. A near tie: the two best logits differ by less than ``TOLERANCE``."""

    params: float = 0.0
    excess: float = 0.0
    """As ``params``, but of numbers above ``LARGE`` in units of number / LARGE."""
    value: float = 0.0
    """Relative where a value is larger than 1."""
    weight: float = 0.0
    """Greatest difference of target weights, near ties left out."""
    decisions: int = 0
    near_ties: int = 0
    """Decisions that differ where two logits nearly tie."""
    steps: int = 0

    def add(self, torch_side: Outputs, onnx_side: Outputs, discrete: bool) -> None:
        """One step of each. Infinities give NaN, which is within nothing."""
        with np.errstate(invalid="ignore"):
            self._add(torch_side, onnx_side, discrete)

    def _add(self, torch_side: Outputs, onnx_side: Outputs, discrete: bool) -> None:
        (params, value, weight), (other, other_value, other_weight) = torch_side, onnx_side
        apart_NA = np.abs(weight - other_weight)
        scale_NA = np.maximum(np.abs(params).max(-1) / LARGE, 1.0)
        if discrete:
            best = np.sort(params, axis=-1)
            tie_NA = best[..., -1] - best[..., -2] < TOLERANCE * scale_NA
            self.near_ties += int((tie_NA & (apart_NA > 0)).sum())
            apart_NA = np.where(tie_NA, 0.0, apart_NA)
        self.params = _greatest(self.params, params - other)
        self.excess = _greatest(self.excess, (params - other) / scale_NA[..., None])
        self.value = _greatest(self.value, (value - other_value) / np.maximum(np.abs(value), 1.0))
        self.weight = _greatest(self.weight, apart_NA)
        self.decisions += weight.size
        self.steps += 1

    def within(self, discrete: bool, span: float) -> bool:
        """``span``: of the target weights. A grid's weights are equal or they are not."""
        allowed = 0.0 if discrete else TOLERANCE * span
        # Written so that NaN is not within.
        return self.excess <= TOLERANCE and self.value <= TOLERANCE and self.weight <= allowed


def _greatest(so_far: float, difference: np.ndarray) -> float:
    """NaN stays; infinity becomes it."""
    return (
        float(np.maximum(so_far, np.abs(difference).max())) if np.isfinite(difference).all() else float("nan")
    )


class Twins:
    """A policy and its graph, stepped together; the tokens' features are raw."""

    def __init__(
        self, policy: Policy, scaler: Scaler, session: ort.InferenceSession, metadata: Metadata, accounts: int
    ) -> None:
        self.policy, self.scaler = policy, scaler
        self.discrete = metadata.distribution["kind"] == "discrete"
        self._columns = metadata.n_assets * len(metadata.features)
        self._memory = policy.empty_memory(accounts)
        self._stream = Stream(session, metadata, accounts)

    @torch.no_grad()
    def step(self, token_NE: np.ndarray, age_N: np.ndarray, seen: Differences) -> None:
        scaled_NE = token_NE.copy()
        feature = token_NE[:, : self._columns].reshape(-1, len(self.scaler.feature_names))
        scaled_NE[:, : self._columns] = self.scaler.apply(feature).reshape(len(token_NE), -1)
        params, value = self.policy.step(torch.from_numpy(scaled_NE), torch.from_numpy(age_N), self._memory)
        distribution = self.policy.distribution
        weight = distribution.weights(distribution.mode(params))
        torch_side = Outputs(params.numpy(), value.numpy(), weight.numpy())
        seen.add(torch_side, self._stream.step(token_NE, age_N), self.discrete)


def verify(
    policy: Policy,
    scaler: Scaler,
    session: ort.InferenceSession,
    metadata: Metadata,
    market: Market,
    env: EnvConfig,
    seed: int = 0,
) -> Differences:
    """What the graph and the policy differ by. RunFailed where that is more than ``TOLERANCE``."""
    rng = np.random.default_rng(seed)
    steps = max(LEAST_STEPS, int(STEPS_OF_WINDOW * metadata.config["policy"]["window"]))
    seen = Differences()
    span = _span(metadata)
    for accounts in BATCHES:
        for kind, tokens in (
            ("random", _random_tokens(metadata, scaler, steps, accounts, rng)),
            ("real", real_tokens(market, env, steps, accounts, seed=seed)),
        ):
            twins = Twins(policy, scaler, session, metadata, accounts)
            # Episodes end at different steps for different accounts.
            ends = rng.integers(steps // 3, steps, size=accounts)
            for t, token_NE in enumerate(tokens):
                age_N = np.where(t < ends, t, t - ends).astype(np.int64)
                twins.step(token_NE, age_N, seen)
                if not seen.within(twins.discrete, span):
                    raise RunFailed(
                        f"the graph is not the policy: at step {t} of {kind} tokens, batch {accounts}, they "
                        f"differ by {seen.params:.2g} in params, {seen.value:.2g} in value, "
                        f"{seen.weight:.2g} in weights ({TOLERANCE:g} is allowed); nothing was written"
                    )
    return seen


def _span(metadata: Metadata) -> float:
    found = metadata.distribution
    bounds = found["positions"] if found["kind"] == "discrete" else (found["low"], found["high"])
    return float(max(bounds) - min(bounds))


def _random_tokens(
    metadata: Metadata, scaler: Scaler, steps: int, accounts: int, rng: np.random.Generator
) -> Iterator[np.ndarray]:
    """[N, E] each: entries of order 1; features of the training rows' mean and spread, some far beyond the
    clip."""
    mean = np.tile(scaler.mean_F, metadata.n_assets)
    std = np.tile(scaler.std_F, metadata.n_assets)
    for _ in range(steps):
        token_NE = rng.standard_normal((accounts, metadata.n_entries), dtype=np.float32)
        wide = np.where(rng.random((accounts, len(mean))) < 0.02, 100.0, 1.0)
        token_NE[:, : len(mean)] = mean + std * wide * token_NE[:, : len(mean)]
        yield token_NE


def real_tokens(
    market: Market, env: EnvConfig, steps: int, accounts: int, *, seed: int = 0
) -> Iterator[np.ndarray]:
    """[N, E] float32 each, features raw: of accounts that trade at random in the training split.

    As many steps as fit there, at most ``steps``; none where the split holds no episode at all.
    """
    lo, hi = market.split_range("train", env.fill_lag)
    first_S, last_S = np.maximum(market.first_bar_S, lo), np.minimum(market.last_bar_S, hi - 1)
    room = int((last_S.min() - first_S.max()) if env.assets == "all" else (last_S - first_S).max())
    steps = min(steps, room)
    if steps < 1:
        return
    tensors = market.to("cpu", identity_scaler(market.feature_names))
    simulator = Simulator(tensors, env, env_ids_N=torch.arange(accounts), seed=seed, bars=(lo, hi), history=1)
    try:
        simulator.begin_episodes(steps)
    except HpcrlError:
        return
    generator = torch.Generator().manual_seed(seed)
    shape = (accounts, simulator.n_assets)
    for _ in range(steps):
        yield simulator.observe().numpy()
        weight = torch.rand(shape, generator=generator, dtype=torch.float64) * 2 - 1
        simulator.step(weight / simulator.n_assets)
