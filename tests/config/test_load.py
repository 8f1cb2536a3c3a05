"""Precedence, derived values, and one clear error for each kind of mistake."""

from __future__ import annotations

from pathlib import Path

import pytest

from hpcrl.config.load import load_config, one_process
from hpcrl.config.root import changed_keys
from hpcrl.types import HpcrlError

ROOT = Path(__file__).resolve().parents[2]


def load(*sets: str, **options):
    return load_config(overrides=sets, environment=options.pop("environment", {}), **options)


def test_the_defaults_are_the_missions():
    config = load()
    assert (config.train.world_size, config.train.epochs, config.env.envs_per_gpu) == (8, 100, 10)
    assert (config.learn.rollout, config.learn.ppo_epochs, config.learn.batch_size) == (512, 4, 256)
    assert (config.learn.lr, config.policy.d_model, config.policy.layers) == (3e-4, 256, 4)
    assert (config.engine.precision, config.engine.zero_stage) == ("bf16", 1)
    assert (config.checkpoint.every_epochs, config.monitor.gpu_stats_every) == (50, 10)


def test_base_yaml_writes_out_the_defaults_and_changes_only_the_lot():
    base = load(path=ROOT / "yaml/base.yaml")
    assert changed_keys(load(), base) == ["env.lot"]


@pytest.mark.parametrize("name", ["base", "local", "train_8gpu"])
def test_every_shipped_yaml_is_valid(name):
    assert load(path=ROOT / f"yaml/{name}.yaml").minibatches >= 1


def test_the_eight_gpu_file_is_what_the_mission_asks():
    config = load(path=ROOT / "yaml/train_8gpu.yaml")
    assert (config.train.world_size, config.env.envs_per_gpu, config.learn.batch_size) == (8, 1000, 32_000)
    assert config.minibatches == 16 and config.chunks_per_batch == 125


def test_precedence_is_defaults_yaml_environment_set(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text("train: {world_size: 2}\nenv: {envs_per_gpu: 20}\nlearn: {lr: 1e-4, gamma: 0.9}\n")
    environment = {"GPU_COUNT": "3", "ENVS_PER_GPU": "30", "TRAINING_MODE": "single"}
    config = load("env.envs_per_gpu=40", "learn.lr=5e-5", path=path, environment=environment)
    assert config.learn.gamma == 0.9 and config.learn.clip_param == 0.2
    assert config.train.world_size == 3 and config.train.training_mode == "single"
    assert config.env.envs_per_gpu == 40 and config.learn.lr == 5e-5


def test_include_reads_the_other_file_first(tmp_path):
    (tmp_path / "low.yaml").write_text("learn: {lr: 1e-4, gamma: 0.9}\n")
    (tmp_path / "high.yaml").write_text("include: low.yaml\nlearn: {lr: 2e-4}\n")
    config = load(path=tmp_path / "high.yaml")
    assert config.learn.lr == 2e-4 and config.learn.gamma == 0.9


@pytest.mark.parametrize(
    ("item", "parts"),
    [
        ("learn.learning_rate=1", ["learn.learning_rate", "nearest valid key: learn."]),
        ("learn.lrr=1", ["unknown key learn.lrr = 1", "nearest valid key: learn.lr"]),
        ("env.costs.half_sprd=1", ["env.costs.half_sprd", "env.costs.half_spread"]),
        ("learn.lr=fast", ["learn.lr = 'fast'", "valid number"]),
        ("learn.lr=-1", ["learn.lr = -1", "greater than 0"]),
        ("learn.lr=.nan", ["learn.lr", "finite"]),
        ("learn.gamma=1.0", ["learn.gamma = 1.0", "less than 1"]),
        ("train.world_size=two", ["train.world_size = 'two'", "integer"]),
        ("train.world_size=0", ["train.world_size = 0", "greater than or equal to 1"]),
        ("engine.precision=fp16", ["engine.precision = 'fp16'", "'bf16' or 'fp32'"]),
        ("engine.zero_stage=0", ["zero_stage = 0", "bf16", "use zero_stage = 1"]),
        ("learn.batch_size=300", ["learn.batch_size = 300", "nearest that do: 256, 512, 1024"]),
        ("learn.sequence_length=100", ["sequence_length = 100", "rollout = 512", "nearest that do"]),
        ("learn.sequence_length=32", ["sequence_length = 32", "policy.window = 64"]),
        ("policy.heads=3", ["d_model = 256", "2 x heads = 6"]),
        ("policy.positions=[1,0]", ["positions", "ascending"]),
        ("env.rewards.log_return=0", ["rewards", "at least one"]),
        ("market.train_fraction=0.9", ["train_fraction + validation_fraction", "no test split"]),
        ("policy.model_type=lstm", ["policy.model_type = 'lstm'", "transformer"]),
        ("learn=3", ["learn = 3"]),
        ("learn.lr", ["--set 'learn.lr'", "key=value"]),
        ("=3", ["--set '=3'", "key=value"]),
    ],
)
def test_a_mistake_is_one_line_that_names_key_value_and_what_is_right(item, parts):
    with pytest.raises(HpcrlError) as caught:
        load(item)
    message = str(caught.value)
    assert "\n" not in message and caught.value.exit_code == 2
    for part in parts:
        assert part in message, message


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("learn: [1, 2", "not valid YAML"),
        ("- 1\n- 2\n", "expected sections"),
        ("include: nowhere.yaml\n", "cannot be read"),
        ("learn: {lr: 1e-4}\nlern: {}\n", "unknown key lern"),
    ],
)
def test_a_broken_file_is_named(tmp_path, text, part):
    path = tmp_path / "broken.yaml"
    path.write_text(text)
    with pytest.raises(HpcrlError, match=part) as caught:
        load(path=path)
    assert "yaml" in str(caught.value)
    with pytest.raises(HpcrlError, match="cannot be read"):
        load(path=tmp_path / "none.yaml")


def test_ranks_is_the_world_size_unless_somebody_said_another():
    assert load(ranks=2).train.world_size == 2
    with pytest.raises(HpcrlError, match=r"--ranks 2 disagrees with train\.world_size = 4"):
        load("train.world_size=4", ranks=2)
    with pytest.raises(HpcrlError, match="--ranks 2 disagrees"):
        load(ranks=2, environment={"GPU_COUNT": "8"})


def test_one_process_takes_a_yaml_for_eight_but_not_an_explicit_number():
    assert one_process(load(), {}, []).train.world_size == 1
    with pytest.raises(HpcrlError, match="add --ranks 4"):
        one_process(load("train.world_size=4"), {}, ["train.world_size=4"])
    with pytest.raises(HpcrlError, match="add --ranks 8"):
        one_process(load(), {"GPU_COUNT": "8"}, [])
    single = load(environment={"GPU_COUNT": "8", "TRAINING_MODE": "single"})
    assert one_process(single, {"GPU_COUNT": "8"}, []).train.world_size == 1


def test_the_digest_changes_with_what_decides_the_result_and_nothing_else():
    base = load().digest()
    assert load("learn.lr=1e-5").digest() != base
    for live in (
        "train.epochs=7",
        "checkpoint.every_minutes=1",
        "monitor.progress=plain",
        "train.world_size=2",
    ):
        assert load(live).digest() == base
