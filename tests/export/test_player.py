"""An exported policy in place of its checkpoint: the same evaluation."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from export_cases import CASES, FAST, small_case

from hpcrl.config.root import tree_digest
from hpcrl.env.simulator import Simulator
from hpcrl.evaluate.evaluate import evaluate_run
from hpcrl.evaluate.evaluation import AGENT
from hpcrl.export.metadata import METADATA_KEY
from hpcrl.export.player import load_onnx_run
from hpcrl.types import HpcrlError


@pytest.mark.parametrize("case", CASES)
def test_the_evaluation_is_the_checkpoints(tmp_path_factory, case):
    made = small_case(tmp_path_factory, case)
    checkpoint = evaluate_run(made.run.path, "validation", draws=2)
    exported = evaluate_run(made.path, "validation", draws=2)
    one, other = checkpoint.tracks[AGENT], exported.tracks[AGENT]
    assert one.target_TNA is not None and other.target_TNA is not None
    assert len(np.unique(one.target_TNA)) > 2
    if case[1] == "discrete":
        differ = one.target_TNA != other.target_TNA
        # One differing decision would change the account and all that follows: none does here.
        assert not differ.any()
        np.testing.assert_array_equal(one.equity_TN, other.equity_TN)
        assert checkpoint.row(AGENT)["total_return"] == exported.row(AGENT)["total_return"]
    else:
        np.testing.assert_allclose(one.target_TNA, other.target_TNA, rtol=0, atol=1e-4)
        np.testing.assert_allclose(one.equity_TN, other.equity_TN, rtol=1e-5)
    for key in ("epoch", "env_steps", "config_sha256", "bars", "accounts"):
        assert checkpoint.meta[key] == exported.meta[key]
    assert checkpoint.meta["data"] == exported.meta["data"]


@pytest.mark.parametrize("case", CASES)
def test_stepping_through_the_history_is_rebuilding(tmp_path_factory, case):
    made = small_case(tmp_path_factory, case)
    run = load_onnx_run(made.path)
    config = made.run.config
    length_N = torch.tensor([config.policy.padded_history, 5, 0])
    outputs = []
    for policy, scaler in ((run.policy, run.scaler), (made.policy, made.run.scaler)):
        tensors = made.market.to("cpu", scaler)
        history = config.policy.padded_history
        lo, hi = made.market.split_range("train")
        simulator = Simulator(
            tensors, config.env, env_ids_N=torch.arange(3), seed=1, bars=(lo, hi), history=history
        )
        history_NME, _ = simulator.begin_episodes(40)
        with torch.inference_mode():
            memory = policy.rebuild(history_NME, length_N)
            steps = []
            for t in range(10):
                params, value = policy.step(simulator.observe(), length_N + t, memory)
                steps.append(torch.cat([params.flatten(1), value[:, None]], 1))
                simulator.step(torch.zeros(3, run.n_assets, dtype=torch.float64))
        outputs.append(torch.stack(steps))
    torch.testing.assert_close(outputs[0], outputs[1], rtol=0, atol=1e-4)


def test_what_is_known_of_the_run_comes_from_the_metadata(tmp_path_factory):
    made = small_case(tmp_path_factory, FAST)
    run = load_onnx_run(made.path)
    assert (run.epoch, run.env_steps, run.record) == (4, 1000, None)
    assert run.config == made.run.config
    assert run.data_sha256 == made.market.sha256 and run.data_path == made.run.data_path
    assert run.checkpoint == made.path and run.path == made.path.parent
    raw = np.random.default_rng(0).normal(size=(4, len(made.market.feature_names))).astype(np.float32) * 1e6
    np.testing.assert_array_equal(run.scaler.apply(raw), raw)


def altered(source: Path, target: Path, **changes) -> Path:
    """The file with other metadata."""
    model = onnx.load(source)
    for prop in model.metadata_props:
        if prop.key == METADATA_KEY:
            prop.value = json.dumps(json.loads(prop.value) | changes)
    onnx.save(model, target)
    return target


def test_an_altered_config_is_refused(tmp_path_factory, tmp_path):
    made = small_case(tmp_path_factory, FAST)
    config = json.loads(json.dumps(made.metadata.config))
    config["env"]["costs"]["half_spread"] = 0.0
    path = altered(made.path, tmp_path / "cheap.onnx", config=config)
    with pytest.raises(HpcrlError, match=r"cheap\.onnx: config_sha256 .* it was altered"):
        load_onnx_run(path)
    # Not altered, but written by a version that had not heard of a key yet: its default is taken.
    older = json.loads(json.dumps(made.metadata.config))
    del older["env"]["fill_lag"]
    path = altered(made.path, tmp_path / "older.onnx", config=older, config_sha256=tree_digest(older))
    assert load_onnx_run(path).config == made.run.config
    path = altered(made.path, tmp_path / "unknown.onnx", config=made.metadata.config | {"colour": "red"})
    with pytest.raises(HpcrlError, match=r"config in unknown\.onnx.*colour"):
        load_onnx_run(path)


def test_moved_data_are_named_with_a_way_out(tmp_path_factory, tmp_path, hpcrl):
    made = small_case(tmp_path_factory, FAST)
    data = made.metadata.data | {"path": str(tmp_path / "gone.h5")}
    path = altered(made.path, tmp_path / "policy.onnx", data=data)
    code, out, err = hpcrl("evaluate", path, "--split", "validation")
    assert code == 2 and out == "" and err.count("\n") == 1
    assert "gone.h5 is not there" in err and "--data" in err
    code, out, err = hpcrl("evaluate", path, "--split", "validation", "--data", made.run.data_path, "--json")
    assert code == 0 and "agent" in out
