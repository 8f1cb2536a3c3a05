"""``hpcrl bench env``: what it measures, what it says, and what it refuses."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest

from hpcrl.bench.env import against_peer, bench_env, render
from hpcrl.types import HpcrlError, RunFailed

TINY = {"rounds": 2, "seconds": 0.01}


@pytest.fixture(autouse=True)
def no_peers(tmp_path, monkeypatch):
    """A folder without an environment of peers."""
    monkeypatch.chdir(tmp_path)


def peer_round(single: float, *vectorised: tuple[int, float]) -> dict:
    rows = [{"envs": n, "steps_per_second": rate, "resident_bytes_per_env": 1.0} for n, rate in vectorised]
    versions = {"version": "1", "pandas": "2", "gymnasium": "3"}
    return {"single": {"steps_per_second": single}, "vectorised": rows, **versions}


def test_rates_state_and_machine_of_every_number_of_environments():
    result = bench_env((1, 7), **TINY)
    assert [row["envs"] for row in result["envs"]] == [1, 7]
    for row in result["envs"]:
        assert len(row["rounds"]) == 2 and min(row["rounds"]) > 0
        assert row["microseconds_per_step"] == pytest.approx(1e6 * row["envs"] / row["steps_per_second"])
        assert 0 < row["state_bytes_per_env"] < 2_000
    assert result["envs"][0]["state_bytes_per_env"] == result["envs"][1]["state_bytes_per_env"]
    assert result["machine"]["threads"] == 1 and result["machine"]["cores"] == os.cpu_count()
    assert result["peer"] is None and render(result).row_count == 2


def test_all_costs_are_on_and_set_changes_them():
    config = bench_env((1,), **TINY)["config"]
    off = {name for name, value in config["costs"].items() if value in (0, None)}
    assert off <= {"symbols"} and config["maintenance"] and config["intrabar"] and config["lot"]
    assert bench_env((1,), overrides=("env.lot=0",), **TINY)["config"]["lot"] == 0


def test_the_ratio_is_the_median_of_ratios_within_a_round():
    ours = [{"envs": 5, "rounds": [100.0, 30.0, 90.0]}]
    rounds = [
        peer_round(10.0, (2, 4.0), (3, 5.0)),
        peer_round(1.0, (2, 2.0), (3, 1.0)),
        peer_round(9.0, (2, 3.0), (3, 9.0)),
    ]
    peer = against_peer(ours, rounds)
    assert peer["ratio_to_best_vectorised"] == {"5": 15.0}  # of 100/5, 30/2, 90/9
    assert peer["ratio_to_single"] == {"5": 10.0}
    assert [row["steps_per_second"] for row in peer["vectorised"]] == [3.0, 5.0]


@pytest.mark.parametrize(
    ("envs", "options", "message"),
    [
        ((0, 5), {}, "envs is 0; at least 1"),
        ((), {}, "envs is 0; at least 1"),
        ((1,), {"rounds": 0}, "rounds is 0; at least 1"),
        ((1,), {"threads": -1}, "threads is -1; at least 1"),
        ((1,), {"seconds": 0.0}, "seconds is 0.0; more than 0"),
        ((1,), {"peers": Path("nowhere/python")}, "nowhere/python is not there; make peers"),
    ],
)
def test_a_number_that_cannot_be_measured_is_refused(envs, options, message):
    with pytest.raises(HpcrlError, match=message):
        bench_env(envs, **options)


def test_a_python_without_the_peer_is_named_with_its_own_last_word():
    with pytest.raises(RunFailed, match=r"did not run in .*python.*: ModuleNotFoundError.*gym"):
        bench_env((1,), peers=Path(sys.executable), **TINY)


def test_the_verb_prints_one_json_object(hpcrl):
    code, out, err = hpcrl(
        "bench", "env", "--envs", "1,3", "--rounds", "1", "--seconds", "0.01", "--threads", "1", "--json"
    )
    assert code == 0, err
    assert [row["envs"] for row in json.loads(out)["envs"]] == [1, 3]
    code, _, err = hpcrl("bench", "env", "--envs", "1,many")
    assert code == 2 and "--envs 1,many" in err and "1,100,1000" in err
