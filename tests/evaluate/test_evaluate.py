"""A whole evaluation: rows, warnings, JSON, picture, determinism, and clear errors."""

from __future__ import annotations

import io
import json
import math
import shutil
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from evaluate_runs import make_config, make_data, make_run
from rich.console import Console

from hpcrl import cli
from hpcrl.evaluate.evaluate import evaluate_run, print_evaluation
from hpcrl.evaluate.evaluation import AGENT, EQUAL, FLAT, HOLD, RANDOM, STRATEGIES
from hpcrl.evaluate.plot import plot_path, write_plot
from hpcrl.evaluate.sealed import JOURNAL
from hpcrl.evaluate.table import render_table
from hpcrl.types import HpcrlError, RunFailed

COSTLESS_FEES = {"costs": {"min_fee": 0.0, "per_share": 0.0, "impact_coef": 0.0, "participation": None}}


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return make_data(tmp_path_factory.mktemp("data") / "market.h5")


@pytest.fixture(scope="module")
def run(tmp_path_factory, data) -> Path:
    return make_run(tmp_path_factory.mktemp("runs"), make_config(data))


@pytest.fixture(scope="module")
def evaluation(run):
    return evaluate_run(run, "validation", draws=12)


def test_every_strategy_has_a_total_and_a_row_per_symbol(evaluation):
    assert evaluation.strategies == STRATEGIES
    for strategy in STRATEGIES:
        for symbol in (None, "AAA", "BBB") if strategy != EQUAL else (None,):
            assert evaluation.row(strategy, symbol)["bars"] == evaluation.meta["bars"] == 57
    flat = evaluation.row(FLAT)
    assert flat["costs"] == flat["trades"] == flat["total_return"] == flat["exposure"] == 0
    assert math.isnan(flat["sharpe"]) and math.isnan(flat["hit_rate"])
    assert 0 <= evaluation.meta["agent_beats_random"] <= 1


def test_total_is_the_mean_of_equal_accounts(evaluation):
    for strategy in (AGENT, HOLD):
        both = [evaluation.row(strategy, symbol)["total_return"] for symbol in ("AAA", "BBB")]
        assert evaluation.row(strategy)["total_return"] == pytest.approx(np.mean(both))
        assert evaluation.curves.equity[strategy][-1] - 1 == pytest.approx(np.mean(both))


def test_the_same_evaluation_twice_is_the_same(run, evaluation):
    again = evaluate_run(run, "validation", draws=12).to_json()
    first = evaluation.to_json()
    for timed in ("created", "seconds"):
        again["meta"].pop(timed), first["meta"].pop(timed)
    assert again == first


def test_seed_moves_matched_random_only(run, evaluation):
    other = evaluate_run(run, "validation", draws=12, seed=9)
    assert other.row(AGENT)["total_return"] == evaluation.row(AGENT)["total_return"]
    assert other.row(RANDOM)["total_return"] != evaluation.row(RANDOM)["total_return"]


def test_the_policy_plays_as_it_does_step_by_step_in_training(run, evaluation, data):
    """The first account's actions, recomputed from tokens by the sequence path, on its own."""
    from hpcrl.checkpoint.load import load_data, load_run
    from hpcrl.env.simulator import Simulator

    loaded = load_run(run)
    market = load_data(loaded)
    lo, hi = market.split_range("validation")
    simulator = Simulator(
        market.to("cpu", loaded.scaler),
        loaded.config.env,
        env_ids_N=torch.arange(1),
        seed=0,
        bars=(lo, hi),
        history=loaded.config.policy.padded_history,
    )
    history, length = simulator.begin_at(torch.zeros(1, 1, dtype=torch.int64), torch.tensor([lo]))
    target = evaluation.tracks[AGENT].target_TNA[:, :1]
    tokens = []
    for step in range(len(target)):
        tokens.append(simulator.observe())
        simulator.step(torch.tensor(target[step]))
    age = length[:, None] + torch.arange(len(tokens))
    memory = loaded.policy.rebuild(history, length)
    logits, _ = loaded.policy.sequence(torch.stack(tokens, 1), memory, age)
    expected = torch.tensor(loaded.config.policy.positions)[logits.argmax(-1)]
    two = logits.topk(2).values
    clear = (two[..., 0] - two[..., 1]).squeeze() > 1e-4
    assert clear.float().mean() > 0.9
    assert (expected.squeeze()[clear].numpy() == target.squeeze()[clear.numpy()]).all()


def test_an_always_long_policy_equals_buy_and_hold(tmp_path, data):
    long = make_run(tmp_path, make_config(data, **COSTLESS_FEES), always=2)
    found = evaluate_run(long, "validation", draws=3)
    assert found.row(AGENT)["total_return"] == pytest.approx(found.row(HOLD)["total_return"], abs=2e-5)
    assert found.row(HOLD)["trades"] == 2
    assert math.isnan(found.meta["agent_beats_random"])


def test_a_policy_that_stays_flat_is_said_to_never_trade(tmp_path, data):
    found = evaluate_run(make_run(tmp_path, make_config(data), always=1), "validation", draws=3)
    assert "the agent never traded here" in found.meta["warnings"]
    assert found.row(AGENT)["total_return"] == 0 and math.isnan(found.row(AGENT)["sharpe"])
    assert json.dumps(found.to_json(), allow_nan=False)


