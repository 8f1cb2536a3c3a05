"""Bad input on the command line: exit code 2 (or 1), one line, no traceback, nothing written."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from hpcrl import cli
from hpcrl.market.stage import stage_synthetic
from hpcrl.types import HpcrlError, RunFailed

ROOT = Path(__file__).resolve().parents[1]


def rows(**changes) -> pd.DataFrame:
    """Two sessions of good bars; ``changes`` overwrite whole columns."""
    frame = pd.read_csv(ROOT / "data/sample/MSFT_5min.csv").iloc[2:158].reset_index(drop=True)
    return frame.assign(**changes)


def swapped(frame: pd.DataFrame) -> pd.DataFrame:
    order = np.arange(len(frame))
    order[[10, 11]] = [11, 10]
    return frame.iloc[order]


BAD_TABLES = {
    "missing column": (lambda f: f.drop(columns="volume"), "volume"),
    "unsorted": (swapped, "sorted"),
    "conflicting": (lambda f: pd.concat([f[:6], f[5:6].assign(close=f.low[5]), f[6:]]), "conflict"),
    "nan": (lambda f: f.assign(close=f.close.where(f.index != 7)), "close"),
    "high below low": (lambda f: f.assign(high=f.high.where(f.index != 7, f.low - 1)), "high"),
    "zero price": (lambda f: f.assign(open=0.0, low=0.0), "0"),
    "naive stamps": (lambda f: f.assign(timestamp=f.timestamp.str.rstrip("Z")), "zone"),
    "empty": (lambda f: f[:0], "no rows"),
}


@pytest.mark.parametrize("name", BAD_TABLES)
def test_bad_tables_are_refused_and_leave_no_file(hpcrl, tmp_path, name):
    change, part = BAD_TABLES[name]
    change(rows()).to_csv(tmp_path / "bars.csv", index=False)
    code, _, err = hpcrl("stage", "files", "--path", "bars.csv", "--out", "market.h5")
    assert code == 2 and err.startswith("error: ") and part in err.lower(), err
    assert sorted(p.name for p in tmp_path.iterdir()) == ["bars.csv"]


def test_the_malformed_sample_is_refused(hpcrl, tmp_path):
    path = ROOT / "tests/data/bad_RAND_5min.csv"
    code, _, err = hpcrl("stage", "files", "--path", path, "--out", "market.h5")
    assert code == 2 and "RAND" in err and "2022-04-19" in err
    assert not list(tmp_path.iterdir())


def test_a_missing_path_and_unknown_features_are_named(hpcrl):
    code, _, err = hpcrl("stage", "files", "--path", "nowhere.csv", "--out", "m.h5")
    assert code == 2 and "nowhere.csv" in err
    sample = ROOT / "data/sample/MSFT_5min.csv"
    code, _, err = hpcrl("stage", "files", "--path", sample, "--out", "m.h5", "--features", "mood")
    assert code == 2 and "mood" in err and "volume" in err


@pytest.fixture
def local(tmp_path) -> Path:
    shutil.copytree(ROOT / "yaml", tmp_path / "yaml")
    return tmp_path


def train(hpcrl, *sets: str):
    return hpcrl("train", "--config", "yaml/local.yaml", "--set", "market.path=market.h5", *sets)


@pytest.mark.parametrize("what", ["missing", "foreign", "truncated", "not hdf5"])
def test_unusable_data_files_are_named_and_make_no_run(hpcrl, local, what):
    path = local / "market.h5"
    if what == "foreign":
        import h5py

        with h5py.File(path, "w") as file:
            file["x"] = [1]
    elif what == "truncated":
        stage_synthetic(path, symbols=("AAPL",), bars=50)
        path.write_bytes(path.read_bytes()[:-5000])
    elif what == "not hdf5":
        path.write_text("timestamp,symbol\n")
    code, _, err = train(hpcrl)
    assert code == 2 and "market.h5" in err and err.count("\n") == 1, err
    assert not (local / "checkpoints").exists()


def test_fewer_bars_than_burn_in_and_one_episode_are_refused(hpcrl, local):
    stage_synthetic(local / "market.h5", symbols=("AAPL",), bars=300)
    code, _, err = train(hpcrl)
    assert code == 2 and "train" in err and "256" in err, err
    assert not (local / "checkpoints").exists()


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["train"], "--config"),
        (["train", "--config", "none.yaml"], "none.yaml"),
        (["train", "--config", "/dev/zero"], "/dev/zero: longer than 1,000,000 characters"),
        (["train", "--config", "yaml/local.yaml", "--set", "learn.lrr=1"], "learn.lr"),
        (["train", "--config", "yaml/local.yaml", "--set", ".lr=1"], "--set '.lr=1': expected key=value"),
        (["train", "--config", "yaml/local.yaml", "--set", "learn..lr=1"], "expected key=value"),
        (["train", "--config", "yaml/local.yaml", "--set", "market.path=/dev/null"], "no regular file"),
        (
            ["train", "--config", "yaml/local.yaml", "--set", "checkpoint.dir=yaml/base.yaml/runs"],
            "checkpoint.dir = yaml/base.yaml/runs: ",
        ),
        (["train", "--config", "yaml/local.yaml", "--set", "learn.batch_size=300"], "nearest that do"),
        (["train", "--config", "yaml/local.yaml", "--set", "train.world_size=4"], "--ranks 4"),
        (
            ["train", "--config", "yaml/local.yaml", "--ranks", "2", "--set", "train.world_size=4"],
            "--ranks 2",
        ),
        (["train", "--resume", "nowhere"], "nowhere"),
        (["train", "--resume", "yaml"], "not a run folder"),
        (["train", "--resume", "a", "--init", "b"], "one of them"),
        (["train", "--init", "nowhere"], "nowhere"),
        (["evaluate", "nowhere"], "nowhere"),
        (["evaluate", "/dev/null"], "/dev/null: a run folder was expected"),
        (["status", "a\x1b[31mb\r"], r"a\x1b[31mb\r: no such run folder"),
        (["pbt", "status", "nowhere"], "error: nowhere: no population (there is no such folder)"),
        (
            ["stage", "synthetic", "--out", "m.h5", "--bars", "9" * 20],
            "end after the year 2190: ask for fewer",
        ),
        (["stage", "synthetic", "--out", "m.h5", "--bars", "0"], "--bars '0': must be greater than or equal"),
        (
            ["stage", "synthetic", "--out", "m.h5", "--bars", "x"],
            "--bars 'x': a whole number is needed; see ",
        ),
        (["stage", "push", "x", "--to", "mysql"], "--to 'mysql': is not one of 'supabase', 'postgres'"),
        (["stage", "files", "--out", "m.h5"], "missing option '--path'"),
        (["evaluate", "run", "--epoch"], "option '--epoch' requires an argument"),
        (["trian"], "no such command 'trian'. Did you mean 'train'?"),
        (["watch"], "missing argument"),
        (["replay", "--case", "none.json", "--out", "l.json"], "none.json"),
    ],
)
def test_bad_usage_is_one_line_and_exit_code_2(hpcrl, local, arguments, part):
    code, _, err = hpcrl(*arguments)
    assert code == 2 and part in err and err.count("\n") == 1, err
    assert sorted(p.name for p in local.iterdir()) == ["yaml"]


CONFIG_JSON = {"format": 1, "data": {"sha256": "0"}, "config": {}}


@pytest.mark.parametrize(
    ("broken", "part"),
    [
        ("", "not whole JSON"),
        ("[]", "a JSON object was expected, found list"),
        (json.dumps(CONFIG_JSON | {"format": 9}), "format 9, this version reads format 1"),
        (json.dumps(CONFIG_JSON | {"data": 3}), "data.sha256 is missing"),
        (json.dumps({"format": 1, "data": {"sha256": "0"}}), "config is missing or no object"),
        (json.dumps(CONFIG_JSON | {"config": 3}), "config is missing or no object"),
        (json.dumps(CONFIG_JSON | {"config": {"learn": 3}}), "learn = 3: expected a section of keys"),
        (json.dumps(CONFIG_JSON), "was altered by hand"),
    ],
)
@pytest.mark.parametrize(
    "verb",
    [["evaluate"], ["report"], ["compare"], ["export", "--out", "o.onnx"], ["train", "--resume"],
     ["submit", "--dry-run", "--resume"]],
)  # fmt: skip
def test_a_broken_config_json_is_one_line_and_exit_code_2(hpcrl, tmp_path, verb, broken, part):
    (tmp_path / "run").mkdir()
    (tmp_path / "run/config.json").write_text(broken)
    code, out, err = hpcrl(*verb, "run")
    assert code == 2 and f"run/config.json: {part}" in err.replace("not a run's config.json (", "")
    assert err.count("\n") == 1 and not out
    assert [p.name for p in tmp_path.rglob("*")] == ["run", "config.json"]


@pytest.mark.parametrize(
    ("redirection", "code", "told"),
    [(">/dev/full", 1, "standard output"), (">&-", 0, ""), ("| true", 1, ""), ("2>&- >/dev/null", 0, "")],
)
def test_an_output_that_takes_nothing_is_no_traceback(tmp_path, redirection, code, told):
    import subprocess

    command = f"set -o pipefail; '{sys.executable}' -m hpcrl stage schema {redirection}"
    done = subprocess.run(
        ["bash", "-c", command], cwd=tmp_path, env={"PATH": "/usr/bin:/bin", "PYTHONPATH": str(ROOT)},
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == code and told in done.stderr, done.stderr
    assert done.stderr.count("\n") == bool(told) and "Traceback" not in done.stderr


def test_ctrl_c_while_it_starts_is_no_traceback(monkeypatch):
    from hpcrl import __main__ as entry

    def interrupted():
        raise KeyboardInterrupt

    monkeypatch.setattr(sys, "argv", ["hpcrl", "status"])
    monkeypatch.setattr(cli, "main", interrupted)
    with pytest.raises(SystemExit) as end:
        entry.main()
    assert end.value.code == 130


SUPABASE = ["stage", "supabase", "--out", "m.h5"]
POSTGRES = ["stage", "postgres", "--out", "m.h5"]


@pytest.fixture
def bare(hpcrl, tmp_path, monkeypatch):
    """``hpcrl`` without any secret in its environment."""
    for name in ("SUPABASE_URL", "SUPABASE_SERVICE_ROLE_KEY", "DATABASE_URL", "PGPASSWORD", "NO_COLOR"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "tables.yaml").write_text("bars: {tabel: candles}")
    return hpcrl


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        ([*SUPABASE, "--timeframe", "5min"], "known: 1Min, 5Min, 15Min, 30Min, 1Hour, 1Day"),
        ([*POSTGRES, "--timeframe", "weekly"], "known: 1Min, 5Min, 15Min, 30Min, 1Hour, 1Day"),
        ([*SUPABASE, "--start", "yesterday"], "--start 'yesterday' is no date: write YYYY-MM-DD"),
        ([*POSTGRES, "--end", "2026-02-30"], "--end '2026-02-30' is no date"),
        (
            [*SUPABASE, "--start", "2026-01-06", "--end", "2026-01-05"],
            "is not after --start 2026-01-06 (in UTC",
        ),
        (
            [*SUPABASE, "--tables", "tables.yaml"],
            "unknown key bars.tabel = 'candles'; nearest valid key: bars.table",
        ),
        ([*POSTGRES, "--tables", "none.yaml"], "none.yaml: cannot be read"),
        ([*SUPABASE, "--price-adjustment", "some"], "allowed: unknown, unadjusted, splits"),
        ([*SUPABASE, "--features", "a,a"], "feature a is given twice"),
        ([*SUPABASE, "--symbols", ","], "--symbols ',' holds no name: write A,B or leave it out"),
        ([*POSTGRES, "--symbols", " "], "--symbols ' ' holds no name"),
        ([*POSTGRES, "--features", ", ,"], "--features ', ,' holds no name"),
        (["stage", "push", "none.csv", "--to", "postgres", "--symbols", ","], "--symbols ',' holds no name"),
        (["stage", "files", "--path", "none.csv", "--out", "m.h5", "--symbols", ","], "--symbols ',' holds"),
        (["stage", "synthetic", "--out", "m.h5", "--symbols", ","], "--symbols ',' holds no name"),
        (["bench", "stage", "--names", ","], "--names ',' holds no name"),
        ([*SUPABASE, "--symbols", "A,B,A"], "symbol A is given twice"),
        ([*SUPABASE, "--timezone", "Mars"], "Mars"),
        ([*SUPABASE, "--update", "none.h5"], "none.h5"),
        ([*POSTGRES, "--dsn", "postgresql://u:canary@h/db"], "--dsn holds a password"),
        ([*POSTGRES, "--dsn", "host=h canary"], "--dsn is no connection string"),
        (["stage", "supabase", "--out", "."], "a folder"),
    ],
)
def test_bad_questions_to_a_database_are_one_line_and_exit_code_2(bare, tmp_path, arguments, part):
    code, out, err = bare(*arguments)
    assert code == 2 and part in err and err.count("\n") == 1 and "canary" not in err and not out, err
    assert sorted(p.name for p in tmp_path.iterdir()) == ["tables.yaml"]


@pytest.mark.parametrize(
    ("verb", "environ", "part"),
    [
        ("supabase", {"SUPABASE_URL": "http://127.0.0.1:9"}, "but SUPABASE_SERVICE_ROLE_KEY is not"),
        ("supabase", {"SUPABASE_SERVICE_ROLE_KEY": "canary"}, "but SUPABASE_URL is not"),
        (
            "supabase",
            {"SUPABASE_URL": "http://127.0.0.1:9", "SUPABASE_SERVICE_ROLE_KEY": "sb_publishable_canary"},
            "row level security",
        ),
        (
            "supabase",
            {"SUPABASE_URL": "https://u:canary@h", "SUPABASE_SERVICE_ROLE_KEY": "canary"},
            "holds a user or password",
        ),
        ("postgres", {"DATABASE_URL": "mysql://u:canary@h/db"}, "DATABASE_URL is no connection string"),
    ],
)
def test_secrets_that_cannot_work_are_refused_unseen(bare, tmp_path, monkeypatch, verb, environ, part):
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    code, out, err = bare("stage", verb, "--out", "m.h5")
    assert code == 2 and part in err and err.count("\n") == 1 and "canary" not in err and not out, err
    assert not (tmp_path / "m.h5").exists()


def test_a_readable_env_file_is_refused(bare, tmp_path):
    (tmp_path / ".env").write_text("SUPABASE_URL=http://127.0.0.1:9\nSUPABASE_SERVICE_ROLE_KEY=canary\n")
    (tmp_path / ".env").chmod(0o644)
    code, _, err = bare(*SUPABASE)
    assert code == 2 and "chmod 600" in err and "canary" not in err


@pytest.mark.parametrize("verb", ["supabase", "postgres"])
def test_without_a_database_made_up_bars_are_staged_in_red_or_refused(bare, tmp_path, verb):
    options = ["--symbols", "A,B", "--calendar", "24/7", "--timeframe", "1Hour", "--json"]
    code, _, err = bare("stage", verb, "--out", "m.h5", *options, "--require-real")
    assert code == 1 and "--require-real" in err and not (tmp_path / "m.h5").exists()
    code, out, err = bare("stage", verb, "--out", "m.h5", *options)
    assert code == 0 and err.startswith("\033[1;31mNO REAL DATA") and "synthetic-fallback" in err
    found = json.loads(out)["report"]
    assert found["source"] == "synthetic-fallback" and found["bar_seconds"] == 3600
    assert {symbol: counts["tradable"] for symbol, counts in found["symbols"].items()} == {
        "A": 1000,
        "B": 1000,
    }


def test_stage_schema_prints_sql_for_the_names_of_a_file(bare, tmp_path):
    (tmp_path / "mine.yaml").write_text("bars: {table: candles}\nindicators: {table: null}\n")
    code, out, err = bare("stage", "schema", "--tables", "mine.yaml")
    assert code == 0 and "candles" in out and "technical_indicators" not in out and not err
    code, _, err = bare("stage", "schema", "--tables", "tables.yaml")
    assert code == 2 and "bars.tabel" in err


@pytest.mark.parametrize(
    ("raised", "code"),
    [
        (RunFailed("key canary refused"), 1),
        (HpcrlError("canary"), 2),
        (OSError(5, "canary", "canary"), 1),
        (ValueError("header canary"), 1),
    ],
)
def test_no_error_of_a_staging_shows_a_secret(bare, monkeypatch, capsys, raised, code):
    from hpcrl.market import stage_database

    def fail(secrets, request):
        raise raised

    monkeypatch.setenv("SUPABASE_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("SUPABASE_SERVICE_ROLE_KEY", "canary")
    monkeypatch.setattr(stage_database, "stage_supabase", fail)
    monkeypatch.setattr(sys, "argv", ["hpcrl", *SUPABASE])
    with pytest.raises(SystemExit) as end:
        cli.main()
    shown = capsys.readouterr()
    assert end.value.code == code and "canary" not in shown.out + shown.err and "***" in shown.err


def test_training_mode_single_refuses_several_ranks(hpcrl, local, monkeypatch):
    monkeypatch.setenv("TRAINING_MODE", "single")
    code, _, err = hpcrl("train", "--config", "yaml/local.yaml", "--ranks", "2")
    assert code == 2 and "TRAINING_MODE" in err


def test_replay_writes_the_ledger(hpcrl, tmp_path):
    case = ROOT / "tests/golden/01_long_flat_nocost.json"
    code, out, _ = hpcrl("replay", "--case", case, "--out", "ledger.json")
    assert code == 0 and out.strip() == "ledger.json"
    assert len(json.loads((tmp_path / "ledger.json").read_text())["rows"]) == 6


def test_tools_are_the_same_commands():
    import subprocess

    for tool, word in (("train", "--resume"), ("stage_data", "synthetic"), ("evaluate", "--split")):
        done = subprocess.run(
            [sys.executable, ROOT / f"tools/{tool}.py", "--help"], capture_output=True, text=True, timeout=60
        )
        assert done.returncode == 0 and word in done.stdout


def test_stage_data_is_stage_supabase_unless_a_verb_is_named(tmp_path):
    import subprocess

    environ = {"PATH": "/usr/bin:/bin", "HOME": str(tmp_path), "PYTHONPATH": str(ROOT)}
    options = ["--symbols", "A", "--timeframe", "fortnightly", "--out", "m.h5"]
    errors = []
    for verb in ([], ["supabase"]):
        done = subprocess.run(
            [sys.executable, ROOT / "tools/stage_data.py", *verb, *options],
            cwd=tmp_path, env=environ, capture_output=True, text=True, timeout=60,
        )  # fmt: skip
        assert done.returncode == 2
        errors.append(done.stderr)
    assert "timeframe 'fortnightly' is not known" in errors[0] and errors[0] == errors[1]


def test_torchs_word_for_no_memory_is_a_line_and_another_error_is_not(hpcrl, monkeypatch):
    def ends(said: str) -> None:
        raise RuntimeError(said)

    said = "DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes\nmore of it"
    monkeypatch.setattr(cli, "_run", lambda: ends(said))
    code, _, err = hpcrl("export")
    assert code == 1 and err == f"error: not enough memory: {said.partition(chr(10))[0]}\n"
    monkeypatch.setattr(cli, "_run", lambda: ends("another"))
    with pytest.raises(RuntimeError, match="another"):
        hpcrl("export")
