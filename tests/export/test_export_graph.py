"""The exported graph does what the policy does: twin, batches, episodes' ends, real bars, many steps."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from export_cases import CASES, KINDS, REAL, Case, export_case, scaled, small_case, stage_sample

from hpcrl.bench.export import resident_mib
from hpcrl.config.policy import PolicyConfig
from hpcrl.env.simulator import Simulator
from hpcrl.export.onnx_model import streaming_step
from hpcrl.export.stream import Outputs, Stream
from hpcrl.export.verify import TOLERANCE, Differences, Twins, real_tokens, verify
from hpcrl.market.scaler import Scaler, identity_scaler
from hpcrl.policy import build_policy
from hpcrl.types import HpcrlError, RunFailed

E, A, FEATURES = 14, 2, 3


def scaler_of(features: int, clip: float = 2.0) -> Scaler:
    names = tuple(f"f{i}" for i in range(features))
    rng = np.random.default_rng(0)
    mean = rng.normal(size=features).astype(np.float32)
    return Scaler(names, mean, rng.uniform(0.1, 3.0, features).astype(np.float32), clip)


def test_a_policy_of_ones_own_says_where_its_step_is_to_be_added():
    class Mine(torch.nn.Module):
        dtype = torch.float32

    with pytest.raises(HpcrlError, match=r"a Mine cannot be exported: hpcrl/export/onnx_model.py has no"):
        streaming_step(Mine(), scaler_of(FEATURES), E)


@pytest.mark.parametrize(("model", "head"), KINDS)
def test_the_twin_equals_the_policys_own_step(model, head):
    torch.manual_seed(0)
    config = PolicyConfig(model_type=model, head=head, d_model=32, layers=2, heads=2, window=8)
    policy = build_policy(config, E, A).eval().requires_grad_(False)
    policy.actor.weight.normal_()
    policy.critic.weight.normal_()
    scaler = scaler_of(FEATURES)
    twin = streaming_step(policy, scaler, E)
    memory = policy.empty_memory(3)
    if model == "transformer":  # so that positions pass the end of the rotary table
        memory[2].fill_(4096 - 20)
    copied = tuple(part.clone() for part in memory)
    age = torch.zeros(3, dtype=torch.int64)
    for t in range(40):
        token = 3 * torch.randn(3, E)
        as_trained = token.clone()
        as_trained[:, : A * FEATURES] = torch.from_numpy(
            scaler.apply(token[:, : A * FEATURES].reshape(-1, FEATURES).numpy()).reshape(3, -1)
        )
        params, value = policy.step(as_trained, age, memory)
        weight = policy.distribution.weights(policy.distribution.mode(params))
        twin_params, twin_value, twin_weight, *copied = twin(token, age, *copied)
        torch.testing.assert_close(twin_params, params, rtol=0, atol=1e-5)
        torch.testing.assert_close(twin_value, value, rtol=0, atol=1e-5)
        torch.testing.assert_close(twin_weight, weight, rtol=0, atol=1e-5)
        for mine, own in zip(copied, memory, strict=True):
            torch.testing.assert_close(mine, own, rtol=0, atol=1e-5)
        age += 1
        if t in (5, 21):
            age[t % 3] = 0


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("batch", [1, 2, 7, 64])
def test_logits_agree_at_every_batch_size(tmp_path_factory, case, batch):
    made = small_case(tmp_path_factory, case)
    twins = Twins(made.policy, made.run.scaler, made.session, made.metadata, batch)
    seen = Differences()
    for t, token in enumerate(real_tokens(made.market, made.run.config.env, 60, batch, seed=batch)):
        twins.step(token, np.maximum(np.arange(batch) % 5, t) % 40, seen)
    assert seen.steps == 60 and seen.params <= 1e-4 and seen.value <= 1e-4
    assert seen.near_ties <= 0.001 * seen.decisions
    assert seen.weight <= (0.0 if case[1] == "discrete" else 1e-4)


@pytest.mark.parametrize("case", CASES)
def test_age_0_forgets_all_before(tmp_path_factory, case):
    made = small_case(tmp_path_factory, case)
    tokens = list(real_tokens(made.market, made.run.config.env, 30, 2))
    used, fresh = (Stream(made.session, made.metadata, 2) for _ in range(2))
    for t in range(10):
        used.step(tokens[t], np.full(2, t))
    for t in range(10, 30):
        age = np.full(2, t - 10)
        for one, other in zip(used.step(tokens[t], age), fresh.step(tokens[t], age), strict=True):
            np.testing.assert_allclose(one, other, rtol=0, atol=1e-5)


@pytest.mark.parametrize("case", CASES)
def test_accounts_that_joined_later_share_a_batch(tmp_path_factory, case):
    """Each row stands for itself, with a counter of its own."""
    made = small_case(tmp_path_factory, case)
    tokens = list(real_tokens(made.market, made.run.config.env, 24, 2, seed=5))
    early, late = Stream(made.session, made.metadata, 1), Stream(made.session, made.metadata, 1)
    for t in range(5):
        early.step(tokens[t][:1], np.full(1, t))
    both = Stream(made.session, made.metadata, 2)
    both.memory = {
        name: np.concatenate([early.memory[name], late.memory[name]], axis=1) for name in both.memory
    }
    for t in range(5, 24):
        alone = [early.step(tokens[t][:1], np.full(1, t)), late.step(tokens[t][1:], np.full(1, t - 5))]
        together = both.step(tokens[t], np.array([t, t - 5]))
        for index, outputs in enumerate(together):
            np.testing.assert_allclose(
                outputs, np.concatenate([alone[0][index], alone[1][index]]), rtol=0, atol=1e-5
            )


@pytest.mark.parametrize("case", CASES)
def test_a_graph_of_other_weights_is_refused(tmp_path_factory, case):
    made = small_case(tmp_path_factory, case)
    other = build_policy(made.run.config.policy, made.run.n_entries, made.run.n_assets).eval()
    other.load_state_dict(made.policy.state_dict())
    with torch.no_grad():
        other.actor.bias[0] += 2 * TOLERANCE
    with pytest.raises(RunFailed, match=r"at step 0 of random tokens, batch 1.* 0\.0002 in params"):
        verify(other, made.run.scaler, made.session, made.metadata, made.market, made.run.config.env)
    shifted = Scaler(
        made.run.scaler.feature_names,
        made.run.scaler.mean_F + 1e-3,
        made.run.scaler.std_F,
        made.run.scaler.clip,
    )
    with pytest.raises(RunFailed, match="the graph is not the policy"):
        verify(made.policy, shifted, made.session, made.metadata, made.market, made.run.config.env)


def test_large_numbers_may_differ_by_what_float32_rounds():
    seen = Differences()
    params = np.array([[[100.0, 99.9995, -100.0]]], dtype=np.float32)
    one = Outputs(params, np.zeros(1), np.full((1, 1), -1.0))
    seen.add(one, Outputs(params + np.float32(5e-4), np.zeros(1), np.zeros((1, 1))), True)
    assert seen.params == pytest.approx(5e-4, rel=0.1) and seen.within(True, 2.0)
    assert seen.near_ties == 1, "an action may change where the gap is as small as the rounding"
    seen.add(one, Outputs(params + np.float32(2e-3), np.zeros(1), one.weight_NA), True)
    assert not seen.within(True, 2.0)
    lost = Differences()
    lost.add(one, Outputs(params * np.float32("nan"), np.zeros(1), one.weight_NA), True)
    lost.add(one, one, True)
    assert not lost.within(True, 2.0), "NaN is not forgotten"


def play_in_episodes(case: Case, bars: int, episode: int) -> tuple[Differences, int]:
    """One account that follows the policy through real bars, episode after episode; memory is carried on.

    Returns what differed, and how often the target changed.
    """
    config = case.run.config
    tensors = case.market.to("cpu", identity_scaler(case.market.feature_names))
    rows = (int(case.market.first_bar_S.min()), case.market.n_bars)
    simulator = Simulator(tensors, config.env, env_ids_N=torch.arange(1), seed=0, bars=rows, history=1)
    stream, memory = Stream(case.session, case.metadata, 1), case.policy.empty_memory(1)
    distribution = case.policy.distribution
    seen, changes, before, t = Differences(), 0, None, episode
    for _ in range(bars):
        if t == episode:
            simulator.begin_episodes(episode)
            t = 0
        token = simulator.observe().numpy()
        age = np.full(1, t)
        with torch.inference_mode():
            params, value = case.policy.step(
                torch.from_numpy(scaled(case, token)), torch.from_numpy(age), memory
            )
            weight = distribution.weights(distribution.mode(params))
        torch_side = Outputs(params.numpy(), value.numpy(), weight.numpy())
        seen.add(torch_side, stream.step(token, age), case.metadata.distribution["kind"] == "discrete")
        changes += before is not None and before != weight.tolist()
        before = weight.tolist()
        simulator.step(weight)
        t += 1
    return seen, changes


def check_real_bars(case: Case, bars: int, record_property) -> None:
    seen, changes = play_in_episodes(case, bars, episode=400)
    record_property(f"{case.metadata.model_type}: real bars", f"{bars:,}")
    record_property(
        f"{case.metadata.model_type}: greatest difference of logits, near ties, changes of target",
        f"{seen.params:.1e}, {seen.near_ties}, {changes:,}",
    )
    assert changes > bars / 50, "a policy that never changes its mind shows nothing"
    assert seen.decisions == bars and seen.params <= 1e-4 and seen.weight == 0
    assert seen.near_ties <= 0.001 * seen.decisions


@pytest.mark.slow
def test_same_actions_over_real_bars(tmp_path_factory, record_property):
    check_real_bars(small_case(tmp_path_factory, REAL), 1000, record_property)


@pytest.mark.soak
@pytest.mark.parametrize("model", ["transformer", "lightweight"])
def test_same_actions_over_10000_real_bars_with_the_default_model(tmp_path, record_property, model):
    size = {"window": 64, "d_model": 256, "layers": 4, "heads": 4}
    check_real_bars(
        export_case(stage_sample(tmp_path), model, "discrete", "single", **size), 10_000, record_property
    )


STEP_ON = """
import sys
from hpcrl.bench.export import resident_mib
from hpcrl.export.metadata import open_policy
seen = resident_mib(*open_policy(sys.argv[1]), int(sys.argv[2]), every=int(sys.argv[2]) // 10)
print(*seen)
"""


def resident(path: Path, steps: int) -> list[float]:
    """Ten readings of a process of its own."""
    done = subprocess.run(
        [sys.executable, "-c", STEP_ON, str(path), str(steps)], capture_output=True, text=True, check=True
    )
    return [float(word) for word in done.stdout.split()]


def test_memory_is_constant_over_many_steps(tmp_path_factory):
    made = small_case(tmp_path_factory, ("lightweight", "discrete", "single"))
    seen = resident(made.path, 10_000)
    assert len(seen) == 10 and max(seen[1:]) - seen[0] < 1.0, seen  # 9,000 tokens alone take 1.2 MiB


@pytest.mark.soak
def test_memory_is_constant_over_100000_bars(tmp_path, record_property):
    case = export_case(stage_sample(tmp_path), "transformer", "discrete", "single", d_model=64, window=64)
    seen = resident(case.path, 100_000)
    record_property(
        "resident MiB of an exported policy after 10,000 and 100,000 bars", f"{seen[0]:.1f}, {seen[-1]:.1f}"
    )
    assert max(seen[1:]) - seen[0] < 1.0, seen


def test_resident_memory_is_read(tmp_path_factory):
    made = small_case(tmp_path_factory, ("lightweight", "discrete", "single"))
    assert len(resident_mib(made.session, made.metadata, 50, every=10)) == 5
