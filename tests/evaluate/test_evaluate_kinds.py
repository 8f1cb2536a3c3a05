"""Every head and model is played as it was trained: the targets are the mode of what ``sequence`` says."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from evaluate_runs import make_config, make_data, make_run

from hpcrl.checkpoint.load import load_data, load_run
from hpcrl.config.policy import PolicyConfig
from hpcrl.env.simulator import Simulator
from hpcrl.evaluate.evaluate import evaluate_run
from hpcrl.evaluate.evaluation import AGENT

KINDS = [("transformer", "continuous"), ("lightweight", "discrete"), ("lightweight", "continuous")]


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return make_data(tmp_path_factory.mktemp("data") / "market.h5", symbols=("AAA", "BBB", "CCC"))


@pytest.mark.parametrize(("kind", "head"), KINDS)
def test_the_agents_targets_are_the_mode_of_its_own_distribution(tmp_path, data, kind, head):
    config = make_config(data, assets="all")
    policy = PolicyConfig(
        model_type=kind, head=head, d_model=32, layers=2, heads=2, window=8, weight_low=-0.4, weight_high=0.3
    )  # type: ignore[arg-type]
    run = make_run(tmp_path, config.model_copy(update={"policy": policy}))
    evaluation = evaluate_run(run, "validation", draws=3)
    loaded = load_run(run)
    market = load_data(loaded)
    lo, hi = market.split_range("validation")
    simulator = Simulator(
        market.to("cpu", loaded.scaler),
        loaded.config.env,
        env_ids_N=torch.arange(1),
        seed=0,
        bars=(lo, hi),
        history=policy.padded_history,
    )
    history, length = simulator.begin_at(torch.arange(3)[None], torch.tensor([lo]))
    target_TNA = evaluation.tracks[AGENT].target_TNA
    assert target_TNA is not None and target_TNA.shape[2] == 3
    tokens = []
    for target_NA in target_TNA:
        tokens.append(simulator.observe())
        simulator.step(torch.tensor(target_NA))
    age = length[:, None] + torch.arange(len(tokens))
    memory = loaded.policy.rebuild(history, length)
    params, _ = loaded.policy.sequence(torch.stack(tokens, 1), memory, age)
    distribution = loaded.policy.distribution
    expected = distribution.weights(distribution.mode(params))[0].numpy()
    if head == "continuous":
        assert abs(expected - target_TNA[:, 0]).max() < 1e-4
        assert -0.4 <= target_TNA.min() < -0.2 and 0.1 < target_TNA.max() <= 0.3
    else:
        assert (expected == target_TNA[:, 0]).mean() > 0.99  # a tie of logits may fall either way
        assert len(set(target_TNA.ravel())) == 3
