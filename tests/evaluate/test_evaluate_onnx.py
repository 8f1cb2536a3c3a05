"""``hpcrl evaluate`` on an exported file: the same figures as its checkpoint, the same seal, clear errors."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from evaluate_runs import make_config, make_data, make_run

from hpcrl import cli
from hpcrl.evaluate.evaluate import evaluate_run
from hpcrl.evaluate.evaluation import AGENT
from hpcrl.evaluate.sealed import JOURNAL
from hpcrl.export.export import export_policy
from hpcrl.types import HpcrlError

pytestmark = pytest.mark.slow  # an export takes seconds


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("onnx")
    return make_run(folder / "runs", make_config(make_data(folder / "market.h5")))


@pytest.fixture(scope="module")
def policy(run) -> Path:
    export_policy(run, run.parents[1] / "policy.onnx")
    return run.parents[1] / "policy.onnx"


def test_an_exported_policy_plays_as_its_checkpoint(run, policy):
    one, other = (evaluate_run(path, "validation", draws=3) for path in (run, policy))
    same = one.tracks[AGENT].target_TNA == other.tracks[AGENT].target_TNA
    assert same.mean() >= 0.999
    if same.all():
        assert other.row(AGENT) == pytest.approx(one.row(AGENT), rel=1e-12, nan_ok=True)
    assert other.meta["run"] == "policy" and other.meta["epoch"] == one.meta["epoch"] == 4
    assert other.meta["config_sha256"] == one.meta["config_sha256"]
    said = other.meta["statistics"]
    assert said["trials"] == 0 and math.isnan(said["dsr"]) and "ONNX" in said["reasons"]["dsr"]
    assert said["psr"] == pytest.approx(one.meta["statistics"]["psr"], rel=1e-9)


def test_the_verb_takes_it(policy, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["hpcrl", "evaluate", str(policy), "--split", "validation", "--json"])
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert not end.value.code
    found = json.loads(capsys.readouterr().out)
    assert found["plot"] == str(policy.parent / "evaluation_validation_policy.png")
    assert Path(found["plot"]).is_file() and found["meta"]["checkpoint"] == "policy.onnx"


def test_in_a_run_folder_it_opens_the_seal_of_the_run(run, policy):
    inside = run / "policy.onnx"
    inside.write_bytes(policy.read_bytes())
    counts = [evaluate_run(path, draws=2).meta["test_openings"] for path in (run, inside)]
    assert counts == [1, 2]
    assert len((run.parent / JOURNAL).read_text().splitlines()) == 2 and not (run / JOURNAL).exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"checkpoint_epoch": 4}, "is one checkpoint; an epoch"),
        ({"device": "cuda"}, "is played on the CPU"),
        ({"device": "tpu"}, "'tpu' is not known"),
    ],
)
def test_unsuitable_arguments_are_one_error(policy, arguments, message):
    with pytest.raises(HpcrlError, match=message):
        evaluate_run(policy, "validation", **arguments)


def test_what_is_no_export_of_ours_is_one_error(tmp_path, policy):
    with pytest.raises(HpcrlError, match="no such file"):
        evaluate_run(tmp_path / "nowhere.onnx", "validation")
    torn = tmp_path / "torn.onnx"
    for content in (b"", b"not a graph", policy.read_bytes()[:1000]):
        torn.write_bytes(content)
        with pytest.raises(HpcrlError, match=r"torn\.onnx"):
            evaluate_run(torn, "validation")