def test_one_account_over_all_symbols(tmp_path, data):
    found = evaluate_run(make_run(tmp_path, make_config(data, assets="all")), "validation", draws=3)
    assert found.meta["accounts"] == ["all"] and found.strategies == STRATEGIES
    assert len(found.rows) == len(STRATEGIES)
    assert found.row(HOLD)["trades"] == 2


def test_synthetic_data_forbid_a_claim(run, evaluation):
    assert evaluation.meta["synthetic"]
    text = _printed(evaluation)
    assert "no performance claim follows" in " ".join(text.split())
    assert evaluation.to_json()["meta"]["synthetic"] is True


def test_the_table_states_the_standard_error(evaluation):
    text = " ".join(_printed(evaluation).split())
    error = evaluation.meta["sharpe_standard_error"]
    assert error == pytest.approx((252 / evaluation.meta["sessions"]) ** 0.5)
    assert f"{evaluation.meta['sessions']} sessions: +-{error:.1f} is the standard error" in text


def test_numbers_fit_a_terminal_of_80_columns(evaluation):
    assert "…" not in _printed(evaluation, 80)


def _printed(evaluation, width: int = 120) -> str:
    console = Console(width=width, record=True, file=io.StringIO())
    console.print(render_table(evaluation))
    return console.export_text()


def test_openings_of_the_test_split_are_logged_and_counted(tmp_path, data):
    first = make_run(tmp_path, make_config(data))
    second = make_run(tmp_path, make_config(data), seed=1)
    evaluate_run(first, "validation", draws=2)
    assert not (tmp_path / JOURNAL).exists()
    assert not any("opened" in line for line in evaluate_run(first, draws=2).meta["warnings"])
    again = evaluate_run(second, draws=2)
    assert any("has been opened 2 times" in line for line in again.meta["warnings"])
    lines = [json.loads(line) for line in (tmp_path / JOURNAL).read_text().splitlines()]
    assert [line["run"] for line in lines] == [first.name, second.name]
    assert all(set(line) == {"data_sha256", "run", "checkpoint_epoch", "time"} for line in lines)


def test_print_writes_the_picture_and_one_json_object(run, evaluation, tmp_path, capsys):
    path = print_evaluation(evaluation, tmp_path / "new" / "p.png", as_json=True)
    assert json.loads(capsys.readouterr().out)["plot"] == str(path)
    header = path.read_bytes()[:24]
    assert header[:8] == b"\x89PNG\r\n\x1a\n" and struct.unpack(">II", header[16:])[0] >= 1000
    default = print_evaluation(evaluation)
    assert default == run / "evaluation_validation.png" and "agent" in capsys.readouterr().out


def test_the_default_picture_is_of_the_runs_own_data_and_newest_checkpoint_only(run, tmp_path):
    def name(given=run, **arguments):
        path = plot_path(None, given, "test", **arguments)
        assert path.parent == run
        return path.name

    assert name() == "evaluation_test.png"
    assert name(checkpoint_epoch=4) == "evaluation_test_epoch_4.png"
    assert name(data=tmp_path / "other.h5") == "evaluation_test_other.png"
    assert name(checkpoint_epoch=4, data="other.h5") == "evaluation_test_epoch_4_other.png"
    assert name(run / "checkpoint_epoch_4.pt") == "evaluation_test_epoch_4.png"


