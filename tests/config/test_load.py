"""Precedence, derived values, and one clear error for each kind of mistake."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from hpcrl.config.divisors import divisors
from hpcrl.config.load import load_config, one_process
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


def test_base_yaml_writes_out_the_defaults():
    assert load(path=ROOT / "yaml/base.yaml") == load()


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
        ("learn.lr=fast", ["--set learn.lr=fast: learn.lr = 'fast': a number is needed"]),
        ("learn.lr=-1", ["learn.lr = -1", "greater than 0"]),
        ("learn.lr=.nan", ["learn.lr", "finite"]),
        ("learn.gamma=1.0", ["learn.gamma = 1.0", "less than 1"]),
        ("train.world_size=two", ["train.world_size = 'two': a whole number"]),
        ("train.world_size=0", ["train.world_size = 0", "greater than or equal to 1"]),
        ("engine.precision=fp16", ["engine.precision = 'fp16'", "'bf16' or 'fp32'"]),
        ("engine.zero_stage=0", ["zero_stage = 0", "bf16", "use zero_stage = 1"]),
        ("learn.batch_size=300", ["learn.batch_size = 300", "nearest that do: 256, 512, 1024"]),
        ("learn.sequence_length=100", ["sequence_length = 100", "rollout = 512", "nearest that do"]),
        ("learn.rollout=1000000007", ["learn.rollout = 1000000007", "less than or equal to 1000000"]),
        ("learn.sequence_length=32", ["sequence_length = 32", "policy.window = 64"]),
        ("policy.window=7", ["policy.window = 7", "nearest windows that divide it: 2, 4, 8"]),
        ("policy.window=200", ["policy.window = 200", "64, 128, 256"]),
        ("policy.heads=3", ["d_model = 256", "2 x heads = 6"]),
        ("policy.positions=[1,0]", ["policy.positions = [1, 0]", "ascending"]),
        ("policy.head=beta", ["policy.head = 'beta'", "'discrete' or 'continuous'"]),
        ("policy.weight_low=1", ["weight_low = 1 must lie below weight_high = 1"]),
        ("policy.positions=[yes,2]", ["policy.positions = [True, 2]: a number is needed"]),
        ("env.rewards.log_return=0", ["rewards", "at least one"]),
        ("market.train_fraction=0.9", ["train_fraction + validation_fraction = 0.9 + 0.15", "test split"]),
        ("market.train_fraction=1.5", ["market.train_fraction = 1.5", "less than 1"]),
        ("market.symbols=A", ["market.symbols = 'A': a list is needed: write [A]"]),
        ("market.symbols=A,B", ["write [A, B]"]),
        ("market.symbols=[ON]", ["market.symbols[0] = True: a text is needed; put it in quotes"]),
        ("train.epochs=yes", ["train.epochs = True: a whole number is needed"]),
        ("train.epochs=2.5", ["train.epochs = 2.5: a whole number is needed"]),
        ("learn.lr=true", ["learn.lr = True: a number is needed"]),
        ("engine.zero_stage=true", ["engine.zero_stage = True: a whole number is needed"]),
        ("env.costs.participation=no", ["env.costs.participation = False: a number is needed"]),
        ("env.intrabar=maybe", ["env.intrabar = 'maybe': true or false is needed"]),
        ("learn={lr: 1, lr: 2}", ["--set learn={lr: 1, lr: 2}: lr is given twice"]),
        ("learn.1=2", ["unknown key learn.1 = 2"]),
        ("learn={1: 2}", ["unknown key learn.1: a key is a word"]),
        ("policy.model_type=lstm", ["policy.model_type = 'lstm'", "transformer"]),
        ("learn=3", ["learn = 3: expected a section of keys"]),
        ("learn=", ["the section learn is empty; give it keys or leave it out"]),
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
        ("train: {epochs: 1}\nlearn: {lr: 1}\nlearn: {gamma: 0.9}\n", "yaml, line 3: learn is given twice"),
        ("train:\n  epochs: 1\n  epochs: 2\n", "yaml, line 3: epochs is given twice"),
        ("", r"expected sections \(train:, env:, \.\.\.\), it is empty"),
        ("# nothing yet\n", "expected sections .* it is empty"),
        ("false\n", "expected sections .* found False"),
        ("0\n", "expected sections .* found 0"),
        ("learn:\n", "yaml: the section learn is empty; give it keys or leave it out"),
        ("env: {costs: 3}\n", "yaml: env.costs = 3: expected a section of keys"),
        ("include:\n", r"yaml: include is empty; write one YAML file's name \(include: base.yaml\)"),
        ("include: [a.yaml, b.yaml]\n", r"include = \['a.yaml', 'b.yaml'\]; write one"),
        ("include: nowhere.yaml\n", "broken.yaml: its include .*nowhere.yaml cannot be read"),
        ("include: broken.yaml\n", "broken.yaml: includes itself: .*broken.yaml -> .*broken.yaml"),
        ("train: {epochs: yes}\n", "yaml: train.epochs = True: a whole number is needed"),
        ("market: {path: 2024-13-45}\n", "not valid YAML"),
        ('market: {path: "a\x07"}\n', "not valid YAML"),
        ("market: {path: !!bool x}\n", "not valid YAML"),
        ("market: {path: !!timestamp x}\n", "not valid YAML"),
        pytest.param("[" * 5000, "not valid YAML .it is nested too deeply", id="deep"),
        ("learn: {lr: 1e-4}\nlern: {}\n", "unknown key lern"),
    ],
)
def test_a_broken_file_is_named(tmp_path, text, part):
    path = tmp_path / "broken.yaml"
    path.write_text(text)
    with pytest.raises(HpcrlError, match=part) as caught:
        load(path=path)
    assert "yaml" in str(caught.value) and "\n" not in str(caught.value)
    with pytest.raises(HpcrlError, match="cannot be read"):
        load(path=tmp_path / "none.yaml")


def test_a_circle_of_includes_is_named(tmp_path):
    for name, other in (("a", "b"), ("b", "c"), ("c", "b")):
        (tmp_path / f"{name}.yaml").write_text(f"include: {other}.yaml\n")
    with pytest.raises(HpcrlError, match=r"b.yaml: includes itself: \S+b.yaml -> \S+c.yaml -> \S+b.yaml$"):
        load(path=tmp_path / "a.yaml")


def test_a_key_beside_a_merged_one_is_not_given_twice(tmp_path):
    path = tmp_path / "merge.yaml"
    path.write_text("env:\n  costs:\n    <<: {bps: 1, per_share: 0}\n    bps: 2\n")
    costs = load(path=path).env.costs
    assert (costs.bps, costs.per_share) == (2, 0)


def test_a_section_that_contains_itself_is_refused(tmp_path):
    for name, first in (("low", ""), ("high", "include: low.yaml\n")):
        (tmp_path / f"{name}.yaml").write_text(first + "env: &e {costs: *e}\n")
    with pytest.raises(HpcrlError, match=r"high\.yaml: a section contains itself"):
        load(path=tmp_path / "high.yaml")


def test_numbers_written_as_text_and_whole_floats_are_numbers(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text("learn: {lr: 1e-4, ppo_epochs: 3.0}\ntrain: {epochs: '1e3'}\nenv: {intrabar: no}\n")
    config = load("engine.zero_stage=2.0", "policy.positions=['-1', 1e0]", path=path)
    assert config.learn.lr == 1e-4 and config.train.epochs == 1000 and config.env.intrabar is False
    for whole, value in ((config.learn.ppo_epochs, 3), (config.engine.zero_stage, 2)):
        assert type(whole) is int and whole == value
    assert config.policy.positions == (-1.0, 1.0)
    assert load("market.path=1e5").market.path == "1e5"


def test_an_error_names_who_set_the_offending_key(tmp_path):
    low, path = tmp_path / "low.yaml", tmp_path / "s.yaml"
    low.write_text("learn: {gamma: 2}\n")
    path.write_text("include: low.yaml\nenv: {lot: -1, initial_cash: 0}\n")
    with pytest.raises(HpcrlError) as caught:
        load("learn.lr=-1", path=path, environment={"GPU_COUNT": "abc"})
    for part in (
        "environment GPU_COUNT: train.world_size = 'abc': a whole number is needed",
        "--set learn.lr=-1: learn.lr = -1: ",
        f"config {low}: learn.gamma = 2: ",
        f"config {path}: env.initial_cash = 0: must be greater than 0; env.lot = -1: ",
    ):
        assert part in str(caught.value), str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_check_of_several_keys_names_who_set_the_last_of_them(tmp_path):
    path = tmp_path / "s.yaml"
    path.write_text("policy: {window: 7}\n")
    with pytest.raises(HpcrlError, match=f"^config {path}: learn.sequence_length = 256"):
        load("learn.lr=1e-5", path=path)
    with pytest.raises(HpcrlError, match=r"^--set learn\.batch_size=300: learn\.batch_size = 300"):
        load("learn.batch_size=300", path=ROOT / "yaml/base.yaml")
    with pytest.raises(HpcrlError, match=r"^environment ENVS_PER_GPU: learn\.batch_size = 1024"):
        load(base={"learn": {"batch_size": 1024}}, environment={"ENVS_PER_GPU": "5"})


def test_a_value_that_is_no_section_is_not_hidden_by_a_key_set_later(tmp_path):
    (tmp_path / "c.yaml").write_text("learn: 3\n")
    with pytest.raises(HpcrlError, match=r"c.yaml: learn = 3: expected a section of keys"):
        load("learn.lr=1e-4", path=tmp_path / "c.yaml")


def test_set_of_a_section_keeps_its_other_keys(tmp_path):
    (tmp_path / "c.yaml").write_text("learn: {gamma: 0.9}\n")
    config = load("learn={lr: 1e-4}", path=tmp_path / "c.yaml")
    assert (config.learn.lr, config.learn.gamma) == (1e-4, 0.9)


def test_the_environment_counts_over_a_runs_config_unless_the_caller_gives_none():
    base = {"train": {"world_size": 2, "epochs": 7}}
    config = load(base=base, environment={"GPU_COUNT": "3"})
    assert (config.train.world_size, config.train.epochs) == (3, 7)
    assert load(base=base, environment={}).train.world_size == 2
    assert base == {"train": {"world_size": 2, "epochs": 7}}


def test_divisors_of_large_numbers_are_found_at_once():
    assert divisors(12) == [1, 2, 3, 4, 6, 12] and divisors(9) == [1, 3, 9] and divisors(1) == [1]
    start = time.perf_counter()
    with pytest.raises(HpcrlError, match="nearest that do: 1, 999983"):
        load("learn.rollout=999983")
    large = ["learn.rollout=1000000", "learn.sequence_length=64", "env.envs_per_gpu=999983"]
    with pytest.raises(HpcrlError, match=r"learn\.batch_size = 257"):
        load(*large, "learn.batch_size=257")
    assert time.perf_counter() - start < 5


def test_ranks_is_the_world_size_unless_somebody_said_another():
    assert load(ranks=2).train.world_size == 2
    with pytest.raises(HpcrlError, match=r"--ranks 2 disagrees with train\.world_size = 4"):
        load("train.world_size=4", ranks=2)
    with pytest.raises(HpcrlError, match=r"--ranks 2 disagrees with train\.world_size = 4"):
        load("train={world_size: 4}", ranks=2)
    with pytest.raises(HpcrlError, match="--ranks 2 disagrees"):
        load(ranks=2, environment={"GPU_COUNT": "8"})
    assert load("train.world_size='2'", ranks=2).train.world_size == 2


def test_one_process_takes_a_yaml_for_eight_but_not_an_explicit_number():
    assert one_process(load(), {}, []).train.world_size == 1
    with pytest.raises(HpcrlError, match="add --ranks 4"):
        one_process(load("train.world_size=4"), {}, ["train.world_size=4"])
    with pytest.raises(HpcrlError, match="add --ranks 8"):
        one_process(load(), {"GPU_COUNT": "8"}, [])
    single = load(environment={"GPU_COUNT": "8", "TRAINING_MODE": "single"})
    assert one_process(single, {"GPU_COUNT": "8"}, []).train.world_size == 1


def test_the_digest_changes_with_every_key_that_a_resume_may_not_change_and_no_other():
    base = load().digest()
    assert load("learn.lr=1e-5").digest() != base
    for live in (
        "train.epochs=7",
        "checkpoint.every_minutes=1",
        "monitor.progress=plain",
        "train.world_size=2",
    ):
        assert load(live).digest() == base
