"""Made-up bars where there is no database: loud, stamped, and never in the place of real ones."""

import json

import pytest
from market_data import ROOT, walk

from hpcrl.config.market import MarketConfig
from hpcrl.config.secrets import Secrets
from hpcrl.config.tables import BarsTable
from hpcrl.market.load import load_market
from hpcrl.market.request import DatabaseRequest
from hpcrl.market.stage import stage_frame, stage_synthetic
from hpcrl.market.stage_database import FALLBACK, spool_folder, stage_postgres, stage_supabase
from hpcrl.market.store import read_store
from hpcrl.market.synthetic import SYMBOLS
from hpcrl.types import HpcrlError, RunFailed

RED = "\033[1;31m"
TINY = {
    "policy.d_model": 16,
    "policy.layers": 1,
    "policy.heads": 2,
    "policy.window": 32,
    "env.envs_per_gpu": 2,
    "learn.rollout": 32,
    "learn.sequence_length": 32,
    "learn.batch_size": 32,
    "learn.ppo_epochs": 1,
    "train.epochs": 1,
}


@pytest.fixture
def request_(tmp_path):
    return lambda **options: DatabaseRequest(tmp_path / "m.h5", **options)


def test_without_a_database_the_bars_are_made_up_and_it_is_said_in_red(request_, tmp_path, capsys):
    result = stage_supabase(Secrets(), request_())
    said = capsys.readouterr().err
    assert said.startswith(RED) and "NO REAL DATA" in said and "SUPABASE_URL" in said and FALLBACK in said
    bars, header = read_store(result.path)
    assert header["source"] == FALLBACK and tuple(bars) == SYMBOLS
    assert json.loads(result.report_path.read_text())["source"] == FALLBACK
    market = load_market(MarketConfig(path=str(result.path)))
    assert market.made_up
    # 1,000 tradable bars of every symbol, on top of the burn-in.
    assert all(one.present.sum() == 1000 + header["burn_in"] for one in bars.values())


def test_the_fallback_makes_the_same_bars_again_and_those_of_stage_synthetic(request_, tmp_path):
    again = [stage_supabase(Secrets(), request_()).sha256 for _ in range(2)]
    assert again[0] == again[1] == stage_synthetic(tmp_path / "s.h5").sha256


def test_no_color_is_respected(request_, capsys, monkeypatch):
    monkeypatch.setenv("NO_COLOR", "1")
    stage_supabase(Secrets(), request_(symbols=("X",)))
    assert capsys.readouterr().err.startswith("NO REAL DATA")


def test_the_fallback_has_the_symbols_calendar_and_bars_that_were_asked_for(request_):
    result = stage_postgres(
        Secrets(), None, request_(symbols=("BTC", "ETH"), timeframe="15Min", calendar="24/7")
    )
    bars, header = read_store(result.path)
    assert tuple(bars) == ("BTC", "ETH") and header["bar_seconds"] == 900 and header["calendar"] == "24/7"


@pytest.mark.parametrize("verb", ["supabase", "postgres"])
def test_require_real_refuses(verb, request_, tmp_path):
    request = request_(require_real=True)
    with pytest.raises(RunFailed, match=r"not set|neither .* is given") as error:
        stage_supabase(Secrets(), request) if verb == "supabase" else stage_postgres(Secrets(), None, request)
    assert "--require-real" in str(error.value) and list(tmp_path.iterdir()) == []


def test_made_up_bars_never_take_the_place_of_real_ones(request_, tmp_path):
    real = stage_frame(walk(400), tmp_path / "m.h5", source="supabase", calendar="24/7")
    before = real.path.read_bytes()
    with pytest.raises(RunFailed, match="source supabase, which made-up ones do not replace"):
        stage_supabase(Secrets(), request_())
    assert real.path.read_bytes() == before


def test_made_up_bars_never_take_the_place_of_a_download_that_was_begun(request_, tmp_path):
    parts = spool_folder(tmp_path / "m.h5")
    parts.mkdir()
    (parts / "AAPL").write_bytes(b"x")
    with pytest.raises(RunFailed, match="holds a part of the real data"):
        stage_supabase(Secrets(), request_())
    assert not (tmp_path / "m.h5").exists()


def test_an_update_has_no_fallback(request_, tmp_path):
    old = stage_frame(
        walk(400),
        tmp_path / "old.h5",
        source="supabase",
        query={
            "table": "historical_bars",
            "mapping": BarsTable().model_dump(),
            "timeframe": "5Min",
            "start": None,
            "received": {"BTC/USD": 400},
            "fingerprints": {"BTC/USD": None},
        },
        calendar="24/7",
    )
    with pytest.raises(RunFailed, match="cannot be updated"):
        stage_supabase(Secrets(), request_(update=old.path, calendar="24/7"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"timeframe": "5min"}, "'5min' is not known .did you mean 5Min"),
        ({"start": "2024-05-01", "end": "2024-04-01"}, "2024-04-01"),
        ({"features": ("close",)}, "feature 'close'"),
        ({"symbols": ("A", "A")}, "symbol A is given twice"),
        ({"timezone": "Mars"}, "Mars"),
        ({"calendar": "NYSE2"}, "calendar 'NYSE2' is not known"),
        ({"start": "2200-01-01"}, "--start 2200-01-01 is after the last bar"),
    ],
)
def test_a_mistake_in_the_question_comes_before_the_fallback(options, message, request_, tmp_path):
    with pytest.raises(HpcrlError, match=message) as error:
        stage_supabase(Secrets(), request_(**options))
    assert error.value.exit_code == 2 and list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_a_run_on_the_fallback_carries_its_stamp_everywhere(request_, hpcrl, tmp_path):
    from hpcrl.checkpoint.find import load_portable

    stage_supabase(Secrets(), request_(symbols=("AAPL", "MSFT")))
    sets = [f"{key}={value}" for key, value in TINY.items()]
    sets += [f"market.path={tmp_path / 'm.h5'}", f"checkpoint.dir={tmp_path / 'runs'}"]
    options = [word for each in sets for word in ("--set", each)]
    code, said, err = hpcrl("train", "--config", ROOT / "yaml" / "local.yaml", *options)
    assert code == 0, err
    assert RED in said and f"made up ({FALLBACK})" in said
    [run] = (tmp_path / "runs").iterdir()
    assert json.loads((run / "config.json").read_text())["data"]["source"] == FALLBACK
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert lines and all(line["data_source"] == FALLBACK for line in lines)
    assert load_portable(run)[1]["data"]["source"] == FALLBACK
    code, said, _ = hpcrl("evaluate", run, "--split", "validation", "--json")
    result = json.loads(said)
    assert code == 0 and FALLBACK in json.dumps(result)
    code, said, _ = hpcrl("evaluate", run, "--split", "validation")
    assert "no performance claim" in " ".join(said.split()) and FALLBACK in said