@pytest.mark.parametrize(
    ("plot", "says"),
    [
        ("config.json", "one of the inputs"),
        ("metrics.jsonl", "one of the inputs"),
        ("checkpoint_epoch_4.pt", "one of the inputs"),
        ("link.png", "one of the inputs"),
        ("new.pdf", "ends in .png"),
        ("new", "ends in .png"),
        (".", "a folder"),
        ("config.json/new.png", "is no folder"),
    ],
)
def test_a_plot_is_refused_before_the_seal_is_broken(run, tmp_path, plot, says, monkeypatch):
    """On the command line; ``plot`` in a copy of the run folder."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(run, "copy")
    (tmp_path / "copy/metrics.jsonl").touch()
    (tmp_path / "copy/link.png").symlink_to(tmp_path / "copy/config.json")
    before = {path: path.read_bytes() for path in (tmp_path / "copy").iterdir()}
    monkeypatch.setattr("sys.argv", ["hpcrl", "evaluate", "copy", "--plot", f"copy/{plot}"])
    told = []
    monkeypatch.setattr("hpcrl.world.tell.tell", lambda error, *who: told.append(error))
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert end.value.code == 2 and says in str(told[0])
    assert {path: path.read_bytes() for path in (tmp_path / "copy").iterdir()} == before
    assert [path.name for path in tmp_path.iterdir()] == ["copy"]


def test_a_plot_may_be_drawn_again_in_capitals_and_in_the_run_folder(run, tmp_path):
    (tmp_path / "P.PNG").touch()
    assert plot_path(tmp_path / "P.PNG", run, "test") == tmp_path / "P.PNG"
    assert plot_path(run / "mine.png", run, "test") == run / "mine.png"


def test_a_picture_that_cannot_be_written_is_one_error(evaluation, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RunFailed, match="cannot write"):
        write_plot(evaluation, tmp_path / "file" / "p.png")


def test_a_checkpoint_file_can_be_evaluated(run, evaluation):
    found = evaluate_run(run / "checkpoint_epoch_4.pt", "validation", draws=12)
    assert found.to_json()["rows"] == evaluation.to_json()["rows"] and found.meta["run"] == run.name


def test_an_altered_newest_checkpoint_gives_way_to_the_one_before(tmp_path, run):
    copy = tmp_path / run.name
    shutil.copytree(run, copy)
    manifest = json.loads((copy / "checkpoint_epoch_4.json").read_text())
    manifest["epoch"] = 9
    manifest["files"] = {k.replace("_4", "_9"): v for k, v in manifest["files"].items()}
    (copy / "checkpoint_epoch_9.json").write_text(json.dumps(manifest))
    (copy / "checkpoint_epoch_9.pt").write_bytes((copy / "checkpoint_epoch_4.pt").read_bytes()[:-100])
    found = evaluate_run(copy, "validation", draws=2)
    assert found.meta["epoch"] == 4
    assert any("epoch 9 refused" in line and "truncated" in line for line in found.meta["warnings"])
    with pytest.raises(RunFailed, match=r"checkpoint_epoch_9\.pt: truncated"):
        evaluate_run(copy, "validation", checkpoint_epoch=9)


def test_other_data_is_refused_by_both_hashes_unless_named(tmp_path, data):
    mine = tmp_path / "mine.h5"
    shutil.copy(data, mine)
    run = make_run(tmp_path / "runs", make_config(mine))
    mine.rename(tmp_path / "moved.h5")
    with pytest.raises(HpcrlError, match="is not there"):
        evaluate_run(run, "validation")
    moved = evaluate_run(run, "validation", data=tmp_path / "moved.h5", draws=2)
    assert not moved.meta["data"]["not_the_runs"]
    other = make_data(tmp_path / "mine.h5", ("CCC",), seed=8)
    with pytest.raises(HpcrlError, match=r"sha256 is \w{12}\.\.\., the run was trained on \w{12}"):
        evaluate_run(run, "validation")
    found = evaluate_run(run, "validation", data=other, draws=2)
    assert found.meta["accounts"] == ["CCC"] and any(
        "not the run's data" in w for w in found.meta["warnings"]
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"split": "holdout"}, "'holdout' is not known; use one of train, validation, test"),
        ({"device": "tpu"}, "'tpu' is not known"),
        ({"checkpoint_epoch": 3}, "no checkpoint of epoch 3; there are 4"),
        ({"draws": 0}, "at least 1 draw"),
    ],
)
def test_unsuitable_arguments_are_one_error(run, arguments, message):
    with pytest.raises(HpcrlError, match=message):
        evaluate_run(run, **({"split": "validation"} | arguments))


def test_missing_runs_and_foreign_files_are_one_error(tmp_path, run):
    with pytest.raises(HpcrlError, match="no such run folder"):
        evaluate_run(tmp_path / "nowhere")
    with pytest.raises(HpcrlError, match=r"no config\.json"):
        evaluate_run(tmp_path)
    empty = tmp_path / "dist_run_x"
    empty.mkdir()
    shutil.copy(run / "config.json", empty)
    with pytest.raises(HpcrlError, match="no whole checkpoint"):
        evaluate_run(empty)
    with pytest.raises(HpcrlError, match="a run folder or its checkpoint"):
        evaluate_run(run / "config.json")
    with pytest.raises(HpcrlError, match="a run folder or its checkpoint"):
        evaluate_run(run / "checkpoint_epoch_4.rank_0.pt")
    torch.save({"epoch": 1}, tmp_path / "checkpoint_epoch_1.pt")
    with pytest.raises(RunFailed, match="it lacks format"):
        evaluate_run(tmp_path / "checkpoint_epoch_1.pt")
    (tmp_path / "torn.pt").write_bytes((run / "checkpoint_epoch_4.pt").read_bytes()[:500])
    with pytest.raises(RunFailed, match="not a checkpoint file"):
        evaluate_run(tmp_path / "torn.pt")


def test_weights_of_another_shape_are_one_error(tmp_path, run):
    saved = torch.load(run / "checkpoint_epoch_4.pt", weights_only=True)
    saved["config"]["policy"]["d_model"] = 32
    torch.save(saved, tmp_path / "checkpoint_epoch_4.pt")
    with pytest.raises(RunFailed, match="its weights do not fit its config"):
        evaluate_run(tmp_path / "checkpoint_epoch_4.pt", "validation")


def test_a_run_without_a_validation_split_is_one_error(tmp_path, data):
    config = make_config(data)
    market = config.market.model_copy(update={"validation_fraction": 0.0})
    run = make_run(tmp_path, config.model_copy(update={"market": market}))
    with pytest.raises(HpcrlError, match="validation split holds 0 bars"):
        evaluate_run(run, "validation")
