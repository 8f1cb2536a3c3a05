"""A site's YAML file: defaults, what overrides what, and one clear line for each mistake."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpcrl.config.base import Mistake
from hpcrl.config.load_site import load_site, looks_secret, site_of
from hpcrl.config.site import KINDS, Site, seconds_of
from hpcrl.types import HpcrlError

FILES = sorted((Path(__file__).resolve().parents[2] / "yaml/site").glob("*.yaml"))


def test_the_documented_defaults_are_the_built_in_ones():
    (default,) = (path for path in FILES if path.name == "default.yaml")
    written, built_in = load_site(default, {}), Site()
    for kind in KINDS:
        assert written.job(kind) == built_in.job(kind)
    parts = {"stage", "train", "evaluate"}
    assert written.model_dump(exclude=parts) == built_in.model_dump(exclude=parts)
    text = default.read_text()
    assert all(f"\n{name}:" in text for name in Site.model_fields)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_every_file_here_loads_and_comes_back_from_json(path):
    site = load_site(path, {})
    record = json.loads(json.dumps(site.model_dump(mode="json", exclude_none=True)))
    assert site_of(record, "submission.json") == site


def test_a_section_wins_over_the_top_level_and_that_over_the_defaults():
    site = site_of({"time": "04:00:00", "gres": "gpu:a100", "train": {"time": "1-00"}, "mem": "1G"}, "s")
    train, stage, evaluate = (site.job(kind) for kind in ("train", "stage", "evaluate"))
    assert (train.time, stage.time, evaluate.time) == ("1-00", "04:00:00", "04:00:00")
    assert (train.mem, stage.mem) == ("1G", "1G") and stage.cpus_per_task == 2
    assert (train.gres, evaluate.gres, stage.gres) == ("gpu:a100", "gpu:a100", "none")


def test_the_environment_names_a_file_and_the_option_wins(tmp_path):
    one, other = tmp_path / "one.yaml", tmp_path / "other.yaml"
    one.write_text("partition: one")
    other.write_text("partition: other")
    assert load_site(None, {"HPCRL_SITE": str(one)}).partition == "one"
    assert load_site(other, {"HPCRL_SITE": str(one)}).partition == "other"
    assert load_site(None, {}) == load_site(None, {"HPCRL_SITE": ""}) == Site()


@pytest.mark.parametrize(
    ("time", "seconds"),
    [
        ("90", 5400), ("90:30", 5430), ("24:00:00", 86400), ("2-12", 216000), ("2-12:30", 217800),
        ("1-00:00:01", 86401),
    ],
)  # fmt: skip
def test_slurms_forms_of_time(time, seconds):
    assert seconds_of(time) == seconds


@given(st.text(max_size=12))
def test_other_texts_are_no_time(text):
    try:
        assert seconds_of(text) > 0
    except Mistake as mistake:
        assert "time" in str(mistake)


@pytest.mark.parametrize(
    ("tree", "part"),
    [
        ({"partion": "gpu"}, "unknown key partion = 'gpu'; nearest valid key: partition"),
        ({"train": {"tim": "1"}}, "unknown key train.tim = '1'; nearest valid key: train.time"),
        ({"train": None}, "the section train is empty"),
        ({"modules": {"load": "cuda"}}, "modules.load = 'cuda': a list is needed: write [cuda]"),
        ({"time": 86400}, 'time = 86400: a text in quotes is needed, "24:00:00"'),
        ({"time": "1:2:3:4"}, "time = '1:2:3:4': a time is needed"),
        ({"time": "0"}, "time = '0': a time above 0"),
        ({"mem": "64 GB"}, "mem = '64 GB': a size is needed"),
        ({"gres": "gpu:8"}, "the number is gpus_per_node"),
        ({"gpus_per_node": 0}, "gpus_per_node = 0"),
        ({"cpus_per_task": True}, "cpus_per_task = True: a whole number is needed"),
        ({"requeue": "always"}, "'requeue', 'successor' or 'never'"),
        ({"partition": "a\n#SBATCH --x"}, "one line of text"),
        ({"env_file": ".env"}, "env_file = '.env': an absolute path is needed"),
        ({"scratch": "tmp"}, "scratch = 'tmp': an absolute path is needed"),
        ({"signal_seconds": 700, "train": {"time": "10"}}, "less than the time limit of train, 10"),
        ({"sbatch": {"output": "x"}}, "hpcrl submit sets --output itself"),
        ({"sbatch": {"kill_on_invalid_dep": "x"}}, "hpcrl submit sets --kill-on-invalid-dep itself"),
        ({"sbatch": {"gpus-per-node": 4}}, "write it as the site's key gpus_per_node"),
        ({"sbatch": {"export": "ALL"}}, "hpcrl submit sets --export itself"),
        ({"sbatch": {"x=1 --y": 1}}, "a long option of sbatch is needed"),
        ({"sbatch": {"comment": "a\nb"}}, "a value in one line"),
        ({"sbatch": {"exclusive": False}}, "a value in one line is needed, or true"),
    ],
)
def test_a_mistake_is_one_line_that_names_the_key(tree, part):
    with pytest.raises(HpcrlError) as caught:
        site_of(tree, "site x.yaml")
    text = str(caught.value)
    assert text.startswith("site x.yaml: ") and part in text and "\n" not in text


@pytest.mark.parametrize(
    ("tree", "key"),
    [
        ({"supabase_service_role_key": "canary"}, "supabase_service_role_key"),
        ({"modules": {"db_password": "canary"}}, "modules.db_password"),
        ({"sbatch": {"comment": "eyJhbGciOiJIUzI1NiJ9.canary"}}, "sbatch.comment"),
        ({"sbatch": {"comment": "sb_secret_canary"}}, "sbatch.comment"),
        ({"env_file": "postgresql://me:canary@db/market"}, "env_file"),
        ({"modules": {"load": ["cuda", "password=canary"]}}, "modules.load[1]"),
        ({"eyJhbGciOiJIUzI1NiJ9canary": 1}, "a key of the file"),
    ],
)
def test_what_looks_like_a_secret_is_refused_unseen(tree, key):
    with pytest.raises(HpcrlError) as caught:
        site_of(tree, "site x.yaml")
    assert f"{key} looks like a secret" in str(caught.value) and "canary" not in str(caught.value)


@pytest.mark.parametrize(
    "text", ["https://me@host/x", "gpu:a100", "/apps/hpcrl", "a100|h100", "host=db user=me"]
)
def test_ordinary_values_do_not(text):
    assert not looks_secret(text)


def test_a_file_that_is_missing_or_no_yaml_is_named(tmp_path):
    with pytest.raises(HpcrlError, match=r"none\.yaml: cannot be read"):
        load_site(tmp_path / "none.yaml")
    (tmp_path / "list.yaml").write_text("[1, 2]")
    with pytest.raises(HpcrlError, match=r"list\.yaml: expected lines of the form key: value"):
        load_site(tmp_path / "list.yaml")
